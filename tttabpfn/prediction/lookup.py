"""From what `fit` stored to what predicts: session, adaptation and predictor, each looked up before it is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tabpfn import TabPFNClassifier

from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.adaptation import Session, Settings, adapt
from tttabpfn.cache.cache import FastWeightCache
from tttabpfn.cache.entry import CacheEntry
from tttabpfn.inputs.columns import Columns
from tttabpfn.inputs.data import take_rows
from tttabpfn.inputs.packing import pack_table, unpack_table
from tttabpfn.prediction.cost import Cost, Demand, estimate
from tttabpfn.prediction.embeddings import Embeddings, embed, embed_known
from tttabpfn.prediction.entries import Request, frozen_entry, report_of, to_entry
from tttabpfn.prediction.predictor import ForeignMemoryError, Predictor, build_predictor
from tttabpfn.prediction.progress import AdaptationProgress, adaptation_progress, current_bar
from tttabpfn.prediction.soundness import is_sound
from tttabpfn.report import AdaptationReport

MAX_SESSIONS = 10
"""Folds of a grid search whose demonstrations and row embeddings stay at hand for its candidates."""


@dataclass(frozen=True)
class Fitted:
    """What `fit` stored.

    Parameters
    ----------
    estimator : TabPFNClassifier
        The wrapped classifier, unfitted, its seed settled.
    settings : Settings
        The parameters, resolved.
    rows : frame or ndarray of shape (N, n_features)
        Demonstrations, the fit's own copy.
    labels : ndarray of shape (N,)
        Their labels as the user gave them.
    codes : ndarray of shape (N,), int
        Class codes.
    context : ndarray of shape (n,), int
        Rows kept as context.
    data_print : str
        Fingerprint of rows, labels and context.
    token : str
        Tells the fit, and every unpickled copy of it, from others: whoever made an entry meets no hit.
    note : str
        What was done to the context size that was asked for.
    columns : Columns
        How cells are read; `rows` have been.
    weights : ndarray of shape (N,) or None
        Of the demonstrations, above 0; None: all the same.
    """

    estimator: TabPFNClassifier
    settings: Settings
    rows: Any
    labels: NDArray[Any]
    codes: NDArray[np.int64]
    context: NDArray[np.int64]
    data_print: str
    token: str
    note: str = ""
    columns: Columns = field(kw_only=True)
    weights: NDArray[np.float64] | None = None
    request: Request = field(init=False)

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return int(self.codes.max()) + 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "request", Request.of(self.estimator, self.settings, self.data_print))

    def __getstate__(self) -> dict[str, Any]:
        # As arrays, frames can also be kept by formats that store no code, such as that of skops.
        return {**self.__dict__, "rows": pack_table(self.rows)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "rows": unpack_table(state["rows"])})


class Lookup:
    """One call's way down; its keys are made once, when the base is known.

    Parameters
    ----------
    fitted : Fitted
        What `fit` stored.
    cache : FastWeightCache
        Where everything is looked up by content, and kept.
    verbose : int, default=0
        1 shows a progress bar while adapting.
    """

    def __init__(self, fitted: Fitted, cache: FastWeightCache, verbose: int = 0) -> None:
        self.fitted = fitted
        self.cache = cache
        self.verbose = verbose
        self._tell: AdaptationProgress | None = None
        self.base = adapter.load_base_for(fitted.estimator, fitted.n_classes)
        self.keys = fitted.request.keys(self.base.content)

    def predict_proba(self, rows: Any) -> NDArray[np.floating[Any]]:
        """Predict checked rows; adapts if nothing has yet.

        Parameters
        ----------
        rows : frame or ndarray of shape (n_rows, n_features)
            Like those given to `fit`.

        Returns
        -------
        ndarray of shape (n_rows, n_classes)
            Class probabilities.
        """
        with self._watched():
            return self._predict(rows)

    def _predict(self, rows: Any) -> NDArray[np.floating[Any]]:
        key, predictor = self._keyed_predictor()
        session = self.cache.attachments.get(self.keys.session, "session")
        if self.fitted.settings.is_frozen or session is None or not session.is_searched:
            return predictor.predict_proba(rows)
        return session.predictions.get(key, rows, lambda: predictor.predict_proba(rows))

    def report(self) -> AdaptationReport:
        """Return what the adaptation did; adapts if nothing has yet."""
        with self._watched():
            entry = self.entry()
        report = report_of(entry, reader=self.fitted.token)
        return replace(report, notes=(self.fitted.note, *report.notes)) if self.fitted.note else report

    def cost(self) -> Cost:
        """Estimate what adapting would take, as if nothing were in the cache."""
        fitted = self.fitted
        max_members = fitted.settings.recipe.members(len(fitted.codes), len(fitted.context))
        n_columns = fitted.rows.shape[1]
        sizes = adapter.Sizes.of(fitted.estimator, self.base, n_columns, max_members)
        demand = Demand(len(fitted.codes), n_columns, fitted.n_classes, len(fitted.context), sizes, fitted.settings)
        return estimate(demand, self.base.device)

    def predictor(self) -> Predictor:
        """Return what predicts: fitted on the context rows, with the adapted networks or the frozen ones."""
        with self._watched():
            return self._keyed_predictor()[1]

    def embed(self, rows: Any) -> Embeddings:
        """Embed checked rows; adapts if nothing has yet."""
        with self._watched():
            return embed(self._keyed_predictor()[1], rows)

    def embed_demonstrations(self) -> Embeddings:
        """Embed the rows given to `fit`, none with itself in the context; adapts if nothing has yet."""
        with self._watched():
            session, rows = self.session(), self.fitted.rows
            read = embed_known(session, self.entry().tensors, self.fitted.settings.seed)
            if not session.n_unread:
                return read
            # What the network has not read is like a new row to it.
            unread = np.setdiff1d(np.arange(len(self.fitted.codes)), session.read_rows)
            found = np.empty((len(self.fitted.codes), read.shape[1]), dtype=read.dtype)
            found[session.read_rows] = read
            found[unread] = embed(self._keyed_predictor()[1], take_rows(rows, unread))
            return found

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Show the first call's progress, where it is wanted and there is something to wait for."""
        wanted = self.verbose or current_bar() is not None
        if not wanted or self.fitted.settings.is_frozen or self.keys.adaptation in self.cache:
            yield
            return
        with adaptation_progress(self.verbose, self.fitted.settings, self.cost().seconds) as self._tell:
            yield
        self._tell = None

    def _keyed_predictor(self) -> tuple[str, Predictor]:
        try:
            return self._predictor_of(self.entry())
        except ForeignMemoryError:
            # Whole, sound in itself, and of another table: as good as missing.
            self.cache.forget(self.keys.adaptation)
            return self._predictor_of(self.entry())

    def _predictor_of(self, entry: CacheEntry) -> tuple[str, Predictor]:
        if self._tell is not None:
            self._tell.begin("predicting")
        key = self.keys.predictor(entry, self.fitted.settings)
        return key, self.cache.attachments.get_or_build(key, "predictor", lambda: self._build_predictor(entry))

    def entry(self) -> CacheEntry:
        """Return fast weights and report from the cache, adapting if it has none."""
        return self.cache.get_or_compute(self.keys.adaptation, self._adapt, self._accepts)[0]

    def _accepts(self, entry: CacheEntry) -> bool:
        fitted = self.fitted
        sizes = {"n_rows": len(fitted.codes), "n_context": len(fitted.context)}
        return is_sound(entry, fitted.settings, self.base, n_classes=fitted.n_classes, **sizes)

    def session(self) -> Session:
        """Return what all adaptations of these demonstrations share."""
        return self.cache.attachments.get_or_build(
            self.keys.session,
            "session",
            self._build_session,
            nbytes=lambda session: session.nbytes,
            max_count=MAX_SESSIONS,
        )

    def _adapt(self) -> CacheEntry:
        fitted, settings = self.fitted, self.fitted.settings
        if settings.is_frozen:
            return frozen_entry(settings, len(fitted.context), len(fitted.codes), fitted.token)
        cost = self.cost()
        cost.refuse()
        session = self.session()
        adaptation = adapt(session, settings, self._tell)
        # It holds first gradients and row embeddings by now.
        self.cache.attachments.resize(self.keys.session, "session", session.nbytes)
        return to_entry(adaptation, fitted.token)

    def _build_session(self) -> Session:
        fitted, settings = self.fitted, self.fitted.settings
        return Session(
            fitted.estimator,
            fitted.rows,
            fitted.labels,
            fitted.codes,
            fitted.context,
            seed=settings.seed,
            recipe=settings.recipe,
            weights=fitted.weights,
            # Not loaded anew: the checkpoint may have been replaced since the keys were made.
            base=self.base,
        )

    def _build_predictor(self, entry: CacheEntry) -> Predictor:
        fitted = self.fitted
        session = self.cache.attachments.get(self.keys.session, "session")
        return build_predictor(
            fitted.estimator,
            self.base,
            fitted.settings,
            entry.tensors,
            fitted.rows,
            fitted.labels,
            fitted.codes,
            fitted.context,
            None if session is None else session.all_members,
            None if session is None else session.columns,
            fitted.weights,
        )
