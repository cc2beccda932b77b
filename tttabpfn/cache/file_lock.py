"""A lock among processes, as a lock on an open file, which the system lifts when its owner ends."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(str(error)) from error

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextmanager
def file_lock(path: Path, timeout: float, poll: float = 0.02) -> Iterator[bool]:
    """Hold an exclusive lock on a file, for work that is better done by one process but may be done by several.

    A file that a killed process left is not in the way: the lock is on the open file, not in its existence. The wait is
    bounded, and a file system without locks means no lock, so a caller must be right without it, only slower.

    Parameters
    ----------
    path : Path
        The lock file; made if missing, deleted after use.
    timeout : float
        Seconds to wait for another owner.
    poll : float
        Seconds between the first attempts; up to 0.5 s later.

    Yields
    ------
    bool
        Whether the lock is held; False after `timeout` or where no lock can be had.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with file_lock(Path(folder) / "a.lock", 1.0) as first, file_lock(Path(folder) / "a.lock", 0.0) as second:
    ...         print(first, second)
    True False
    """
    deadline = time.monotonic() + timeout
    descriptor: int | None = None
    while True:
        try:
            descriptor = _acquire(path)
        except BlockingIOError:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                break
            time.sleep(min(poll, remaining))
            poll = min(poll * 1.5, 0.5)
            continue
        except OSError:
            break
        break
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            _release(descriptor, path)


def _acquire(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor)
        # The last owner may have deleted the file between the opening and the lock: then this one guards nothing.
        if not _same_file(descriptor, path):
            raise BlockingIOError(f"{path} was replaced")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _release(descriptor: int, path: Path) -> None:
    # While the lock is held nobody else's lock can be deleted; Windows deletes closed files only.
    if sys.platform != "win32":
        with suppress(OSError):
            path.unlink()
    with suppress(OSError):
        _unlock(descriptor)
    os.close(descriptor)
    if sys.platform == "win32":
        with suppress(OSError):
            path.unlink()
