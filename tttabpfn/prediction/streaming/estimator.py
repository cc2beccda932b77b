"""The estimator's methods for rows that keep coming: `partial_fit`, `forget`, `merge`."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted, validate_data

from tttabpfn.cache.cache import FastWeightCache
from tttabpfn.cache.shared import serving_cache
from tttabpfn.inputs import data
from tttabpfn.inputs.weights import check_sample_weight
from tttabpfn.memory.sums import Sums
from tttabpfn.prediction.lookup import Fitted
from tttabpfn.prediction.streaming.lookup import StreamLookup, context_alone
from tttabpfn.prediction.streaming.reservoir import Reservoir
from tttabpfn.prediction.streaming.stream import Stream

Self = TypeVar("Self", bound="StreamingMixin")


class StreamingMixin:
    """Takes rows in batches into a memory of sums; see `partial_fit`."""

    cache: Any
    adaptation: str
    class_weight: Any
    classes_: NDArray[Any]
    context_indices_: NDArray[np.int64]
    _fitted: Fitted
    _stream: Stream | None = None

    def partial_fit(
        self: Self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None, *, decay: float = 1.0
    ) -> Self:
        """Take in more rows; what predicts then has seen all rows so far.

        The first call (or `fit` before it) fixes the context, by `context_size`, and with it how TabPFN reads a row.
        All other rows go into a memory whose state is sums over them: linear weights on TabPFN's embedding and on the
        columns, each one Newton step away from its start. So batches may come in any order and of any size: the sums
        are the same to rounding (1e-9 in relation to their size for the same float32 embeddings; an embedding itself
        depends on its batch by float32 rounding, about 1e-6). Rows are not kept, but for the context and a sample of
        at most 2,000 on which the parts' shares are found. Trees, SwiGLU parts and gradient steps are `fit`'s alone.

        Parameters
        ----------
        X : array-like or frame of shape (n_rows, n_features)
            Rows. Those of the first call must hold a row of every class.
        y : array-like of shape (n_rows,)
            Their labels.
        classes : array-like of shape (n_classes,), optional
            All labels there are; checked against the first call's.
        sample_weight : array-like of shape (n_rows,), optional
            0 or more; a row of weight 2 counts as two rows.
        decay : float, default=1.0
            In (0, 1]: what all rows of earlier calls but the context weigh from now on, so that the memory follows a
            drift. The order of batches then matters.

        Returns
        -------
        TTTTabPFNClassifier
            Itself.

        Raises
        ------
        ValueError
            If `adaptation` is "gradient" or nothing is to adapt, a class is new, or `class_weight` is "balanced",
            which only the whole data could tell; else as `fit`.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from tttabpfn import TTTTabPFNClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = TTTTabPFNClassifier(context_size=30, random_state=0).fit(X[::2], y[::2])
        >>> clf.partial_fit(X[1::2], y[1::2]).adaptation_report().n_demonstrations
        150
        """
        _check_decay(decay)
        self._check_streams()
        is_first = getattr(self, "_fitted", None) is None
        if is_first:
            if classes is not None:
                _check_classes(classes, y)
            self.fit(X, y, sample_weight)  # type: ignore[attr-defined]
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(f"classes must be those of the first call, {self.classes_.tolist()}.")
        if self._stream is None:
            self._begin()
        if not is_first:
            rows, codes, weights = self._batch(X, y, sample_weight)
            lookup = self._stream_lookup()
            self._stream = lookup.stream.added(lookup.ground(), rows, codes, weights, decay)
        return self

    def forget(self: Self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Take rows back that `partial_fit` was given: what predicts has never seen them, to rounding.

        Parameters
        ----------
        X : array-like or frame of shape (n_rows, n_features)
            Rows given before, outside the context. That they were is checked on the kept sample alone.
        y : array-like of shape (n_rows,)
            Their labels.
        sample_weight : array-like of shape (n_rows,), optional
            The weights that they were given with.

        Returns
        -------
        TTTTabPFNClassifier
            Itself.

        Raises
        ------
        ValueError
            If nothing was given by `partial_fit`, or fewer rows or other ones.
        """
        check_is_fitted(self, "classes_")
        self._check_streams()
        if self._stream is None:
            raise ValueError("forget takes back rows that partial_fit was given, and it was not called yet.")
        rows, codes, weights = self._batch(X, y, sample_weight)
        lookup = self._stream_lookup()
        self._stream = lookup.stream.without(lookup.ground(), rows, codes, weights)
        return self

    def merge(self: Self, other: Any) -> Self:
        """Take in all rows that another estimator was given by `partial_fit`.

        Parameters
        ----------
        other : TTTTabPFNClassifier
            With the same context rows, parameters and base: fitted on the same first rows with the same seed, which
            count once. It is not changed.

        Returns
        -------
        TTTTabPFNClassifier
            Itself.

        Raises
        ------
        ValueError
            If it has another context, other parameters or another base.
        """
        check_is_fitted(self, "classes_")
        self._check_streams()
        if not isinstance(other, StreamingMixin) or getattr(other, "_stream", None) is None:
            raise ValueError(f"other must be a {type(self).__name__} that partial_fit was called on, got {other!r}.")
        if self._stream is None:
            self._begin()
        own, theirs = self._stream_lookup(), other._stream_lookup()
        if own.keys.adaptation != theirs.keys.adaptation:
            raise ValueError("other must have the same context rows, parameters, seed and base as this estimator.")
        self._stream = own.stream.merged(own.ground(), theirs.stream)
        return self

    def _check_streams(self) -> None:
        if self.adaptation == "gradient":
            raise ValueError("adaptation must be 'memory' or 'both' for partial_fit, got 'gradient'.")
        if isinstance(self.class_weight, str):
            raise ValueError(
                f"class_weight must be None or a dict for partial_fit, got {self.class_weight!r}: no batch tells how "
                "many rows of each class there will be."
            )

    def _begin(self) -> None:
        """Keep the context alone; the fit's other rows are the first batch."""
        if self._fitted.settings.is_frozen:
            raise ValueError("n_steps and step_size must not be 0 for partial_fit: nothing would adapt.")
        reduced, others = context_alone(self._fitted)
        lookup = StreamLookup(reduced, self._stream_cache())
        weights = np.ones(len(others)) if self._fitted.weights is None else self._fitted.weights[others]
        rows = data.take_rows(self._fitted.rows, others)
        stream = lookup.stream.added(lookup.ground(), rows, self._fitted.codes[others], weights)
        self._stream, self._fitted = stream.as_first(self._fitted.data_print), reduced

    def _stream_cache(self) -> FastWeightCache:
        return serving_cache(self.cache)

    def _stream_lookup(self) -> StreamLookup:
        return StreamLookup(self._fitted, self._stream_cache(), self._stream)

    def _batch(self, X: Any, y: Any, sample_weight: Any) -> tuple[Any, NDArray[np.int64], NDArray[np.float64]]:
        """Checked rows, class codes and weights; rows of weight 0 are left out."""
        rows = data.check_rows(X, estimator=self, min_rows=1)
        validate_data(self, X, skip_check_array=True, reset=False)
        rows = self._fitted.columns.read(rows)
        labels = data.check_labels_of(y, len(rows), estimator=self)
        codes = _codes_of(labels, self.classes_)
        given = check_sample_weight(sample_weight, len(rows))
        weights = np.ones(len(rows)) if given is None else given
        if self.class_weight is not None:
            weights = weights * np.array([float(self.class_weight.get(label, 1.0)) for label in labels.tolist()])
        present = np.flatnonzero(weights)
        return data.take_rows(rows, present), codes[present], weights[present]


