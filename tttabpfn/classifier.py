"""`TTTTabPFNClassifier`: parameters, checks, and the flow from fit to predict; no gradients here."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from tabpfn import TabPFNClassifier

from tttabpfn import parameters, store, validation
from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.adaptation import Session, Settings
from tttabpfn.adaptation.episodes import seeded, stratified_rows
from tttabpfn.fast_weights.cache import CacheEntry, FastWeightCache, resolve_cache
from tttabpfn.fast_weights.fingerprint import fingerprint
from tttabpfn.predictor import MemoryPredictor, build_predictor
from tttabpfn.progress import progress_bar
from tttabpfn.report import AdaptationReport
from tttabpfn.row_order import distinct_rows

CONTEXT_BRANCH, WRAPPED_BRANCH = 0, 20
MOST_SESSIONS = 10
"""Folds of a grid search whose demonstrations and row embeddings stay at hand for its candidates."""


class TTTTabPFNClassifier(ClassifierMixin, BaseEstimator):
    """TabPFN that trains itself at test time on the demonstrations it is given.

    `fit` checks and stores the demonstrations. The first prediction takes a few gradient steps on them (test-time
    training): demonstrations are split into a context and queries, the queries' loss is minimised over a chosen part
    of TabPFN's own weights, the fast weights, and the adapted model predicts with the context alone. The fast weights
    are kept in a cache keyed by content, so that later calls, clones and other processes reuse them.

    Parameters
    ----------
    estimator : TabPFNClassifier, optional
        An unfitted classifier to adapt. None: one on the bundled checkpoint, which needs no network. As many ensemble
        members as its `n_estimators` adapt; with "auto", four of the usual eight, which then predict alone.
    step_size : float or "auto", default="auto"
        Size of an update, 0 or more; its unit depends on the update rule. "auto" chooses it on held-back
        demonstrations. 0 switches adaptation off.
    n_steps : int, default=32
        Most gradient steps (updates). The guard may keep fewer. 0 switches adaptation off.
    context_size : int, float or None, default=None
        Rows kept as context at predict, class shares kept: None for all (as many as the base takes), an int for rows,
        a float in (0, 1) for a share.
    chunk_size : int, default=512
        Most query rows in one update: the large chunk. It changes the maths, never the peak of memory.
    update_rule : {"muon", "adamw", "momentum", "sgd"}, default="muon"
        How gradients become updates.
    fast_weights : {"in_context", "all", "mlp", "attention", "last_quarter"} or list of str, default="in_context"
        Which parameters adapt. "in_context": the stage that compares rows; the one before it, which embeds each row
        (v3 and later), then runs once per context instead of once per step. A list holds glob patterns on names.
    guard : bool, default=True
        Keep the frozen weights unless the adapted ones win on held-back demonstrations.
    adaptation : {"gradient", "memory", "both"}, default="both"
        "gradient": TTT of TabPFN's own weights. "memory": a fast-weight memory on its row embeddings, written by
        forward passes only. "both": the memory on top of the gradient steps.
        A memory is written with all its rows as one chunk, whatever `chunk_size` is, in at most `n_steps` updates. Of
        a linear and a SwiGLU memory (`update_rule` writes the latter) held-back rows choose one, its strength and a
        gate. `step_size` is the SwiGLU memory's; the linear memory's preconditioned steps need none. With "both",
        `step_size` is the gradient steps' alone.
    backend : {"auto", "torch", "triton"}, default="auto"
        Who runs the updates' leaf operations. "triton" runs or raises.
    cache : None, path or FastWeightCache, default=None
        Where fast weights are kept: in memory, shared by the process; also on disk; or in a cache of your own.
    random_state : int, RandomState, Generator or None, default=None
        Seed of context, splits and steps. None draws one at `fit`. The wrapped estimator has its own.
    verbose : int, default=0
        1 shows a progress bar while adapting.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Sorted labels.
    n_features_in_ : int
        Features seen during `fit`.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Their names; only if X has string column names.
    context_indices_ : ndarray of shape (n_context,)
        Rows of X kept as context, sorted.

    Raises
    ------
    ValueError
        From `fit`, before any weights load: a parameter out of range, infinite values, one class only, a class with
        one row, more classes, features or context rows than the base takes, a damaged checkpoint.

    Notes
    -----
    The recipe is that of Gozeten et al. 2025 (arXiv 2503.11842), the chunked updates with Muon are those of LaCT
    (Zhang et al. 2025, arXiv 2505.23884). `predict` changes nothing on the estimator and may be called from threads.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = TTTTabPFNClassifier(n_steps=2, context_size=50, random_state=0).fit(X, y)
    >>> clf.predict(X[:2]).tolist()
    [0, 0]
    >>> clf.adaptation_report().context_size
    50
    """

    def __init__(
        self,
        estimator: TabPFNClassifier | None = None,
        *,
        step_size: float | str = "auto",
        n_steps: int = 32,
        context_size: int | float | None = None,
        chunk_size: int = 512,
        update_rule: str = "muon",
        fast_weights: str | list[str] = "in_context",
        guard: bool = True,
        adaptation: str = "both",
        backend: str = "auto",
        cache: Any = None,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.estimator = estimator
        self.step_size = step_size
        self.n_steps = n_steps
        self.context_size = context_size
        self.chunk_size = chunk_size
        self.update_rule = update_rule
        self.fast_weights = fast_weights
        self.guard = guard
        self.adaptation = adaptation
        self.backend = backend
        self.cache = cache
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> TTTTabPFNClassifier:
        """Check and store the demonstrations; nothing is trained yet.

        Parameters
        ----------
        X : array-like or frame of shape (n_rows, n_features)
            Numbers, strings, categories, booleans or dates, as TabPFN takes them; missing values are allowed.
        y : array-like of shape (n_rows,)
            Labels.

        Returns
        -------
        TTTTabPFNClassifier
            Itself.
        """
        parameters.check_parameters(self.get_params(deep=False))
        wrapped = self._wrapped()
        declared = adapter.declared_limits(wrapped)
        rows = validation.check_rows(X, estimator=self, least_rows=2)
        labels, classes, codes = validation.check_targets(y, len(rows), estimator=self)
        seed = parameters.resolve_seed(self.random_state)
        settings = self._settings(seed)
        validation.check_class_counts(
            classes,
            codes,
            max_classes=declared.get("MAX_NUMBER_OF_CLASSES"),
            adapts=not settings.is_frozen,
        )
        validation.check_feature_count(rows.shape[1], adapter.max_features(wrapped, declared))
        most_rows = adapter.max_context_rows(wrapped, declared)
        size = parameters.resolve_context_size(self.context_size, len(rows), len(classes), most_rows)
        if self.context_size is None and size < len(rows):
            warnings.warn(
                f"context_size=None keeps {size} of {len(rows)} rows as context, the most the base takes here; "
                "the others are trained on. Set context_size to choose.",
                UserWarning,
                stacklevel=2,
            )
        context = stratified_rows(codes, np.arange(len(rows)), size, seeded(seed, CONTEXT_BRANCH))

        rows, labels = rows.copy(), labels.copy()
        data_print = fingerprint(rows, labels, context)
        fallback = int(seeded(seed, WRAPPED_BRANCH).integers(2**31 - 1))
        wrapped = adapter.with_settled_seed(wrapped, fallback)

        # Everything that can fail lies above: a failed refit leaves the former fit whole.
        validate_data(self, X, skip_check_array=True, reset=True)
        self.classes_ = classes
        self.context_indices_ = context
        self._rows = rows
        self._labels = labels
        self._codes = codes
        self._wrapped_estimator = wrapped
        self._fit_settings = settings
        self._data_print = data_print
        self._fit_token = uuid.uuid4().hex
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict labels; the first call adapts.

        Parameters
        ----------
        X : array-like or frame of shape (n_rows, n_features)
            Rows like those given to `fit`.

        Returns
        -------
        ndarray of shape (n_rows,)
            Labels.
        """
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]

    def predict_proba(self, X: Any) -> NDArray[np.floating[Any]]:
        """Predict class probabilities; the first call adapts.

        Parameters
        ----------
        X : array-like or frame of shape (n_rows, n_features)
            Rows like those given to `fit`.

        Returns
        -------
        ndarray of shape (n_rows, n_classes)
            Classes in the order of ``classes_``.
        """
        check_is_fitted(self, "classes_")
        rows = validation.check_rows(X, estimator=self, least_rows=1)
        validate_data(self, X, skip_check_array=True, reset=False)
        key, predictor = self._keyed_predictor()
        if self._fit_settings.is_frozen:
            return predictor.predict_proba(rows)

        def compute() -> NDArray[np.floating[Any]]:
            positions, inverse = distinct_rows(rows)
            return predictor.predict_proba(take_rows(rows, positions))[inverse]

        session = self._resolved_cache().attached(self._session_key(), "session")
        if session is None or not session.is_searched:
            return compute()
        return session.predictions.of(key, rows, compute)

    def adapt(self) -> TTTTabPFNClassifier:
        """Do now what the first prediction would do.

        Returns
        -------
        TTTTabPFNClassifier
            Itself.
        """
        check_is_fitted(self, "classes_")
        self._predictor()
        return self

    def adaptation_report(self) -> AdaptationReport:
        """Return what the adaptation did; adapts if nothing has yet.

        Returns
        -------
        AdaptationReport
            Losses, step size, acceptance and reason, seconds, bytes, cache hit.
        """
        check_is_fitted(self, "classes_")
        _, entry = self._entry()
        return store.report_of(entry, reader=self._fit_token)

    def _wrapped(self) -> TabPFNClassifier:
        if self.estimator is None:
            return adapter.default_estimator()
        if not isinstance(self.estimator, TabPFNClassifier):
            raise TypeError(
                f"estimator must be None or a tabpfn.TabPFNClassifier, got {type(self.estimator).__name__}."
            )
        adapter.check_estimator_settings(self.estimator)
        return self.estimator

    def _settings(self, seed: int) -> Settings:
        return Settings(
            step_size=None if isinstance(self.step_size, str) else float(self.step_size),
            n_steps=int(self.n_steps),
            chunk_size=int(self.chunk_size),
            update_rule=self.update_rule,
            fast_weights=self.fast_weights if isinstance(self.fast_weights, str) else tuple(self.fast_weights),
            guard=bool(self.guard),
            adaptation=self.adaptation,
            backend=self.backend,
            seed=seed,
        )

    def _resolved_cache(self) -> FastWeightCache:
        return resolve_cache(self.cache)

    def _entry(self) -> tuple[str, CacheEntry]:
        """The cache key and what lies under it, adapting if nothing does."""
        base = adapter.load_base(self._wrapped_estimator)
        key = store.entry_key(base, self._wrapped_estimator, self._fit_settings, self._data_print)
        entry, _ = self._resolved_cache().get_or_compute(key, self._adaptation(base, key))
        return key, entry

    def _adaptation(self, base: adapter.Base, key: str) -> Callable[[], CacheEntry]:
        def compute() -> CacheEntry:
            settings = self._fit_settings
            if settings.is_frozen:
                return store.frozen_entry(settings, len(self.context_indices_), len(self._codes), self._fit_token)
            session = self._session()
            with progress_bar(self.verbose, settings.n_steps) as tell:
                found = session.adapt(settings, tell)
            self._resolved_cache().weigh(self._session_key(), "session", session.nbytes)
            return store.to_entry(found, self._fit_token)

        return compute

    def _session_key(self) -> str:
        return store.session_key(self._wrapped_estimator, self._fit_settings, self._data_print)

    def _session(self) -> Session:
        recipe = self._fit_settings.recipe
        return self._resolved_cache().attachment(
            self._session_key(),
            "session",
            lambda: Session(
                self._wrapped_estimator,
                self._rows,
                self._labels,
                self._codes,
                self.context_indices_,
                take=take_rows,
                seed=self._fit_settings.seed,
                share=recipe.held_back_share,
                most=recipe.max_held_back,
                most_members=recipe.most_members,
            ),
            nbytes=lambda session: session.nbytes,
            most=MOST_SESSIONS,
        )

    def _predictor(self) -> Any:
        """What predicts: fitted on the context rows, with the adapted networks or the frozen ones."""
        return self._keyed_predictor()[1]

    def _keyed_predictor(self) -> tuple[str, Any]:
        key, entry = self._entry()
        key = store.predictor_key(entry, key, self._session_key(), self._fit_settings)
        return key, self._resolved_cache().attachment(key, "predictor", partial(self._build_predictor, entry))

    def _build_predictor(self, entry: CacheEntry) -> TabPFNClassifier | MemoryPredictor:
        rows = self.context_indices_
        session = self._resolved_cache().attached(self._session_key(), "session")
        context = take_rows(self._rows, rows), self._labels[rows]
        return build_predictor(self._wrapped_estimator, self._fit_settings, entry.tensors, *context, session)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if "_fit_settings" in state:
            base = adapter.loaded_base(self._wrapped_estimator)
            if base is not None:
                key = store.entry_key(base, self._wrapped_estimator, self._fit_settings, self._data_print)
                entry = self._resolved_cache().peek(key)
                if entry is not None:
                    state["_packed_fast_weights"] = store.pack(key, entry)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        packed = state.pop("_packed_fast_weights", None)
        super().__setstate__(state)
        if "_fit_token" in state:
            # Another object than the one that was fitted: what that one computed, it finds.
            self._fit_token = uuid.uuid4().hex
        if packed is not None:
            key, entry = store.unpack(packed)
            cache = self._resolved_cache()
            if key not in cache:
                cache.put(key, entry)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        return tags


def take_rows(X: Any, rows: NDArray[np.int64]) -> Any:
    """Rows of a frame or an array."""
    return X.iloc[rows] if hasattr(X, "iloc") else X[rows]
