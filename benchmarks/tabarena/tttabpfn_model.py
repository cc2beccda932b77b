"""`TTTTabPFNClassifier` as a model of AutoGluon, which TabArena runs. Needs ``pip install autogluon.tabular``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from autogluon.core.models import AbstractModel

sys.path.insert(0, str(Path(__file__).resolve().parent))

from tttabpfn_fitting import fit_adapted, threads

BYTES_PER_CELL, BASE_BYTES, CONTEXT_ROWS = 24_000, 1_500_000_000, 1000
"""Seen on the bundled base: the peak of a step grows with the cells of the context; the rest is torch and the base."""


class TTTabPFNModel(AbstractModel):
    """TabPFN that trains itself on the rows it is given, inside `fit`.

    Hyperparameters are those of `TTTTabPFNClassifier`. Rows and categories go in as they are; validation rows are only
    judged on; the time limit ends the adaptation; a row alone is predicted as in a batch.
    """

    ag_key = "TTTABPFN"
    ag_name = "TTTabPFN"
    ag_priority = 60
    seed_name = "random_state"
    _supported_problem_types: ClassVar = ["binary", "multiclass"]
    _default_auxiliary_params_extra: ClassVar = {"max_classes": 10, "max_features": 2000}
    _default_ag_args_ensemble_extra: ClassVar = {"fold_fitting_strategy": "sequential_local", "refit_folds": True}
    default_resources_physical_cores_only = True
    default_num_gpus = 0

    def _fit(
        self,
        X: pd.DataFrame,
        y: pd.Series,
        X_val: pd.DataFrame | None = None,
        y_val: pd.Series | None = None,
        time_limit: float | None = None,
        num_cpus: int | str = 1,
        num_gpus: float = 0,
        **kwargs: Any,
    ) -> None:
        self._n_threads = num_cpus if isinstance(num_cpus, int) else None
        X = self.preprocess(X, y=y, is_train=True)
        self.model = fit_adapted(
            X,
            y.to_numpy(),
            None if X_val is None else self.preprocess(X_val),
            None if y_val is None else y_val.to_numpy(),
            parameters=self._get_model_params(),
            time_limit=time_limit,
            n_threads=self._n_threads,
            device="cuda" if num_gpus else "cpu",
        )

    def _predict_proba(self, X: pd.DataFrame, **kwargs: Any) -> np.ndarray:
        with threads(self._n_threads):
            probabilities = self.model.predict_proba(self.preprocess(X, **kwargs))
        return self._convert_proba_to_unified_form(probabilities)

    def _estimate_memory_usage(self, X: pd.DataFrame, **kwargs: Any) -> int:
        return self._estimate_memory_usage_static(X=X, **kwargs)

    @classmethod
    def _estimate_memory_usage_static(cls, *, X: pd.DataFrame, **kwargs: Any) -> int:
        return BASE_BYTES + BYTES_PER_CELL * min(len(X), CONTEXT_ROWS) * X.shape[1] // 8

    @classmethod
    def _class_tags(cls) -> dict[str, bool]:
        return {"can_estimate_memory_usage_static": True}

    def _more_tags(self) -> dict[str, bool]:
        # Nothing is learnt from validation rows, so a fit on all rows needs none.
        return {"can_refit_full": True}
