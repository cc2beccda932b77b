"""Objects of this process that belong to cache entries and cannot be written to a file, such as fitted predictors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tttabpfn.cache.checks import check_key
from tttabpfn.cache.lru import Lru
from tttabpfn.cache.single_flight import Flights


class Attachments:
    """Objects by the entry's key and a name, built once however many ask at once.

    Dropped when the entry is replaced or dropped, or when too many or too large others were used since.

    Parameters
    ----------
    max_bytes : int
        Bytes of all of them together.
    max_items : int
        Number of all of them.
    flights : Flights
        Of the cache that owns them; its mutex guards them too.

    Examples
    --------
    >>> attachments = Attachments(max_bytes=100, max_items=2, flights=Flights())
    >>> attachments.get_or_build("0a", "letters", lambda: "abc"), attachments.get("0a", "letters")
    ('abc', 'abc')
    """

    def __init__(self, max_bytes: int, max_items: int, flights: Flights) -> None:
        self._kept: Lru[tuple[str, str], tuple[Any]] = Lru(max_bytes, max_items)
        self._flights = flights

    def get_or_build(
        self,
        key: str,
        name: str,
        build: Callable[[], Any],
        nbytes: Callable[[Any], int] | None = None,
        max_count: int | None = None,
    ) -> Any:
        """Return an object, building it if there is none.

        Parameters
        ----------
        key : str
            The entry's key.
        name : str
            Tells the objects of one entry apart.
        build : callable
            Called without arguments, by one thread at a time. What it raises goes to the caller.
        nbytes : callable, optional
            Given the object, its size in bytes.
        max_count : int, optional
            Objects of this name, of all entries together; the ones not used for longest go first.

        Returns
        -------
        object
            What `build` returned, now or before.
        """
        kept = self.get(key, name)
        if kept is not None:
            return kept
        with self._flights.join(f"{key}/{name}") as flight:
            with self._flights.mutex:
                held = flight.result or self._kept.get((key, name))
            if held is None:
                held = (build(),)
                size = 0 if nbytes is None else nbytes(held[0])
                with self._flights.mutex:
                    self._kept.put((key, name), held, size)
                    namesakes = [label for label in self._kept if label[1] == name]
                    excess = 0 if max_count is None else max(0, len(namesakes) - max_count)
                    for label in namesakes[:excess]:
                        self._kept.pop(label)
            flight.result = held
        return held[0]

    def get(self, key: str, name: str) -> Any | None:
        """Return an object that is kept, which counts as use, or None if there is none; nothing is built."""
        with self._flights.mutex:
            held = self._kept.get((check_key(key), name))
        return None if held is None else held[0]

    def resize(self, key: str, name: str, nbytes: int) -> None:
        """Note that an object, if it is kept, has another size by now; others go if there is too little room."""
        with self._flights.mutex:
            held = self._kept.get((check_key(key), name))
            if held is not None:
                self._kept.put((key, name), held, nbytes)

    def drop(self, keys: Iterable[str]) -> None:
        """Forget all objects of some entries; the caller holds the mutex."""
        gone = set(keys)
        for label in list(self._kept):
            if label[0] in gone:
                self._kept.pop(label)

    def clear(self) -> None:
        """Forget all; the caller holds the mutex."""
        self._kept.clear()
