"""The sample of rows: a function of the set of rows alone, whatever the order, the batches and what came and went."""

from __future__ import annotations

import numpy as np
import pytest

from tttabpfn.prediction.streaming.reservoir import HIGHEST, Reservoir, folds_of, row_hashes


def reservoir(table, labels):
    n_rows = len(labels)
    embeddings = np.repeat(table[None, :, :1], 2, axis=0).astype(np.float32)
    logits = np.zeros((2, n_rows, 3), dtype=np.float32)
    return Reservoir(row_hashes(table, labels), labels, np.ones(n_rows), embeddings, logits, table)


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    return rng.normal(size=(500, 3)), rng.integers(0, 3, size=500)


def filled(table, labels, order, cuts, size):
    found = reservoir(table[:0], labels[:0])
    for piece in np.split(order, cuts):
        found = found.joined(reservoir(table[piece], labels[piece]), size)
    return found


@pytest.mark.parametrize("size", [40, 1000])
def test_kept_rows_depend_on_the_set_alone(table, size):
    X, y = table
    first = filled(X, y, np.arange(500), [100, 101, 300], size)
    assert len(first) <= size
    assert len(first) == 500 or len(first) > size / 4
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(500)
        again = filled(X, y, order, sorted(np.random.default_rng(seed).integers(0, 500, 6)), size)
        assert again.bound == first.bound
        np.testing.assert_array_equal(again.hashes, first.hashes)
        np.testing.assert_array_equal(again.table, first.table)


def test_rows_taken_back_leave_what_was_there_before(table):
    X, y = table
    before = filled(X, y, np.arange(300), [], 1000)
    after = filled(X, y, np.arange(500), [], 1000).without(row_hashes(X[300:], y[300:]))
    np.testing.assert_array_equal(after.hashes, before.hashes)
    with pytest.raises(ValueError, match="never given"):
        after.without(row_hashes(X[300:301], y[300:301]))


def test_equal_rows_count_as_often_as_they_came(table):
    X, y = table
    twice = np.concatenate([np.arange(10), np.arange(10)])
    found = filled(X, y, twice, [], 1000)
    assert len(found) == 20
    assert len(found.without(row_hashes(X[:10], y[:10]))) == 10


def test_a_hash_is_of_cells_and_label(table):
    X, y = table
    hashes = row_hashes(X, y)
    assert len(np.unique(hashes)) == 500
    np.testing.assert_array_equal(hashes[7:9], row_hashes(X[7:9], y[7:9]))
    assert (row_hashes(X, (y + 1) % 3) != hashes).all()
    zeros = np.array([[0.0, np.nan], [-0.0, np.nan]])
    assert len(set(row_hashes(zeros, np.zeros(2, dtype=int)))) == 1


def test_folds_and_bound_are_independent(table):
    X, y = table
    hashes = np.concatenate([row_hashes(X + shift, y) for shift in range(20)])
    folds = folds_of(hashes, 4)
    np.testing.assert_allclose(np.bincount(folds) / len(folds), 0.25, atol=0.02)
    small = folds[hashes >> np.uint64(1) < HIGHEST // 4]
    np.testing.assert_allclose(np.bincount(small) / len(small), 0.25, atol=0.04)
    assert abs(len(small) / len(folds) - 0.25) < 0.02
