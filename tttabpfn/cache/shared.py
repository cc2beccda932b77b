"""The cache of adapted fast weights, as estimators ask for it: one for the process, or one per directory."""

from __future__ import annotations

import os
import threading
import warnings
from pathlib import Path

from tttabpfn.cache.cache import CacheInfo, FastWeightCache
from tttabpfn.cache.checks import absolute_path, folder_path, folder_problem
from tttabpfn.cache.entry import CacheEntry

__all__ = [
    "CacheEntry",
    "CacheInfo",
    "FastWeightCache",
    "check_cache",
    "default_cache",
    "resolve_cache",
    "serving_cache",
]

_lock = threading.Lock()
_shared: dict[Path | None, FastWeightCache] = {}
_warned: set[str] = set()


def default_cache() -> FastWeightCache:
    """Return the in-memory cache that all estimators of this process share.

    Returns
    -------
    FastWeightCache
        Always the same one.
    """
    with _lock:
        if None not in _shared:
            _shared[None] = FastWeightCache()
        return _shared[None]


def resolve_cache(cache: FastWeightCache | str | os.PathLike[str] | None) -> FastWeightCache:
    """Return the cache that an estimator's parameter `cache` stands for.

    Parameters
    ----------
    cache : FastWeightCache, str, os.PathLike or None
        None stands for `default_cache`; a path for one cache with that directory, the same for every spelling of it.

    Returns
    -------
    FastWeightCache
        The cache.

    Raises
    ------
    TypeError
        If `cache` is something else.
    ValueError
        If the path cannot be a folder of this process; see `folder_path`.

    Examples
    --------
    >>> resolve_cache(None) is default_cache()
    True
    """
    if isinstance(cache, FastWeightCache):
        return cache
    if cache is None:
        return default_cache()
    directory = folder_path("cache", cache)
    with _lock:
        if directory not in _shared:
            _shared[directory] = FastWeightCache(directory)
        return _shared[directory]


def check_cache(cache: FastWeightCache | str | os.PathLike[str] | None) -> None:
    """Raise what `resolve_cache` would, and for the folder of a cache too; nothing is made or kept."""
    directory = cache.directory if isinstance(cache, FastWeightCache) else cache
    if directory is not None:
        folder_path("cache", directory)


def serving_cache(cache: FastWeightCache | str | os.PathLike[str] | None) -> FastWeightCache:
    """Return what `resolve_cache` does, or the in-memory cache where a folder cannot be used (any more).

    Parameters
    ----------
    cache : FastWeightCache, str, os.PathLike or None
        What was fitted with, perhaps in another process.

    Returns
    -------
    FastWeightCache
        The cache of a path that was usable before in this process stays; what it holds in memory is not lost.

    Warns
    -----
    RuntimeWarning
        Once for each path that cannot be used.

    Examples
    --------
    >>> serving_cache(None) is default_cache()
    True
    """
    if cache is None or isinstance(cache, FastWeightCache):
        return resolve_cache(cache)
    try:
        directory = absolute_path("cache", cache)
        with _lock:
            known = _shared.get(directory)
        problem = None if known is not None else folder_problem(directory)
    except ValueError as error:
        known, problem = None, str(error)
    if known is not None:
        return known
    if problem is None:
        return resolve_cache(cache)
    with _lock:
        first = str(cache) not in _warned
        _warned.add(str(cache))
    if first:
        message = f"cache: the folder {str(cache)!r} cannot be used and fast weights are kept in memory only: {problem}"
        warnings.warn(message, RuntimeWarning, stacklevel=4)
    return default_cache()


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    # A thread that holds the lock during a fork is not there to release it in the child.
    os.register_at_fork(after_in_child=_renew_lock)
