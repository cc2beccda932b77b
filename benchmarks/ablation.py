"""Which choices of the adaptation matter: variations around the defaults, scored on test rows along the path.

A variation's row holds the test log loss after some numbers of steps, without guard, at a given step size: the choice
itself, not the decision made on held-back rows. The groups "pipeline" and "adaptation" run the whole adaptation
instead. A configuration is a variation and a number of steps; the best one has the lowest mean log loss over tables,
splits and context shares among those that are nowhere worse than frozen by more than --worst. Cross-validation over
tables: each table's configuration is the one chosen on the others.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import _ablation
import numpy as np
import pandas as pd
from _common import load_tables, parser
from _estimators import Data, adaptation_row, evaluate, frozen, split, ttt, ttt_settings
from _models import score
from _running import Run, add_options, base_checkpoint, digest, file_digest, run_settings, use_threads
from _variants import BUILDERS, Variant, variants

from tttabpfn.adaptation import Recipe, Session
from tttabpfn.adaptation.episodes import Split, query_folds, seeded

MARKS = (1, 3, 6, 10, 15, 20, 30, 40, 60, 80, 120)


class Bench:
    """One split and context share of a table, on which variants are tried one after the other."""

    def __init__(self, data: Data, share: float, checkpoint: str, n_estimators: int | None) -> None:
        self.data, self.checkpoint, self.n_estimators = data, checkpoint, n_estimators
        self.estimator = frozen(data, checkpoint, n_estimators)
        size = None if share == 1.0 else max(round(share * len(data.y_train)), data.n_classes)
        probe = ttt(data, checkpoint, n_estimators, 0, context_size=size)
        self.context = probe.fit(data.X_train, data.y_train).context_indices_

    @cached_property
    def test_session(self) -> Session:
        """A session in whose place of held-back rows stand the test rows: its scores are test scores."""
        data = self.data
        X = pd.concat([data.X_train, data.X_test], ignore_index=True)
        y = np.concatenate([data.y_train, data.y_test])
        train, test = np.arange(len(data.y_train)), np.arange(len(data.y_train), len(y))
        folds = query_folds(y, train, 3, seeded(data.seed)) if len(self.context) == len(train) else ()
        parts = Split(self.context, train, test, self.context, folds)
        return Session(self.estimator, X, y, y, self.context, seed=data.seed, recipe=Recipe(), split=parts)

    def along(self, variant: Variant) -> dict[str, Any]:
        """Test loss along one path."""
        session, settings = self.test_session, variant.resolved(self.data.seed)
        start = time.perf_counter()
        path = session.path(settings)
        point, curve = path.start(), {}
        for mark in [mark for mark in MARKS if mark < settings.n_steps] + [settings.n_steps]:
            point = path.walk(point, mark, settings.step_size)
            path.fast.load(point.weights)
            curve[mark] = float(session.scores.losses(path.fast.models).mean())
            if not np.isfinite(curve[mark]):
                break
        seconds = time.perf_counter() - start
        loss = float(session.scores.frozen_losses(session.scores.everyone).mean())
        own = {"step_size": settings.step_size, "steps": list(curve), "losses": list(curve.values())}
        return {"frozen": loss, "log_loss": curve[max(curve)], "seconds": seconds, **own}

    def whole(self, variant: Variant) -> dict[str, Any]:
        """Test loss of what predicts after a whole adaptation."""
        data = self.data
        size = None if len(self.context) == len(data.y_train) else len(self.context)
        model = ttt(data, self.checkpoint, self.n_estimators, context_size=size)
        model.fit(data.X_train, data.y_train)
        # The recipe is no parameter of the classifier: what `fit` stored is made anew with it.
        model._fitted = replace(model._fitted, settings=variant.resolved(data.seed))
        row = adaptation_row(model.adapt())
        losses = score(data.y_test, np.asarray(model.predict_proba(data.X_test), dtype=float))
        steps = {"steps": [row["n_steps"]], "losses": [losses["log_loss"]]}
        return {"frozen": self.frozen_loss, **losses, **row, **steps, "seconds": row["adaptation_seconds"]}

    @cached_property
    def frozen_loss(self) -> float:
        """Test loss of the frozen model with this context."""
        return evaluate(self.estimator, self.data, self.context)["log_loss"]


def main() -> None:
    """Measure, choose, draw."""
    arguments = parser(__doc__, plot=True)
    add_options(arguments, max_rows=1000, seeds=1)
    arguments.add_argument("--groups", nargs="*", choices=BUILDERS, default=list(BUILDERS))
    arguments.add_argument("--variants", metavar="FILE.json", help="further ones: {label: {settings, recipe, factor}}")
    arguments.add_argument("--shares", nargs="*", type=float, default=[0.2, 1.0], help="context, as share of the rows")
    arguments.add_argument("--test-rows", type=int, default=300, help="most test rows")
    arguments.add_argument("--worst", type=float, default=0.05, help="most log loss above frozen, anywhere")
    options = arguments.parse_args()
    use_threads(options)
    warnings.simplefilter("ignore")
    checkpoint = base_checkpoint(options)
    tables = {table.name: table for table in load_tables(options.data, options.tables)}
    tried = {variant.label: variant for variant in variants(options.groups, options.variants, options.n_steps)}
    common = (file_digest(checkpoint), options.n_estimators, options.max_rows, options.test_rows)
    jobs = [
        {
            "table": name,
            "seed": seed,
            "share": share,
            "variant": label,
            "depends": digest(common, repr(variant.resolved(0))),
        }
        for seed in range(options.seeds)
        for name in tables
        for share in options.shares
        for label, variant in tried.items()
    ]

    @lru_cache(maxsize=1)
    def bench(name: str, seed: int, share: float) -> Bench:
        data = split(tables[name], seed, max_rows=options.max_rows, test_rows=options.test_rows)
        return Bench(data, share, checkpoint, options.n_estimators)

    def measure(job: dict[str, Any]) -> dict[str, Any]:
        variant, here = tried[job["variant"]], bench(job["table"], job["seed"], job["share"])
        found = here.whole(variant) if variant.whole else here.along(variant)
        return {"group": variant.group, "whole": variant.whole, **found}

    run = Run(options, "ablation", {**run_settings(options, checkpoint), "ttt": ttt_settings()}, jobs)
    run.measure(measure)
    result = _ablation.summarise(run.rows, options.worst)
    run.save(summary=result)
    _ablation.tell(result)
    if options.plot and run.rows:
        _ablation.draw(result, options.plot)


if __name__ == "__main__":
    main()
