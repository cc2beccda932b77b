"""A lock among processes, as a lock on an open file, which the system lifts when its owner ends."""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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


_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


@dataclass(eq=False)
class _Lock:
    """An open, locked file; its descriptor is None in a child that was forked meanwhile, which does not hold it."""

    path: Path
    descriptor: int | None


@contextmanager
def file_lock(path: Path, timeout: float, poll: float = 0.02) -> Iterator[bool]:
    """Hold an exclusive lock on a file, for work that is better done by one process but may be done by several.

    A file that a killed process left is not in the way: the lock is on the open file, not in its existence. A child
    that is forked meanwhile has no part in it, so that it ends with its owner. The wait is bounded, and a file system
    without locks means no lock, so a caller must be right without it, only slower. A link in the place of the file is
    not followed: no lock.

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
    held: _Lock | None = None
    while True:
        try:
            held = _acquire(path)
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
        yield held is not None
    finally:
        if held is not None:
            _release(held)


def _acquire(path: Path) -> _Lock:
    with _guard:
        descriptor = os.open(path, _FLAGS, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(f"{path} is no plain file")
            _lock(descriptor)
            # The last owner may have deleted the file between the opening and the lock: then this one guards nothing.
            if not _same_file(descriptor, path):
                raise BlockingIOError(f"{path} was replaced")
        except BaseException:
            os.close(descriptor)
            raise
        held = _Lock(path, descriptor)
        _all_held.add(held)
        return held


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _release(held: _Lock) -> None:
    with _guard:
        _all_held.discard(held)
        descriptor, held.descriptor = held.descriptor, None
        if descriptor is None:
            return
        # While the lock is held nobody else's lock can be deleted; Windows deletes closed files only.
        if sys.platform != "win32":
            with suppress(OSError):
                held.path.unlink()
        with suppress(OSError):
            _unlock(descriptor)
        os.close(descriptor)
        if sys.platform == "win32":
            with suppress(OSError):
                held.path.unlink()


_guard = threading.RLock()
_all_held: set[_Lock] = set()


def _before_fork() -> None:
    _guard.acquire()


def _after_fork_in_parent() -> None:
    _guard.release()


def _after_fork_in_child() -> None:
    global _guard
    _guard = threading.RLock()
    for held in _all_held:
        # The lock stands as long as any process has the file open: a child that lives on would keep it for ever.
        if held.descriptor is not None:
            os.close(held.descriptor)
            held.descriptor = None
    _all_held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
