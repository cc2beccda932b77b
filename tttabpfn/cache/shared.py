"""The cache of adapted fast weights, as estimators ask for it: one for the process, or one per directory."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from tttabpfn.cache.cache import CacheInfo, FastWeightCache
from tttabpfn.cache.checks import folder_path
from tttabpfn.cache.entry import CacheEntry

__all__ = ["CacheEntry", "CacheInfo", "FastWeightCache", "default_cache", "resolve_cache"]

_lock = threading.Lock()
_shared: dict[Path | None, FastWeightCache] = {}


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
        If the path is empty or that of a file.

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


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    # A thread that holds the lock during a fork is not there to release it in the child.
    os.register_at_fork(after_in_child=_renew_lock)
