"""Objects that start anew in a forked child, in which the threads that were using them are not."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Renewable(Protocol):
    """What knows how to start anew."""

    def renew_after_fork(self) -> None:
        """Replace locks that a thread of the parent may hold; called in the child, by its only thread."""


_all: weakref.WeakSet[Renewable] = weakref.WeakSet()


def renew_in_children(owner: Renewable) -> None:
    """Have an object start anew in every process that is forked while it lives.

    Parameters
    ----------
    owner : Renewable
        Hashable; not kept alive.

    Examples
    --------
    >>> import threading
    >>> class Counter:
    ...     def __init__(self):
    ...         self.lock = threading.Lock()
    ...         renew_in_children(self)
    ...     def renew_after_fork(self):
    ...         self.lock = threading.Lock()
    >>> counter = Counter()
    """
    _all.add(owner)


def _after_fork_in_child() -> None:
    for owner in list(_all):
        owner.renew_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
