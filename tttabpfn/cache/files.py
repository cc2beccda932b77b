"""Cache entries as files: one safetensors file per key, written whole or not at all, checked when read.

The metadata of a file holds the format version, the key, the entry's header and a checksum over all of these and the
tensors. Whatever is wrong with a file, reading it gives None.
"""

from __future__ import annotations

import json
import os
import re
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import safetensors.torch

from tttabpfn.cache.entry import CacheEntry
from tttabpfn.cache.file_lock import file_lock
from tttabpfn.cache.fingerprint import fingerprint

FORMAT = "tttabpfn fast weights 1"
"""Written into every file; a file with another one is not read."""

ABANDONED_AFTER = 3600.0
"""Seconds after which a scratch file is taken for one that a killed process left behind."""

MAX_BYTES = 16 * 1024**3
"""Bytes above which a file is none of a cache's; fast weights are no larger than the base that they adapt."""
MAX_HEADER_BYTES = 100_000_000
"""Bytes of a header at most, safetensors' own limit."""

_METADATA = {"format", "key", "header", "sha256"}
_NAME = re.compile(r"[0-9a-f]+\.safetensors")
_SCRATCH = re.compile(r"\.[0-9a-f]+\.[0-9a-f]+\.part")


def encode(key: str, entry: CacheEntry) -> bytes:
    """The bytes of a detached entry's file, which is a safetensors file that names its key."""
    header = json.dumps(entry.header)
    metadata = {"format": FORMAT, "key": key, "header": header, "sha256": _checksum(key, header, entry)}
    return safetensors.torch.save(entry.tensors, metadata)


def decode(key: str, data: bytes) -> CacheEntry | None:
    """Read an entry's file back; None if it is not the whole, unchanged file of this key.

    Parameters
    ----------
    key : str
        The key that is asked for.
    data : bytes
        What the file holds.

    Returns
    -------
    CacheEntry or None
        The entry.

    Examples
    --------
    >>> data = encode("0a", CacheEntry({}, {"n_steps": 4}))
    >>> decode("0a", data).header
    {'n_steps': 4}
    >>> decode("0b", data) is None and decode("0a", data[:-1]) is None
    True
    """
    found = decode_with_key(data)
    return found[1] if found is not None and found[0] == key else None


def decode_with_key(data: bytes) -> tuple[str, CacheEntry] | None:
    """Read an entry's bytes back, whatever their key; None if they are not whole and unchanged.

    Parameters
    ----------
    data : bytes
        What `encode` returned.

    Returns
    -------
    (str, CacheEntry) or None
        The key that the bytes name, which the checksum covers, and the entry.
    """
    # Foreign bytes can fail in any of the parsers, each in its own way; all of them mean that the entry is not there.
    try:
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        if metadata["format"] != FORMAT or set(metadata) != _METADATA:
            return None
        key, header = metadata["key"], metadata["header"]
        entry = CacheEntry(safetensors.torch.load(data), json.loads(header))
        return (key, entry) if metadata["sha256"] == _checksum(key, header, entry) else None
    except Exception:
        return None


def read_whole(file: Path) -> bytes | None:
    """Read a file that may be an entry's; None, at once and with little memory, if it cannot be one.

    Parameters
    ----------
    file : Path
        Whatever lies there: a named pipe is not waited for, and of a file that is not as long as its own header says,
        no more than the header is read.

    Returns
    -------
    bytes or None
        As many as the file had when it was opened.
    """
    try:
        # Before it is opened: some devices act on that.
        if not stat.S_ISREG(os.stat(file).st_mode):
            return None
        # Without O_NONBLOCK, a pipe put there meanwhile would wait for its writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(file, flags), "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
                return None
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            if length > min(MAX_HEADER_BYTES, status.st_size):
                return None
            start += stream.read(length)
            if _length_told(start) != status.st_size:
                return None
            return start + stream.read(status.st_size - len(start))
    except (OSError, ValueError, MemoryError):
        return None


def _length_told(start: bytes) -> int | None:
    """Bytes of a whole file as its first bytes, length and header, have it; None if they are of no cache's file."""
    try:
        header = json.loads(start[8:])
        if header.pop("__metadata__")["format"] != FORMAT:
            return None
        return len(start) + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    except Exception:
        return None


