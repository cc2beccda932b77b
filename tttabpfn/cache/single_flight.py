"""Work that is under way: one run per name, shared by all threads that ask for it."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Flight:
    """One computation under way: a lock for the thread that runs it, and its result for those that waited."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.users = 0
        self.result: Any = None


class Flights:
    """The flights of one owner, and the mutex of its state, which is never held while something is computed.

    Both survive a fork: the mutex is held over it, so that a child finds the state whole, and the child starts with new
    locks, since the threads that held the old ones are not in it.

    Examples
    --------
    >>> flights = Flights()
    >>> with flights.join("a") as flight:
    ...     flight.result = 1
    """

    def __init__(self) -> None:
        self.renew()
        with _lock:
            _all.add(self)

    def renew(self) -> None:
        """Start with new locks, none of them held."""
        self.mutex = threading.RLock()
        self._flights: dict[str, Flight] = {}

    @contextmanager
    def join(self, name: str) -> Iterator[Flight]:
        """Hold the lock of a name; threads that wait for it at the same time share one `Flight`."""
        with self.mutex:
            flights = self._flights
            flight = flights.setdefault(name, Flight())
            flight.users += 1
        try:
            with flight.lock:
                yield flight
        finally:
            with self.mutex:
                flight.users -= 1
                if flight.users == 0:
                    flights.pop(name, None)


_lock = threading.RLock()
_all: weakref.WeakSet[Flights] = weakref.WeakSet()
_held: list[Any] = []


def _before_fork() -> None:
    _lock.acquire()
    for flights in list(_all):
        flights.mutex.acquire()
        _held.append(flights.mutex)


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop().release()
    _lock.release()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    _held.clear()
    for flights in list(_all):
        flights.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
