"""Tasks of discrete logic, all-categorical tables, and columns of many rare levels."""

import time

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier

from tttabpfn.pretraining.config import PriorConfig
from tttabpfn.pretraining.prior import sample_task
from tttabpfn.pretraining.prior.columns import rare_levels, sample_causes
from tttabpfn.pretraining.prior.rules import categorical_task, logic, lookup, rule_task, sum_of_levels, tree


def levels_of(counts, n_rows=4000, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(count, size=n_rows) for count in counts], axis=1)


def single_column_gain(levels, labels):
    """Largest accuracy above that of the majority that one column gives."""
    best = 0.0
    for column in levels.T:
        hits = sum(np.bincount(labels[column == level]).max() for level in np.unique(column))
        best = max(best, hits / len(labels))
    return best - np.bincount(labels).max() / len(labels)


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_in_parity_no_column_tells_and_all_together_tell_everything(n_classes):
    levels = levels_of([n_classes] * 3)
    labels = sum_of_levels(np.random.default_rng(1), levels, n_classes)
    assert single_column_gain(levels, labels) < 0.04
    _, index = np.unique(levels, axis=0, return_inverse=True)
    for group in range(index.max() + 1):
        assert len(np.unique(labels[index.ravel() == group])) == 1
    np.testing.assert_allclose(np.bincount(labels) / len(labels), 1 / n_classes, atol=0.03)


@pytest.mark.parametrize("rule", [lookup, logic, tree])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_rules_are_functions_of_the_levels_with_the_classes_asked_for(rule, n_classes):
    levels = levels_of([3, 2, 4])
    for seed in range(8):
        labels = rule(np.random.default_rng(seed), levels, n_classes)
        assert set(np.unique(labels)) <= set(range(n_classes))
        _, index = np.unique(levels, axis=0, return_inverse=True)
        for group in range(index.max() + 1):
            assert len(np.unique(labels[index.ravel() == group])) == 1
    assert len(np.unique(lookup(np.random.default_rng(0), levels, n_classes))) == n_classes


@pytest.mark.parametrize("task", [rule_task, categorical_task])
def test_a_deep_tree_learns_most_tasks_of_few_columns(task):
    gains = []
    for seed in range(40):
        values, labels = task(np.random.default_rng(seed), 1500, 4, 2)
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        found = DecisionTreeClassifier(max_leaf_nodes=100, random_state=0).fit(values[:1000], labels[:1000])
        gains.append(
            found.score(values[1000:], labels[1000:]) - max(np.mean(labels[1000:]), 1 - np.mean(labels[1000:]))
        )
    assert np.mean(gains) > 0.1


def test_categorical_tables_hold_levels_alone():
    for seed in range(20):
        values, _ = categorical_task(np.random.default_rng(seed), 300, 9, 3)
        np.testing.assert_array_equal(values, np.round(values))
        assert values.min() >= 0
        assert values.max() <= 7


@pytest.mark.parametrize("family", ["rule", "categorical"])
@pytest.mark.parametrize("n_columns", [1, 2, 3, 20, 100])
def test_discrete_families_make_usable_tables_of_any_width(family, n_columns):
    shares = {"function": 0.0, "graph": 0.0, "cluster": 0.0, family: 1.0}
    X, y = sample_task(np.random.default_rng(0), 150, n_columns, 90, PriorConfig(families=shares, junk=1.0), 10)
    assert X.shape == (150, n_columns)
    context = np.unique(y[:90])
    np.testing.assert_array_equal(context, np.arange(len(context)))
    assert len(context) >= 2


def test_rare_levels_are_many_unordered_and_still_say_something():
    gains = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        column = sample_causes(rng, 2000, 1)[:, 0]
        codes = rare_levels(rng, column)
        count = len(np.unique(codes))
        assert 20 <= count <= 2000
        assert abs(np.corrcoef(codes, column)[0, 1]) < 0.35
        means = np.array([column[codes == code].mean() for code in codes])
        gains.append(np.corrcoef(means, column)[0, 1])
    assert np.median(gains) > 0.5


def test_tables_have_rare_levels_where_asked():
    counts = []
    for seed in range(10):
        config = PriorConfig(rare=1.0, missing=0.0, categorical=1.0, junk=0.0, redundant=0.0)
        X, _ = sample_task(np.random.default_rng(seed), 400, 8, 300, config, 3)
        counts.append(max(len(np.unique(column)) for column in X.T))
    assert min(counts) >= 20


def test_a_forest_learns_from_the_mixed_prior():
    shares = {"function": 0.4, "graph": 0.2, "cluster": 0.2, "rule": 0.1, "categorical": 0.1}
    gains = []
    for seed in range(30):
        X, y = sample_task(np.random.default_rng([5, seed]), 400, 5, 300, PriorConfig(families=shares, missing=0.0), 3)
        queries = np.flatnonzero(y[300:] >= 0) + 300
        forest = RandomForestClassifier(20, random_state=0).fit(X[:300], y[:300])
        gains.append(forest.score(X[queries], y[queries]) - (y[queries] == np.bincount(y[:300]).argmax()).mean())
    assert np.mean(gains) > 0.08


def test_discrete_tables_are_cheap():
    rng = np.random.default_rng(0)
    started = time.process_time()
    for _ in range(100):
        rule_task(rng, 500, 20, 4)
        categorical_task(rng, 500, 20, 4)
    assert (time.process_time() - started) / 200 < 0.02
