"""A row of weight 2 counts as two rows: in every part of a memory, in shares, mixtures, verdicts and gradient steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tttabpfn import FastWeightCache
from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.adaptation.episodes import Split
from tttabpfn.adaptation.fast_model import FastModel
from tttabpfn.adaptation.guard import judge, mean_loss, weigh
from tttabpfn.adaptation.path import GradientPath
from tttabpfn.memory.level_shares import LevelShares
from tttabpfn.memory.mixture import cross_fitted_mixture, mixture_shares
from tttabpfn.memory.parts import write_family
from tttabpfn.memory.trees import TreeRecipe

from ..helpers import gradient_settings
from .test_parts import FAMILIES, Table, settings

pytestmark = pytest.mark.filterwarnings("ignore:Importing from 'tabpfn:DeprecationWarning")

WEIGHTS = np.arange(90) % 3 + 1.0
REPEATED = np.repeat(np.arange(90), WEIGHTS.astype(int))
FIRST = np.unique(REPEATED, return_index=True)[1]
LOGITS_ATOL = 1e-4
"""Of logits of size 1 to 10 in float32: sums over repeated rows run in another order than weighted ones. Seen: 1e-5."""


# Seen to fail, each kind: with the weights left out of its loss.
@pytest.mark.parametrize("family", FAMILIES, ids=lambda one: f"{one.kind}-{one.block}-{one.start}")
def test_a_part_written_with_weights_is_that_written_on_repeated_rows(family):
    table = Table(90)
    # How many rows a leaf holds at least counts rows, not weights.
    trees = TreeRecipe(row_share=1.0, column_share=1.0, rows_per_leaf=1, depth=2)
    made = settings()
    made = replace(made, recipe=replace(made.recipe, trees=trees))
    given = (table.inputs, table.scale, table.labels, table.folds, table.log_shares, made)
    weighted, repeated = write_family(family, *given, WEIGHTS), table.write(family, made, REPEATED)
    plain = write_family(family, *given)
    assert len(weighted) == len(repeated) == len(family.values)
    for ours, theirs, unweighted in zip(weighted, repeated, plain, strict=True):
        torch.testing.assert_close(ours.logits, theirs.logits[:, FIRST], rtol=0, atol=LOGITS_ATOL)
        assert (ours.logits - unweighted.logits).abs().max() > 100 * LOGITS_ATOL
        for rows in (np.arange(90),):
            read = [one.part.logits(table.rows(rows), table.scale, table.log_shares, "torch") for one in (ours, theirs)]
            torch.testing.assert_close(*read, rtol=0, atol=LOGITS_ATOL)


def test_level_shares_mixtures_and_verdicts():
    rng = np.random.default_rng(0)
    codes, labels, folds = rng.integers(0, 9, 90).astype(float), rng.integers(0, 3, 90), np.arange(90) % 4
    shares = LevelShares.of(codes, labels, 3, WEIGHTS)
    np.testing.assert_allclose(
        shares.shares, LevelShares.of(codes[REPEATED], labels[REPEATED], 3).shares, rtol=0, atol=1e-14
    )
    np.testing.assert_allclose(
        shares.cross_fitted(codes, labels, folds, WEIGHTS)[REPEATED],
        shares.cross_fitted(codes[REPEATED], labels[REPEATED], folds[REPEATED]),
        rtol=0,
        atol=1e-14,
    )
    parts = rng.dirichlet(np.ones(3), size=(4, 90))
    prior = np.array([0.4, 0.2, 0.2, 0.2])
    chosen = parts[:, np.arange(90), labels]
    # The search for shares ends where they move by less than 1e-6.
    np.testing.assert_allclose(
        mixture_shares(chosen, prior, 2.0, WEIGHTS), mixture_shares(chosen[:, REPEATED], prior, 2.0), rtol=0, atol=1e-9
    )
    assert np.abs(mixture_shares(chosen, prior, 2.0, WEIGHTS) - mixture_shares(chosen, prior, 2.0)).max() > 1e-3
    np.testing.assert_allclose(
        cross_fitted_mixture(parts, labels, folds, prior, 2.0, WEIGHTS)[REPEATED],
        cross_fitted_mixture(parts[:, REPEATED], labels[REPEATED], folds[REPEATED], prior, 2.0),
        rtol=0,
        atol=1e-9,
    )
    before, after = rng.normal(1.0, 0.3, (2, 90))
    assert mean_loss(before, WEIGHTS) == pytest.approx(before[REPEATED].mean(), rel=1e-12)
    ours, theirs = (
        judge(before, after, evidence=1.0, weights=WEIGHTS),
        judge(before[REPEATED], after[REPEATED], evidence=1),
    )
    assert (ours.gain, ours.standard_error) == pytest.approx((theirs.gain, theirs.standard_error), rel=1e-12)
    assert ours.figures.rpartition(" on ")[0] == theirs.figures.rpartition(" on ")[0]
    assert weigh(before, after, min_trust=0.2, weights=WEIGHTS)[1] == pytest.approx(
        weigh(before[REPEATED], after[REPEATED], min_trust=0.2)[1], rel=1e-12
    )
    assert judge(before[:1], after[:1], evidence=0.0, weights=np.array([5.0])).standard_error == np.inf


# Seen to fail: with a slice's share of the loss taken by its rows instead of their weights.
@pytest.mark.parametrize("micro_batch", [512, 7])
def test_a_gradient_step_takes_the_gradient_of_repeated_queries(tiny_tabpfn, table, micro_batch):
    X, y, _, _ = table
    estimator = tiny_tabpfn()
    base = adapter.load_base(estimator)
    inner = adapter.fit_tabpfn(estimator, base, X[:30], y[:30], fit_mode="fit_preprocessors")
    weights = np.arange(80) % 3 + 1.0
    found = {}
    for way in ("weighted", "repeated", "plain"):
        demonstrations = adapter.prepare_demonstrations(inner, base, X, y, weights if way == "weighted" else None)
        queries = np.arange(30, 80)
        if way == "repeated":
            queries = np.repeat(queries, weights[queries].astype(int))
        everything, none = np.arange(80), np.empty(0, dtype=int)
        split = Split(np.arange(30), everything, none, np.arange(30))
        fast = FastModel(base.models, "in_context")
        path = GradientPath(fast, demonstrations, split, gradient_settings(chunk_size=micro_batch))
        found[way] = path._gradient(0, fast.initial, np.arange(30), queries)[:2]
    gradients, loss = zip(*found.values(), strict=True)
    assert loss[0] == pytest.approx(loss[1], abs=1e-6)
    assert abs(loss[0] - loss[2]) > 1e-4
    for name, ours in gradients[0].items():
        torch.testing.assert_close(ours, gradients[1][name], rtol=1e-3, atol=1e-6)


def test_a_heavy_class_is_predicted_more_often_and_its_rows_better(classifier, table):
    X, y, X_new, y_new = table
    made = {"adaptation": "memory", "guard": True, "n_steps": 16, "context_size": None}
    plain, heavy = (
        classifier(cache=FastWeightCache(), class_weight=given, **made).fit(X, y) for given in (None, {0: 20.0})
    )
    own = y_new == 0
    gain = (heavy.predict_proba(X_new) - plain.predict_proba(X_new))[:, 0]
    assert gain.mean() > 0.1
    assert gain[own].mean() > 0.05
    report = heavy.adaptation_report()
    assert report.loss_adapted < report.loss_frozen
    assert np.isfinite(report.gain_standard_error)
