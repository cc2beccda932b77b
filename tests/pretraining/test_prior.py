"""The prior: shapes, invariants, determinism, and that its tasks can be learned."""

import dataclasses

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier

from tttabpfn.pretraining.config import PriorConfig, load_config
from tttabpfn.pretraining.prior import BatchStream, sample_batch, sample_shape, sample_task
from tttabpfn.pretraining.prior.columns import (
    hide_cells,
    junk,
    mix,
    products_of_pairs,
    sample_causes,
    scale_like_inference,
)
from tttabpfn.pretraining.prior.formulas import rules
from tttabpfn.pretraining.prior.labels import labels_from_score, tidy
from tttabpfn.pretraining.prior.mechanisms import MECHANISMS, apply

FAMILIES = ("function", "graph", "cluster")


def only(family, **settings):
    return PriorConfig(families={name: float(name == family) for name in FAMILIES}, **settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_tasks_have_the_shape_asked_for_and_every_class_in_the_context(family):
    rng = np.random.default_rng(0)
    for n_columns in (1, 2, 7, 64):
        X, y = sample_task(rng, 120, n_columns, 70, only(family), max_classes=10)
        assert X.shape == (120, n_columns)
        assert X.dtype == np.float32
        assert not np.isinf(X).any()
        context = np.unique(y[:70])
        np.testing.assert_array_equal(context, np.arange(len(context)))
        assert len(context) >= 2
        assert set(np.unique(y[70:])) <= {-100, *context}


@pytest.mark.parametrize("name", MECHANISMS)
def test_mechanisms_return_standardised_finite_columns(name):
    rng = np.random.default_rng(1)
    for n_in in (1, 5):
        out = apply(rng, name, sample_causes(rng, 200, n_in), 3)
        assert out.shape == (200, 3)
        np.testing.assert_allclose(out.mean(axis=0), 0, atol=0.05)
        assert np.isfinite(out).all()
        assert (out.std(axis=0) < 1.001).all()


def test_the_same_seed_index_and_progress_give_the_same_batch_and_another_index_does_not():
    config = load_config("cpu")
    one, again, other = (sample_batch(config, index, 0.1) for index in (5, 5, 6))
    np.testing.assert_array_equal(one.X, again.X)
    np.testing.assert_array_equal(one.y, again.y)
    assert one.X.shape != other.X.shape or not np.array_equal(one.X, other.X, equal_nan=True)


def test_shapes_follow_the_curriculum():
    config = load_config("cpu")
    rng = np.random.default_rng(0)
    start = 0.0
    for phase in config.phases:
        for _ in range(50):
            shape = sample_shape(rng, config, (start + phase.until) / 2)
            assert phase.rows[0] <= shape.n_rows <= phase.rows[1]
            assert phase.columns[0] <= shape.n_columns <= phase.columns[1]
            assert shape.max_classes == phase.max_classes
            assert 0 < shape.n_train < shape.n_rows
        start = phase.until


@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_forest_learns_the_tasks(family):
    """In-context learning needs tasks with something to learn: forests must beat the majority class clearly."""
    gains = []
    for seed in range(12):
        rng = np.random.default_rng([3, seed])
        X, y = sample_task(rng, 240, 6, 160, only(family, missing=0.0), max_classes=5)
        queries = np.flatnonzero(y[160:] >= 0) + 160
        forest = RandomForestClassifier(25, random_state=0).fit(X[:160], y[:160])
        majority = np.bincount(y[:160]).argmax()
        gains.append(forest.score(X[queries], y[queries]) - (y[queries] == majority).mean())
    assert np.mean(gains) > 0.08
    assert np.median(gains) > 0.03


def test_junk_columns_do_not_depend_on_the_informative_ones():
    rng = np.random.default_rng(0)
    informative = sample_causes(rng, 4000, 3)
    correlation = np.corrcoef(informative.T, junk(rng, informative, 4).T)[:3, 3:]
    assert np.abs(correlation).max() < 0.08


def test_mixed_columns_hold_the_given_ones_and_are_correlated():
    rng = np.random.default_rng(0)
    given = np.random.default_rng(1).normal(size=(500, 4)).astype(np.float32)
    strongest = []
    for _ in range(10):
        mixed = np.column_stack([mix(rng, given), np.ones(500)])
        found, *_ = np.linalg.lstsq(mixed, given, rcond=None)
        np.testing.assert_allclose(mixed @ found, given, atol=1e-2)
        strongest.append(np.abs(np.corrcoef(mixed[:, :4].T)[np.triu_indices(4, 1)]).max())
    assert max(strongest) > 0.5


def test_every_product_is_that_of_two_standardised_columns():
    rng = np.random.default_rng(0)
    values = 5 + 3 * rng.normal(size=(300, 3)).astype(np.float32)
    scaled = (values - values.mean(axis=0)) / values.std(axis=0)
    pairs = np.stack([scaled[:, i] * scaled[:, j] for i in range(3) for j in range(i, 3)], axis=1)
    products = products_of_pairs(rng, values, 5)
    assert products.shape == (300, 5)
    for column in products.T:
        assert np.abs(pairs - column[:, None]).max(axis=0).min() < 1e-3


def test_products_count_among_the_columns():
    rng = np.random.default_rng(0)
    for n_columns in (4, 5, 9, 40):
        X, _ = sample_task(rng, 60, n_columns, 40, only("function", products=1.0), max_classes=3)
        assert X.shape == (60, n_columns)


def test_rules_depend_on_levels_alone_and_take_few_values():
    rng = np.random.default_rng(0)
    levels = rng.integers(3, size=(400, 4)).astype(np.float32)
    out = rules(rng, levels, 3)
    rows, index = np.unique(levels, axis=0, return_inverse=True)
    for effect in out.T:
        assert 2 <= len(np.unique(effect)) <= 6
        for row in range(len(rows)):
            assert len(np.unique(effect[index.ravel() == row])) == 1


def test_hidden_cells_leave_something_in_every_column():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(40):
        hidden = np.isnan(hide_cells(rng, sample_causes(rng, 100, 5)))
        assert not hidden.all(axis=0).any()
        shares.append(hidden.mean())
    assert 0.005 < np.mean(shares) < 0.5


def test_scaling_uses_the_context_alone():
    for seed in range(12):
        values = sample_causes(np.random.default_rng(9), 100, 3)
        shifted = values.copy()
        shifted[80:] *= 0.5
        ours, theirs = (scale_like_inference(np.random.default_rng(seed), v, 60) for v in (values, shifted))
        np.testing.assert_array_equal(ours[:80], theirs[:80])


def test_score_labels_are_ordered_bins_or_unions_of_them():
    for seed in range(20):
        score = np.linspace(0, 1, 500).astype(np.float32)
        labels = labels_from_score(np.random.default_rng(seed), score, 4)
        runs = 1 + np.count_nonzero(np.diff(labels))
        assert set(labels) <= set(range(4))
        assert runs <= 7


def test_tidy_refuses_a_context_of_one_class_and_ignores_unseen_classes():
    rng = np.random.default_rng(0)
    _, usable = tidy(rng, np.zeros(20, dtype=np.int64), 10)
    assert not usable
    labels, usable = tidy(rng, np.array([0] * 5 + [2] * 5 + [1, 2, 0]), 10)
    assert usable
    assert labels[10] == -100
    assert set(labels[:10]) == {0, 1}


def test_ingredients_occur_as_often_as_asked():
    base = load_config("cpu")
    for missing in (0.0, 1.0):
        config = dataclasses.replace(base, prior=dataclasses.replace(base.prior, missing=missing))
        batch = sample_batch(config, 0, 0.5)
        per_table = np.isnan(batch.X).any(axis=(0, 2)).mean()
        assert per_table == 0 if missing == 0.0 else per_table > 0.5


def test_batches_from_a_worker_are_those_drawn_in_process():
    config = dataclasses.replace(load_config("cpu"), workers=1)
    with BatchStream(config, depth=2) as stream:
        for index in range(3):
            theirs, ours = stream.get(index, 0.0, last=2), sample_batch(config, index, 0.0)
            np.testing.assert_array_equal(theirs.X, ours.X)
            np.testing.assert_array_equal(theirs.y, ours.y)
            assert theirs.n_train == ours.n_train