def pack_stream(stream: Stream) -> dict[str, Any]:
    """A stream as plain arrays, for a pickle."""
    reservoir = stream.reservoir
    return {
        "sums": [{name: value.numpy() for name, value in one.tensors().items()} for one in stream.sums],
        "reservoir": reservoir.arrays() | {"bound": reservoir.bound},
        "n_rows": stream.n_rows,
        "first": None if stream.first is None else pack_stream(stream.first),
        "first_print": stream.first_print,
        "is_decayed": stream.is_decayed,
    }


def unpack_stream(packed: dict[str, Any]) -> Stream:
    """Rebuild a stream from what `pack_stream` returned."""
    sums = tuple(Sums(**{name: torch.as_tensor(value) for name, value in one.items()}) for one in packed["sums"])
    first = None if packed["first"] is None else unpack_stream(packed["first"])
    plain = {name: packed[name] for name in ("n_rows", "first_print", "is_decayed")}
    return Stream(sums, Reservoir(**packed["reservoir"]), first=first, **plain)


def _check_decay(decay: Any) -> None:
    if isinstance(decay, bool) or not isinstance(decay, int | float | np.floating):
        raise TypeError(f"decay must be a float in (0, 1], got {decay!r} of type {type(decay).__name__}.")
    if not (math.isfinite(decay) and 0.0 < decay <= 1.0):
        raise ValueError(f"decay must be a float in (0, 1], got {decay!r}.")


def _check_classes(classes: Any, y: Any) -> None:
    """Raise a ValueError unless the first rows hold every class: TabPFN knows classes by their context rows."""
    found = set(np.unique(np.asarray(y)).tolist())
    missing = [label for label in np.unique(np.asarray(classes)).tolist() if label not in found]
    if missing:
        raise ValueError(f"the first rows must hold every class of `classes`; there is none of {missing[0]!r}.")


def _codes_of(labels: NDArray[Any], classes: NDArray[Any]) -> NDArray[np.int64]:
    positions = {label: position for position, label in enumerate(classes.tolist())}
    try:
        return np.array([positions[label] for label in labels.tolist()], dtype=np.int64)
    except KeyError as error:
        raise ValueError(
            f"y holds {error.args[0]!r}, which is none of the classes of the first call, {classes.tolist()}."
        ) from error
