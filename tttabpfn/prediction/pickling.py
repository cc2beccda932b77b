"""What a pickled estimator carries: fast weights in the cache's own checked format, a stream as plain arrays."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.cache.files import decode_with_key, encode
from tttabpfn.cache.shared import serving_cache
from tttabpfn.prediction.lookup import Fitted, Lookup
from tttabpfn.prediction.streaming.estimator import pack_stream, unpack_stream


class PicklingMixin:
    """Packs and unpacks what an estimator has adapted to."""

    cache: Any
    _fitted: Fitted
    _lookup: Callable[[], Lookup]

    def __getstate__(self) -> dict[str, Any]:
        # A copy: what is packed below must not stand on the estimator itself.
        state: dict[str, Any] = dict(super().__getstate__())  # type: ignore[call-overload]
        # Nothing is loaded or adapted for a pickle: it carries fast weights if they are here.
        if state.get("_stream") is not None:
            state["_stream"] = pack_stream(state["_stream"])
        elif "_fitted" in state and adapter.loaded_base(self._fitted.estimator) is not None:
            lookup = self._lookup()
            entry = lookup.cache.peek(lookup.keys.adaptation)
            if entry is not None:
                state["_packed_fast_weights"] = encode(lookup.keys.adaptation, entry)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        packed = state.pop("_packed_fast_weights", None)
        if state.get("_stream") is not None:
            state["_stream"] = unpack_stream(state["_stream"])
        super().__setstate__(state)  # type: ignore[misc]
        if "_fitted" in state:
            # An unpickled copy has its own token, so that it reports a hit for what the original computed.
            self._fitted = replace(self._fitted, token=uuid.uuid4().hex)
        found = None if packed is None else decode_with_key(packed)
        # Damaged bytes are a miss: the first prediction adapts anew.
        if found is not None:
            serving_cache(self.cache).adopt(*found)
