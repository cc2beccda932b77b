"""`TTTTabPFNClassifier`: parameters, checks, and the flow from fit to predict; no gradients here."""

from __future__ import annotations

import uuid
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from tabpfn import TabPFNClassifier

from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.adaptation import Settings
from tttabpfn.adaptation.episodes import seeded, stratified_rows
from tttabpfn.cache.fingerprint import fingerprint
from tttabpfn.cache.shared import check_cache, serving_cache
from tttabpfn.inputs import data, parameters
from tttabpfn.inputs.columns import Columns
from tttabpfn.inputs.weights import check_sample_weight, weights_of_rows
from tttabpfn.prediction.cost import Cost
from tttabpfn.prediction.lookup import Fitted, Lookup
from tttabpfn.prediction.pickling import PicklingMixin
from tttabpfn.prediction.streaming.estimator import StreamingMixin
from tttabpfn.prediction.transformer import EmbeddingMixin
from tttabpfn.report import AdaptationReport

CONTEXT_BRANCH, WRAPPED_BRANCH = 0, 20


class TTTTabPFNClassifier(
    EmbeddingMixin,
    StreamingMixin,
    PicklingMixin,
    ClassifierMixin,
    BaseEstimator,
):
    """TabPFN that trains itself at test time on the demonstrations it is given.

    `fit` checks and stores the demonstrations. The first prediction adapts to them (test-time training). A memory is
    written: small models of what TabPFN and the table's columns say of each row, mixed with TabPFN's own prediction.
    Then a few gradient steps follow: demonstrations are split into a context and queries, the queries' loss is
    minimised over a chosen part of TabPFN's own weights, and the adapted network joins the mixture if that pays. These
    fast weights are kept in a cache keyed by content, so that later calls, clones and other processes reuse them.

    Parameters
    ----------
    estimator : TabPFNClassifier, optional
        An unfitted classifier to adapt. None: one on the bundled checkpoint, which needs no network. `n_estimators`
        ensemble members adapt; with "auto" four of TabPFN's eight adapt, and they alone predict.
    step_size : float or "auto", default="auto"
        Size of an update, 0 or more; its unit depends on the update rule. "auto" chooses it on held-back
        demonstrations. 0 switches adaptation off.
    n_steps : int, default=32
        Updates at most. The guard may keep fewer. 0 switches adaptation off.
    context_size : int, float or None, default=None
        Rows kept as context at predict, class shares kept. None: all rows while that is cheap, else 1,000 of them,
        or 500 in wide tables; an int: rows; a float in (0, 1): a share, but no fewer than 64 rows and 8 a class.
    chunk_size : int, default=512
        Query rows in one update at most: the large chunk. It changes the maths, never the peak of memory.
    update_rule : {"muon", "adamw", "momentum", "sgd"}, default="muon"
        How gradients become updates.
    fast_weights : {"in_context", "all", "mlp", "attention", "last_quarter"} or list of str, default="in_context"
        Which parameters adapt. "in_context": the stage that compares rows; the one before it, which embeds each row
        (v3 and later), then runs once per context instead of once per step. A list holds glob patterns on names.
    guard : bool, default=True
        Keep the frozen model unless what was adapted wins on held-back demonstrations.
    adaptation : {"gradient", "memory", "both"}, default="both"
        "gradient": TTT of TabPFN's own weights. "memory": a mixture of TabPFN's prediction and of parts written on its
        row embeddings and on the table's own columns: linear and SwiGLU weights (`update_rule` and `step_size` are
        the latter's) and trees, each with all rows as one chunk, in `n_steps` updates at most (trees: three times as
        many). Their shares are found on rows that each part has not seen. "both": the memory, then gradient steps,
        whose network joins the mixture if that adds to it; `step_size` is theirs alone.
    time_limit : float or None, default=None
        Seconds after which the adaptation stops and keeps the best so far. What it keeps then depends on the clock.
    class_weight : None, "balanced" or dict, default=None
        Weights of rows by label, multiplied with `sample_weight`. "balanced": the same sum for every class.
    backend : {"auto", "torch", "triton"}, default="auto"
        Who runs the updates' leaf operations. "triton" runs or raises.
    cache : None, path or FastWeightCache, default=None
        Where fast weights are kept: in memory, shared by the process; also on disk; or in a cache of your own. Trust a
        folder like a checkpoint: who writes there decides what is predicted.
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
        From `fit`, before any weights load: a parameter out of range, infinite values, a column of mixed kinds, one
        class only, no class with two rows, bad weights, more features or context rows than the base takes, a damaged
        checkpoint.
    MemoryError
        Where the adaptation starts: it would take more than the machine has, by `estimate_cost`.

    Notes
    -----
    Any number of classes can be told apart: above those that the base was trained on (10) they share labels, by another
    code for every ensemble member (`tabpfn_adapter.many_classes`).

    The recipe is that of Gozeten et al. 2025 (arXiv 2503.11842), the chunked updates with Muon are those of LaCT
    (Zhang et al. 2025, arXiv 2505.23884). `predict` changes nothing on the estimator and may be called from threads.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from tttabpfn import TTTTabPFNClassifier
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
        time_limit: float | None = None,
        class_weight: Any = None,
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
        self.time_limit = time_limit
        self.class_weight = class_weight
        self.backend = backend
        self.cache = cache
        self.random_state = random_state
        self.verbose = verbose

    def set_params(self, **params: Any) -> TTTTabPFNClassifier:
        """Set parameters; those of the wrapped estimator are named ``estimator__<parameter>``.

        Parameters
        ----------
        **params : dict
            With ``estimator=None`` a nested one makes the default estimator first, and sets it there.

        Returns
        -------
        TTTTabPFNClassifier
            Itself.
        """
        nested = any(name.startswith("estimator__") for name in params)
        if nested and params.get("estimator", self.estimator) is None:
            params = {**params, "estimator": adapter.default_estimator()}
        return super().set_params(**params)

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> TTTTabPFNClassifier:
        """Check and store the demonstrations; nothing is trained yet.

        Parameters
        ----------
        X : array-like or frame of shape (n_rows, n_features)
            Numbers, strings, categories, booleans or dates, as TabPFN takes them; missing values are allowed.
        y : array-like of shape (n_rows,)
            Labels.
        sample_weight : array-like of shape (n_rows,), optional
            0 or more. A row of weight 2 counts as two rows in losses, in the memory, in the guard's decision and in
            the draw of the context. It is one row where rows are counted: inside the context, for TabPFN knows no
            weights, in scales and ranks of columns, in samples and in the least size of a tree's leaf. Rows of weight
            0 count as absent. Weights below 1 in the mean are scaled to a mean of 1.

        Returns
        -------
        TTTTabPFNClassifier
            Itself.
        """
        fitted, classes, present = self._prepared(X, y, sample_weight)
        if self.context_size is None and len(fitted.context) < len(fitted.codes):
            kept = fitted.note.partition("; ")[0]
            warnings.warn(
                f"{kept}; memory and gradient steps read the others. Set context_size to choose.",
                UserWarning,
                stacklevel=2,
            )
        # Everything that can fail lies above: a failed refit leaves the former fit whole.
        validate_data(self, X, skip_check_array=True, reset=True)
        self.classes_ = classes
        self.context_indices_ = present[fitted.context]
        self._fitted = fitted
        self._stream = None
        return self

    def estimate_cost(self, X: Any, y: Any) -> Cost:
        """Estimate what `fit` and `adapt` would take, before anything of it runs.

        Loads the base, but neither embeds nor adapts, and changes nothing on the estimator.

        Parameters
        ----------
        X : array-like or frame of shape (n_rows, n_features)
            As `fit` takes it.
        y : array-like of shape (n_rows,)
            Labels.

        Returns
        -------
        Cost
            Seconds, bytes at the peak, and what they are made of. As if nothing were in the cache yet.

        Raises
        ------
        ValueError
            Where `fit` would raise one.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> cost = TTTTabPFNClassifier(random_state=0).estimate_cost(*load_iris(return_X_y=True))
        >>> 0 < cost.seconds < 600, sum(cost.bytes_by_part.values()) == cost.peak_bytes
        (True, True)
        """
        fitted, _, _ = self._prepared(X, y, None)
        return Lookup(fitted, serving_cache(self.cache)).cost()

    def _prepared(self, X: Any, y: Any, sample_weight: Any) -> tuple[Fitted, NDArray[Any], NDArray[np.int64]]:
        """What a fit stores, the classes, and the rows that are present; all checks, nothing of it kept."""
        parameters.check_parameters(self.get_params(deep=False), adapter.NAMED_SELECTIONS)
        check_cache(self.cache)
        wrapped = self._wrapped()
        declared = adapter.declared_limits(wrapped)
        rows = data.check_rows(X, estimator=self, min_rows=2)
        columns = Columns.of(rows)
        rows = columns.read(rows)
        if columns.has_dates:
            wrapped = adapter.with_dates(wrapped)
        labels, classes, codes = data.check_targets(y, len(rows), estimator=self)
        given = check_sample_weight(sample_weight, len(rows))
        present = np.arange(len(rows)) if given is None else np.flatnonzero(given)
        if given is not None and len(present) < len(rows):
            rows, given = data.take_rows(rows, present), given[present]
            labels, classes, codes = data.check_targets(labels[present], len(rows), estimator=self)
        weights = weights_of_rows(given, self.class_weight, classes, codes)
        seed = parameters.resolve_seed(self.random_state)
        settings = self._settings(seed)
        data.check_class_counts(classes, codes, adapts=not settings.is_frozen)
        data.check_feature_count(rows.shape[1], adapter.max_features(wrapped, declared))
        max_rows = adapter.max_context_rows(wrapped, declared)
        size = parameters.resolve_context_size(self.context_size, len(rows), rows.shape[1], len(classes), max_rows)
        everything, rng = np.arange(len(rows)), seeded(seed, CONTEXT_BRANCH)
        context = stratified_rows(codes, everything, size.rows, rng, weights=weights)

        rows, labels = rows.copy(), labels.copy()
        fallback = int(seeded(seed, WRAPPED_BRANCH).integers(2**31 - 1))
        fitted = Fitted(
            adapter.with_settled_seed(wrapped, fallback),
            settings,
            rows,
            labels,
            codes,
            context,
            data_print=fingerprint(rows, labels, context, *([] if weights is None else [weights])),
            token=uuid.uuid4().hex,
            note="; ".join(filter(None, [size.note, adapter.code_note(len(classes), declared)])),
            weights=weights,
            columns=columns,
        )
        return fitted, classes, present

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
        rows = data.check_rows(X, estimator=self, min_rows=1)
        validate_data(self, X, skip_check_array=True, reset=False)
        rows = self._fitted.columns.read(rows)
        return self._lookup().predict_proba(rows)

    def adapt(self) -> TTTTabPFNClassifier:
        """Do now what the first prediction would do.

        Returns
        -------
        TTTTabPFNClassifier
            Itself.
        """
        check_is_fitted(self, "classes_")
        self._lookup().predictor()
        return self

    def adaptation_report(self) -> AdaptationReport:
        """Return what the adaptation did; adapts if nothing has yet.

        Returns
        -------
        AdaptationReport
            Losses, step size, acceptance and reason, seconds, bytes, cache hit.
        """
        check_is_fitted(self, "classes_")
        return self._lookup().report()

    def _lookup(self) -> Lookup:
        if self._stream is not None:
            return self._stream_lookup()
        return Lookup(self._fitted, serving_cache(self.cache), self.verbose)

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
            time_limit=None if self.time_limit is None else float(self.time_limit),
            backend=self.backend,
            seed=seed,
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        # Embeddings are in float32, whatever the rows are.
        tags.transformer_tags.preserves_dtype = []
        return tags
