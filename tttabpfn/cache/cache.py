"""The class of fast-weight caches: entries computed once per key, in memory and, if asked for, on disk."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tttabpfn.cache.attachments import Attachments
from tttabpfn.cache.checks import check_count, check_key, folder_path, is_key, seconds
from tttabpfn.cache.entry import CacheEntry
from tttabpfn.cache.files import EntryFolder
from tttabpfn.cache.lru import Lru
from tttabpfn.cache.single_flight import Flights

MAX_BYTES = 2 * 1024**3
"""Bytes of entries that a cache holds in memory unless told otherwise."""


@dataclass(frozen=True)
class CacheInfo:
    """What a cache holds and how it was used.

    Parameters
    ----------
    hits, misses : int
        Requests that were and were not answered with a stored entry, in this process.
    entries, bytes : int
        Entries in memory and their size.
    max_bytes : int
        Cap of `bytes`.
    directory : str or None
        Folder of the entries on disk.
    disk_entries, disk_bytes : int
        Files in that folder and their size.
    """

    hits: int
    misses: int
    entries: int
    bytes: int
    max_bytes: int
    directory: str | None
    disk_entries: int
    disk_bytes: int


class FastWeightCache:
    """Fast weights by content key, least recently used first out, computed once however many ask at once.

    Threads that ask for one key at the same time run one computation and get the same entry. With a directory, so do
    processes, and entries outlive the process. A cache is shared, never copied: `copy.copy` and `copy.deepcopy` return
    it, so that clones of an estimator use one. Pickling keeps the directory and the caps, not the entries.

    Parameters
    ----------
    directory : str or os.PathLike, optional
        Folder for entries on disk; made when the first one is written. None: in memory only.
    max_bytes : int, default=2 GiB
        Bytes of entries in memory. A larger entry is handed out and, with a directory, written, but not held.
    max_disk_bytes : int, optional
        Bytes of entries on disk. None: no limit.
    max_attachments : int, default=32
        Objects that `attachments` keeps.
    lock_timeout : float, default=600
        Seconds for which a process waits for another one's computation before it does its own.

    Attributes
    ----------
    attachments : Attachments
        Objects of this process that belong to entries.

    Raises
    ------
    TypeError, ValueError
        If a parameter is not of the stated kind, or `directory` cannot be a folder of this process.

    Notes
    -----
    A file that is damaged, cut off, foreign or of another format version counts as missing. If the directory cannot be
    written to, one `RuntimeWarning` says so and the cache goes on in memory. Nothing is ever unpickled. A folder that
    is made here is its owner's alone; make it beforehand to share it, with those whom you would trust with a
    checkpoint: checksums find damage, not intent.

    Examples
    --------
    >>> import torch
    >>> from tttabpfn import FastWeightCache
    >>> from tttabpfn.cache.shared import CacheEntry
    >>> cache = FastWeightCache()
    >>> entry, hit = cache.get_or_compute("0a", lambda: CacheEntry({"weight": torch.ones(3)}, {"n_steps": 1}))
    >>> hit, cache.get_or_compute("0a", lambda: 1 / 0)[1], cache.info().bytes
    (False, True, 12)
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        max_bytes: int = MAX_BYTES,
        max_disk_bytes: int | None = None,
        max_attachments: int = 32,
        lock_timeout: float = 600.0,
    ) -> None:
        self.max_bytes = check_count("max_bytes", max_bytes)
        self.max_disk_bytes = None if max_disk_bytes is None else check_count("max_disk_bytes", max_disk_bytes)
        self.max_attachments = check_count("max_attachments", max_attachments)
        self.lock_timeout = seconds("lock_timeout", lock_timeout)
        self.directory = None if directory is None else folder_path("directory", directory)
        self._folder = None if self.directory is None else EntryFolder(self.directory, self.max_disk_bytes)
        self._entries: Lru[str, CacheEntry] = Lru(self.max_bytes)
        self._accepted: set[str] = set()
        self._hits = 0
        self._misses = 0
        self._warned = False
        self._flights = Flights()
        self.attachments = Attachments(self.max_bytes, self.max_attachments, self._flights)

    def get(self, key: str) -> CacheEntry | None:
        """Return the entry of a key, from memory or else from disk.

        Parameters
        ----------
        key : str
            Lower-case hex digits.

        Returns
        -------
        CacheEntry or None
            The entry, whose tensors must not be written to; None if there is none.
        """
        entry = self.peek(key)
        self._count_use(hit=entry is not None)
        return entry

    def peek(self, key: str) -> CacheEntry | None:
        """Return what `get` would, without a hit or a miss counted.

        Parameters
        ----------
        key : str
            Lower-case hex digits.

        Returns
        -------
        CacheEntry or None
            The entry, whose tensors must not be written to; None if there is none.

        Examples
        --------
        >>> cache = FastWeightCache()
        >>> cache.peek("0a"), cache.info().misses
        (None, 0)
        """
        return self._recall(check_key(key))

    def put(self, key: str, entry: CacheEntry) -> None:
        """Keep a copy of an entry, in memory and on disk, in place of any former one.

        Parameters
        ----------
        key : str
            Lower-case hex digits.
        entry : CacheEntry
            What to keep. Later changes to its tensors do not reach the cache.

        Raises
        ------
        TypeError
            If the header is not JSON-ready or a tensor cannot be kept in a file.

        Warns
        -----
        RuntimeWarning
            The first time that the directory cannot be written to.
        """
        self._store(check_key(key), entry)

    def adopt(self, key: str, entry: CacheEntry) -> None:
        """Hold an entry that came from elsewhere in memory, unless there is one; nothing is written to disk.

        Parameters
        ----------
        key : str
            Lower-case hex digits.
        entry : CacheEntry
            What to hold; the cache's own from now on.
        """
        if self._recall(check_key(key)) is None:
            with self._flights.mutex:
                self._hold(key, entry)

    def forget(self, key: str) -> None:
        """Drop the entry of a key and its attachments, from memory and from disk.

        Parameters
        ----------
        key : str
            Lower-case hex digits.
        """
        with self._flights.mutex:
            self._entries.pop(check_key(key))
            self._accepted.discard(key)
            self.attachments.drop([key])
        if self._folder is not None:
            self._folder.remove(key)

    def get_or_compute(
        self,
        key: str,
        compute: Callable[[], CacheEntry],
        accepts: Callable[[CacheEntry], bool] | None = None,
    ) -> tuple[CacheEntry, bool]:
        """Return the entry of a key, computing it if there is none.

        Parameters
        ----------
        key : str
            Lower-case hex digits.
        compute : callable
            Called without arguments, by one thread (and, with a directory, one process) at a time; returns the entry.
            Must not wait for a thread that asks for the same key. What it raises goes to the caller and leaves the
            cache as it was.
        accepts : callable, optional
            Says of an entry that was read, put or adopted whether it is one that `compute` could have returned; asked
            once. One that it refuses counts as missing, and is replaced.

        Returns
        -------
        entry : CacheEntry
            The entry as kept, the same on every later call; its tensors must not be written to.
        hit : bool
            Whether it was there already or another thread or process had just computed it.
        """
        entry = self._recall(check_key(key), accepts, disk=False)
        if entry is None:
            with self._flights.join(key) as flight:
                entry = flight.result or self._recall(key, accepts)
                if entry is None:
                    with self._computing(key):
                        entry = self._recall(key, accepts)
                        if entry is None:
                            self._count_use(hit=False)
                            flight.result = self._store(key, compute(), is_accepted=True)
                            return flight.result, False
                flight.result = entry
        self._count_use(hit=True)
        return entry, True

    def clear(self, *, disk: bool = False) -> None:
        """Forget all entries and attachments in memory, and the counts of hits and misses.

        Parameters
        ----------
        disk : bool, default=False
            Also delete the entries in the directory, which other processes may be using.
        """
        with self._flights.mutex:
            self._entries.clear()
            self._accepted.clear()
            self.attachments.clear()
            self._hits = self._misses = 0
        if disk and self._folder is not None:
            self._folder.clear()

    def info(self) -> CacheInfo:
        """Return what the cache holds and how often it was used.

        Returns
        -------
        CacheInfo
            Counts and bytes.
        """
        disk_entries, disk_bytes = (0, 0) if self._folder is None else self._folder.usage()
        directory = None if self.directory is None else str(self.directory)
        with self._flights.mutex:
            held = len(self._entries), self._entries.bytes
            return CacheInfo(self._hits, self._misses, *held, self.max_bytes, directory, disk_entries, disk_bytes)

    def __len__(self) -> int:
        with self._flights.mutex:
            return len(self._entries)

    def __bool__(self) -> bool:
        return True

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and is_key(key) and self._recall(key) is not None

    def __repr__(self) -> str:
        where = "" if self.directory is None else f"{str(self.directory)!r}, "
        return f"{type(self).__name__}({where}max_bytes={self.max_bytes})"

    def __copy__(self) -> FastWeightCache:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FastWeightCache:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        directory = None if self.directory is None else str(self.directory)
        caps = ("max_bytes", "max_disk_bytes", "max_attachments", "lock_timeout")
        return _revived, (type(self), directory, {name: getattr(self, name) for name in caps})

    def _recall(
        self, key: str, accepts: Callable[[CacheEntry], bool] | None = None, disk: bool = True
    ) -> CacheEntry | None:
        with self._flights.mutex:
            entry = self._entries.get(key)
            is_accepted = accepts is None or key in self._accepted
        if entry is not None and (is_accepted or self._is_taken(key, entry, accepts)):
            return entry
        if not disk or self._folder is None:
            return None
        entry = self._folder.read(key)
        if entry is None or not (accepts is None or accepts(entry)):
            return None
        with self._flights.mutex:
            # Another thread may have read it meanwhile: everyone gets the same one.
            first = self._entries.get(key)
            return first if first is not None else self._hold(key, entry, is_accepted=accepts is not None)

    def _is_taken(self, key: str, entry: CacheEntry, accepts: Callable[[CacheEntry], bool] | None) -> bool:
        """Ask whether an entry in memory, of unknown origin, is accepted, and remember it; else it goes."""
        taken = accepts is None or accepts(entry)
        with self._flights.mutex:
            if self._entries.get(key) is entry:
                if taken:
                    self._accepted.add(key)
                else:
                    self._entries.pop(key)
                    self.attachments.drop([key])
        return taken

    def _hold(self, key: str, entry: CacheEntry, is_accepted: bool = False) -> CacheEntry:
        self._accepted.discard(key)
        if is_accepted:
            self._accepted.add(key)
        dropped = self._entries.put(key, entry, entry.nbytes)
        self._accepted.difference_update(dropped)
        self.attachments.drop(dropped)
        return entry

    def _store(self, key: str, entry: CacheEntry, is_accepted: bool = False) -> CacheEntry:
        if not isinstance(entry, CacheEntry):
            raise TypeError(f"entry must be a CacheEntry, got {type(entry).__name__}")
        entry = entry.detached()
        with self._flights.mutex:
            self.attachments.drop([key])
            self._hold(key, entry, is_accepted)
        if self._folder is not None:
            try:
                self._folder.write(key, entry)
            except OSError as error:
                self._warn(error)
        return entry

    def _warn(self, error: OSError) -> None:
        with self._flights.mutex:
            first, self._warned = not self._warned, True
        if first:
            message = f"fast weights cannot be written to {self.directory} and are kept in memory only: {error}"
            warnings.warn(message, RuntimeWarning, stacklevel=4)

    def _count_use(self, hit: bool) -> None:
        with self._flights.mutex:
            self._hits += hit
            self._misses += not hit

    @contextmanager
    def _computing(self, key: str) -> Iterator[None]:
        if self._folder is None:
            yield
        else:
            with self._folder.lock(key, self.lock_timeout):
                yield


def _revived(kind: type[FastWeightCache], directory: str | None, caps: dict[str, Any]) -> FastWeightCache:
    """An unpickled cache; in memory only, with a warning, where its folder cannot be used here."""
    try:
        return kind(directory, **caps)
    except ValueError as error:
        message = f"a cache's folder cannot be used here and its fast weights are kept in memory only: {error}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return kind(None, **caps)