def _checksum(key: str, header: str, entry: CacheEntry) -> str:
    return fingerprint(FORMAT, key, header, entry.tensors)


def make_folder(path: Path) -> None:
    """Make a folder and what is missing above it, for its owner alone; one that is there stays as it is.

    Raises
    ------
    OSError
        If that cannot be done.
    """
    if os.path.isdir(path):
        return
    if path.parent != path:
        make_folder(path.parent)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise


class EntryFolder:
    """The files of a cache in one folder, which several processes may use at once.

    Parameters
    ----------
    path : Path
        The folder; made when something is first written.
    max_bytes : int or None
        Most bytes of all entries together; the ones not used for longest go first. None: no limit.
    """

    def __init__(self, path: Path, max_bytes: int | None = None) -> None:
        self.path = path
        self.max_bytes = max_bytes

    def file(self, key: str) -> Path:
        """Return where the entry of `key` is kept."""
        return self.path / f"{key}.safetensors"

    def read(self, key: str) -> CacheEntry | None:
        """Return the entry of `key`, or None if there is no sound file of it."""
        file = self.file(key)
        data = read_whole(file)
        entry = None if data is None else decode(key, data)
        if entry is not None and self.max_bytes is not None:
            with suppress(OSError):
                os.utime(file)
        return entry

    def write(self, key: str, entry: CacheEntry) -> None:
        """Write an entry under a scratch name, flush it to the disk and rename it.

        Raises
        ------
        OSError
            If the folder cannot be made or written to; nothing is left behind.
        """
        data = encode(key, entry)
        if self.max_bytes is not None and len(data) > self.max_bytes:
            return
        make_folder(self.path)
        scratch = self.path / f".{key}.{uuid.uuid4().hex}.part"
        try:
            with open(scratch, "xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(scratch, self.file(key))
        finally:
            with suppress(OSError):
                scratch.unlink()
        self._tidy(self.file(key))

    @contextmanager
    def lock(self, key: str, timeout: float) -> Iterator[bool]:
        """Hold `key`'s lock among processes; see `file_lock`. A folder made for it and left empty goes again."""
        made = not os.path.exists(self.path)
        with suppress(OSError):
            make_folder(self.path)
        try:
            with file_lock(self.path / f".{key}.lock", timeout) as held:
                yield held
        finally:
            if made:
                with suppress(OSError):
                    self.path.rmdir()

    def remove(self, key: str) -> None:
        """Delete the file of `key`, if there is one."""
        with suppress(OSError):
            self.file(key).unlink()

    def usage(self) -> tuple[int, int]:
        """Return the number of entry files and their bytes."""
        sizes = [size for _, _, size in self._files(_NAME)]
        return len(sizes), sum(sizes)

    def clear(self) -> None:
        """Delete every entry file and scratch file, and nothing else."""
        for pattern in (_NAME, _SCRATCH):
            for file in self._named(pattern):
                with suppress(OSError):
                    file.unlink()

    def _named(self, pattern: re.Pattern[str]) -> list[Path]:
        try:
            return [self.path / name for name in os.listdir(self.path) if pattern.fullmatch(name)]
        except (OSError, ValueError):
            return []

    def _files(self, pattern: re.Pattern[str]) -> list[tuple[float, Path, int]]:
        """Time of modification, path and size of plain files; what cannot be an entry is passed over."""
        found = []
        for file in self._named(pattern):
            with suppress(OSError):
                status = os.stat(file)
                if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_BYTES:
                    found.append((status.st_mtime, file, status.st_size))
        return found

    def _tidy(self, newest: Path) -> None:
        for changed, file, _ in self._files(_SCRATCH):
            if changed < time.time() - ABANDONED_AFTER:
                with suppress(OSError):
                    file.unlink()
        if self.max_bytes is None:
            return
        files = sorted(self._files(_NAME))
        excess = sum(size for _, _, size in files) - self.max_bytes
        for _, file, size in files:
            if excess > 0 and file != newest:
                with suppress(OSError):
                    file.unlink()
                    excess -= size
