"""Run AutoGluon's own check of a model, then three small tables that need no download.

``python benchmarks/tabarena/smoke.py`` in an environment with ``pip install autogluon.tabular`` beside this library.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from sklearn import datasets
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

sys.path.insert(0, str(Path(__file__).resolve().parent))

from tttabpfn_model import TTTabPFNModel

TABLES = ("breast_cancer", "wine", "iris")


def table(name: str) -> pd.DataFrame:
    """A scikit-learn table with a column of categories and its target as text."""
    bunch = getattr(datasets, f"load_{name}")(as_frame=True)
    first = bunch.data.columns[0]
    grouped = pd.qcut(bunch.data[first], 4, labels=["low", "middle", "high", "top"])
    return bunch.data.assign(**{first: grouped}, answer=bunch.target_names[bunch.target])


def run(name: str, time_limit: float) -> dict[str, object]:
    """Fit on half of a table, score the rest, and compare a row alone with the same row in the batch."""
    from autogluon.tabular import TabularPredictor

    train, test = train_test_split(table(name), test_size=0.5, random_state=0, stratify=table(name)["answer"])
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        predictor = TabularPredictor("answer", path=folder, eval_metric="log_loss", verbosity=0)
        predictor.fit(train, hyperparameters={TTTabPFNModel: {}}, time_limit=time_limit, fit_weighted_ensemble=False)
        seconds = time.perf_counter() - started
        many = predictor.predict_proba(test)
        one = predictor.predict_proba(test.iloc[:1])
    return {
        "table": name,
        "log loss": round(log_loss(test["answer"], many[sorted(many.columns)]), 4),
        "seconds": round(seconds, 1),
        "one row differs by": f"{(one - many.iloc[:1]).abs().to_numpy().max():.1e}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time-limit", type=float, default=120.0, help="seconds a table (default: %(default)s)")
    options = parser.parse_args()
    from autogluon.tabular.testing import FitHelper

    FitHelper.verify_model(TTTabPFNModel, model_hyperparameters={"n_steps": 4})
    print("AutoGluon's check of a model: passed")
    print(pd.DataFrame([run(name, options.time_limit) for name in TABLES]).to_string(index=False))


if __name__ == "__main__":
    main()
