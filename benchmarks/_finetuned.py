"""`FinetunedTabPFNClassifier` on the base weights of the run, and its test loss epoch by epoch."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from _estimators import Data, frozen
from _models import score
from tabpfn import TabPFNClassifier
from tabpfn.finetuning import FinetunedTabPFNClassifier
from tabpfn.finetuning.train_util import clone_model_for_evaluation


def finetuned(data: Data, checkpoint: str, n_estimators: int | None, minutes: float, **parameters: Any) -> Any:
    """TabPFN's own fine-tuning with its defaults, less what the comparison fixes.

    Base weights, categorical columns, seed and the ensemble at predict are those of the other models. It fine-tunes
    and validates with two members, its default, or fewer if there are fewer at predict.
    """
    wrapped = frozen(data, checkpoint, n_estimators)
    members = 8 if n_estimators is None else n_estimators
    shared = {
        "model_path": checkpoint,
        "categorical_features_indices": wrapped.categorical_features_indices,
    }
    return RecordingClassifier(
        device="cpu",
        time_limit=round(60 * minutes),
        random_state=data.seed,
        n_estimators_finetune=min(2, members),
        n_estimators_validation=min(2, members),
        n_estimators_final_inference=members,
        extra_classifier_kwargs=shared,
        **parameters,
    )


class RecordingClassifier(FinetunedTabPFNClassifier):
    """Writes down, after every epoch, the seconds of fine-tuning so far and the scores on given test rows.

    The scoring takes the predicting configuration and all training rows; its own seconds do not count, neither here nor
    in `recording_seconds_`, which the caller takes off the seconds of `fit`.
    """

    def record_on(self, X: Any, y: np.ndarray) -> RecordingClassifier:
        """Set the test rows; without any, nothing is recorded."""
        self._rows = X, y
        return self

    def fit(self, X: Any, y: Any, **parameters: Any) -> RecordingClassifier:
        """Fine-tune."""
        self._demonstrations = X, y
        self.curve_: list[dict[str, float]] = []
        self.recording_seconds_ = 0.0
        self._started = time.perf_counter()
        super().fit(X, y, **parameters)
        return self

    def _evaluate_model(self, eval_config: dict[str, Any], *rows: Any) -> Any:
        result = super()._evaluate_model(eval_config, *rows)
        if getattr(self, "_rows", None) is not None:
            start = time.perf_counter()
            seconds = start - self._started - self.recording_seconds_
            config = {**eval_config, "n_estimators": self.n_estimators_final_inference}
            model = clone_model_for_evaluation(self.finetuned_estimator_, config, TabPFNClassifier)
            X, y = self._rows
            scores = score(y, np.asarray(model.fit(*self._demonstrations).predict_proba(X), dtype=float))
            self.curve_.append({"epoch": len(self.curve_), "seconds": seconds, "log_loss": scores["log_loss"]})
            self.recording_seconds_ += time.perf_counter() - start
        return result


# scikit-learn reads parameters from the signature of the class itself.
RecordingClassifier.__init__ = FinetunedTabPFNClassifier.__init__  # type: ignore[method-assign]
