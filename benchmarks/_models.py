"""Classifiers with their defaults on any table, and the scores of what they predict."""

from __future__ import annotations

from typing import Any

import numpy as np
from _common import Table
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler


def calibration_error(y: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error of the top label, in equal-width bins of confidence."""
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == y
    bucket = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(correct[bucket == b].mean() - confidence[bucket == b].mean()) * (bucket == b).mean()
        for b in range(bins)
        if (bucket == b).any()
    ]
    return float(sum(gaps))


def score(y: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """ROC AUC (one-vs-one), accuracy, log loss and calibration error of predicted probabilities."""
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
    labels = np.arange(probabilities.shape[1])
    if len(labels) == 2:
        auc = roc_auc_score(y, probabilities[:, 1])
    else:
        auc = roc_auc_score(y, probabilities, multi_class="ovo", labels=labels)
    return {
        "roc_auc_ovo": float(auc),
        "accuracy": float(accuracy_score(y, probabilities.argmax(axis=1))),
        "log_loss": float(log_loss(y, np.clip(probabilities, 1e-9, None), labels=labels)),
        "calibration_error": calibration_error(y, probabilities),
    }


def make(name: str, table: Table, seed: int, checkpoint: str) -> Any:
    """Build a classifier with its defaults; strings are coded, and cells imputed where a model cannot take them."""
    categorical = [c for c in table.X.columns if c in set(table.info["categorical"]) or table.X[c].dtype == object]
    numeric = [c for c in table.X.columns if c not in categorical]
    if name == "tttabpfn_base":
        from tabpfn import TabPFNClassifier

        indices = [table.X.columns.get_loc(c) for c in categorical]
        return TabPFNClassifier(
            model_path=checkpoint,
            device="cpu",
            categorical_features_indices=indices or None,
            random_state=seed,
            ignore_pretraining_limits=True,
        )
    if name == "logistic_regression":
        columns = ColumnTransformer(
            [
                ("numeric", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), numeric),
                ("categorical", OneHotEncoder(handle_unknown="ignore"), categorical),
            ]
        )
        return make_pipeline(columns, LogisticRegression(max_iter=1000))
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    if name == "random_forest":
        columns = ColumnTransformer(
            [("numeric", SimpleImputer(strategy="median"), numeric), ("categorical", codes, categorical)]
        )
        return make_pipeline(columns, RandomForestClassifier(random_state=seed, n_jobs=1))
    columns = ColumnTransformer([("numeric", "passthrough", numeric), ("categorical", codes, categorical)])
    if name == "lightgbm":
        from lightgbm import LGBMClassifier

        return make_pipeline(columns, LGBMClassifier(random_state=seed, verbose=-1, n_jobs=1))
    from xgboost import XGBClassifier

    return make_pipeline(columns, XGBClassifier(random_state=seed, n_jobs=1))
