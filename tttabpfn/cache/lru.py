"""A dictionary that forgets what was not used for longest."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Lru(Generic[Key, Value]):
    """Values with sizes, capped by bytes and by number. Not locked: its owner does that.

    Parameters
    ----------
    max_bytes : int, optional
        Bytes of all values together; a larger value is not kept at all. None: no limit.
    max_items : int, optional
        Values. None: no limit.

    Examples
    --------
    >>> recent = Lru(max_bytes=10)
    >>> recent.put("a", 1, nbytes=6), recent.put("b", 2, nbytes=6), recent.get("a"), recent.bytes
    ([], ['a'], None, 6)
    """

    def __init__(self, max_bytes: int | None = None, max_items: int | None = None) -> None:
        self.max_bytes = max_bytes
        self.max_items = max_items
        self.bytes = 0
        self._items: OrderedDict[Key, tuple[Value, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: Key) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[Key]:
        return iter(self._items)

    def get(self, key: Key) -> Value | None:
        """Return the value of `key` and count that as use; None if it is not there."""
        found = self._items.get(key)
        if found is None:
            return None
        self._items.move_to_end(key)
        return found[0]

    def put(self, key: Key, value: Value, nbytes: int = 0) -> list[Key]:
        """Keep a value, and return the keys of those that had to go for it."""
        self.pop(key)
        self._items[key] = (value, nbytes)
        self.bytes += nbytes
        dropped = []
        if self.max_bytes is not None and nbytes > self.max_bytes:
            self.pop(key)
            return [key]
        while self._is_over:
            oldest = next(iter(self._items))
            self.pop(oldest)
            dropped.append(oldest)
        return dropped

    @property
    def _is_over(self) -> bool:
        too_large = self.max_bytes is not None and self.bytes > self.max_bytes
        return too_large or (self.max_items is not None and len(self) > self.max_items)

    def pop(self, key: Key) -> None:
        """Forget `key`, if it is there."""
        _, nbytes = self._items.pop(key, (None, 0))
        self.bytes -= nbytes

    def clear(self) -> None:
        """Forget everything."""
        self._items.clear()
        self.bytes = 0
