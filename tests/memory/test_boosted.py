"""Boosted trees kept as arrays: what scikit-learn's own model says, classes without rows, weights, seeds, passes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.ensemble import HistGradientBoostingClassifier

from tttabpfn.memory import boosted as module
from tttabpfn.memory.boosted import BoostedRecipe, write_boosted


def table(n_classes, n_rows=500, seed=0):
    rng = np.random.default_rng(seed)
    cells = np.round(rng.normal(size=(n_rows, 5)), 1).astype(np.float32)
    return cells, cells[:, :n_classes].argmax(axis=1)


def own_model(cells, labels, updates, recipe, seed, weights=None):
    return HistGradientBoostingClassifier(
        learning_rate=recipe.step_size,
        max_iter=updates,
        max_leaf_nodes=recipe.leaves,
        max_depth=recipe.depth,
        min_samples_leaf=recipe.rows_per_leaf,
        max_features=recipe.column_share,
        l2_regularization=recipe.penalty,
        early_stopping=False,
        random_state=seed,
    ).fit(cells, labels, weights)


# Seen to fail: with the whole value, not half of it, for each of two classes; without the constant.
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_probabilities_are_those_of_scikit_learn(n_classes, weighted):
    cells, labels = table(n_classes)
    weights = np.linspace(0.5, 3.0, len(labels)) if weighted else None
    recipe, log_shares = BoostedRecipe(), np.log(np.arange(1.0, n_classes + 1))
    boosted = write_boosted(cells, labels, log_shares, 12, recipe, 3, weights)
    new, _ = table(n_classes, seed=1)
    for updates in (5, 12):
        expected = own_model(cells, labels, updates, recipe, 3, weights).predict_proba(new)
        own = softmax(boosted.first(updates).read(new) + log_shares, axis=1)
        np.testing.assert_allclose(own, expected, atol=1e-5)


def test_a_class_without_rows_keeps_a_small_share():
    cells, labels = table(3)
    kept = labels != 1
    log_shares = np.log([0.49, 0.02, 0.49])
    boosted = write_boosted(cells[kept], labels[kept], log_shares, 10, BoostedRecipe(), 0)
    read = boosted.first(10).read(cells)
    np.testing.assert_allclose(read[:, 1], 0.0, atol=1e-6)
    shares = softmax(read + log_shares, axis=1)
    assert 0.0 < shares[:, 1].max() < 0.1
    assert (shares[kept].argmax(axis=1) == labels[kept]).mean() > 0.9


def test_one_class_alone_moves_nothing():
    cells, _ = table(2)
    boosted = write_boosted(cells, np.zeros(len(cells), dtype=np.int64), np.log([0.9, 0.1]), 4, BoostedRecipe(), 0)
    np.testing.assert_array_equal(boosted.first(4).read(cells), 0.0)


def test_an_unknown_form_of_the_trees_is_refused(monkeypatch):
    real = module._nodes

    def turned(nodes, of_class):
        found = real(nodes, of_class)
        return found._replace(values=-found.values)

    monkeypatch.setattr(module, "_nodes", turned)
    with pytest.raises(RuntimeError, match="histogram boosting"):
        write_boosted(*table(2), np.log([0.5, 0.5]), 5, BoostedRecipe(), 0)


@pytest.mark.parametrize(("n_classes", "rounds"), [(2, 300), (3, 300), (10, 240), (100, 24)])
def test_more_classes_get_fewer_rounds(n_classes, rounds):
    assert BoostedRecipe().rounds(1.0, n_classes) == rounds
    assert BoostedRecipe().rounds(1e-9, n_classes) == 1
