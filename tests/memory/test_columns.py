"""Columns as keys: missing cells, levels, constants, class shares without a row's own label, very wide tables."""

from __future__ import annotations

import numpy as np
import pytest

from tttabpfn.memory import columns as module
from tttabpfn.memory.columns import MAX_DEVIATION, MAX_KEYS, MAX_LEVELS, ColumnEncoder
from tttabpfn.memory.level_shares import LevelShares


def mixed_table(n_rows=120, seed=0):
    """A number, one with holes, a few-valued number, a constant, a small category with holes, one with many levels."""
    rng = np.random.default_rng(seed)
    table = np.stack(
        [
            100.0 + 7.0 * rng.normal(size=n_rows),
            rng.normal(size=n_rows),
            rng.integers(0, 4, n_rows).astype(float),
            np.full(n_rows, 3.5),
            rng.integers(0, 3, n_rows).astype(float),
            rng.integers(0, 30, n_rows).astype(float),
        ],
        axis=1,
    )
    table[::7, 1] = np.nan
    table[::11, 4] = np.nan
    labels = (table[:, 5] > 14).astype(np.int64) + (table[:, 0] > 104)
    return table, labels


def fitted(table, labels):
    return ColumnEncoder(categorical=[4, 5], seed=0).fit(table, labels)


# Seen to fail: with constants kept.
def test_widths_are_what_the_columns_hold():
    table, labels = mixed_table()
    keys, cells = fitted(table, labels).transform(table)
    # Three numbers, one with holes; 3 levels and missing; 12 levels of 30, the last for all others; 3 class shares.
    assert cells.shape == (120, 3 + 1 + 4 + MAX_LEVELS + 3)
    # Keys hold no class share, but a rank of each number, and one of each of 4 values.
    assert keys.shape == (120, cells.shape[1] - 3 + 3 + 4)
    assert keys.dtype == cells.dtype == np.float32


def test_keys_are_centred_and_numbers_have_unit_variance():
    table, labels = mixed_table()
    keys, cells = fitted(table, labels).transform(table)
    np.testing.assert_allclose(keys.mean(axis=0), 0.0, atol=1e-5)
    for position in range(3):
        np.testing.assert_allclose(keys[:, position].std(), 1.0, rtol=1e-5)
    binary = np.isin(cells[:, :-3], (0.0, 1.0)).all(axis=0)
    np.testing.assert_allclose(np.ptp(keys[:, : len(binary)][:, binary], axis=0), 1.0, rtol=1e-6)


def test_a_missing_number_is_the_median_and_says_so():
    table, labels = mixed_table()
    _, cells = fitted(table, labels).transform(table)
    holes = np.isnan(table[:, 1])
    np.testing.assert_allclose(cells[holes, 1], np.median(table[~holes, 1]), rtol=1e-6)
    np.testing.assert_array_equal(cells[:, 3], holes)


def test_unseen_levels_and_cells_missing_for_the_first_time():
    table, labels = mixed_table()
    encoder = fitted(table, labels)
    new = table[:4].copy()
    new[0, 4], new[1, 5], new[2, 0], new[3, 5] = 99.0, 99.0, np.nan, np.nan
    keys, cells = encoder.transform(new)
    assert np.isfinite(keys).all()
    assert np.isfinite(cells).all()
    assert not cells[0, 4:8].any()  # no level of its own, and none that stands for others
    overall = LevelShares.of(table[:, 5], labels).read(np.array([99.0]))
    np.testing.assert_allclose(cells[[1, 3], -3:], np.repeat(overall, 2, axis=0), rtol=1e-6)
    assert cells[2, 0] == np.float32(np.median(table[:, 0]))


def test_one_outlying_cell_is_cut_off():
    table, labels = mixed_table()
    far = table[:1].copy()
    far[0, 0] = 1e30
    assert fitted(table, labels).transform(far)[0].max() == MAX_DEVIATION


# Seen to fail: with the shares of all rows read for rows with labels.
def test_a_rows_own_label_never_changes_its_own_class_share():
    table, labels = mixed_table()
    folds = np.arange(120) % 4
    encoder = fitted(table, labels)
    _, before = encoder.transform_known(table, labels, folds)
    changed = labels.copy()
    changed[9] = (changed[9] + 1) % 3
    _, after = fitted(table, changed).transform_known(table, changed, folds)
    own = folds == folds[9]
    np.testing.assert_array_equal(after[own], before[own])
    same_level = ~own & (table[:, 5] == table[9, 5])
    assert same_level.any()
    assert (after[same_level] != before[same_level]).any(axis=1).all()


# Seen to fail: with held-back labels in the class shares of the rows that are written.
def test_labels_that_are_held_back_go_into_no_cell():
    table, labels = mixed_table()
    folds = np.arange(120) % 4
    held_back = folds == 2
    encoder = fitted(table, labels)
    assert encoder.reads_labels
    before = encoder.cells_without(table, labels, folds, held_back)
    changed = np.where(held_back, (labels + 1) % 3, labels)
    np.testing.assert_array_equal(encoder.cells_without(table, changed, folds, held_back), before)
    expected = LevelShares.of(table[~held_back, 5], labels[~held_back], 3).read(table[held_back, 5])
    np.testing.assert_allclose(before[held_back, -3:], expected, rtol=1e-6)
    known = encoder.transform_known(table, labels, folds)[1]
    np.testing.assert_array_equal(before[:, :-3], known[:, :-3])


def test_only_class_shares_tell_known_rows_from_new_ones():
    table, labels = mixed_table()
    encoder, folds = fitted(table, labels), np.arange(120) % 4
    known, new = encoder.transform_known(table, labels, folds)[1], encoder.transform(table)[1]
    np.testing.assert_array_equal(known[:, :-3], new[:, :-3])
    expected = LevelShares.of(table[:, 5], labels).cross_fitted(table[:, 5], labels, folds)
    np.testing.assert_allclose(known[:, -3:], expected, rtol=1e-6)


@pytest.mark.parametrize("codes", [[], [0], [0, 1]])
def test_tables_of_one_kind_alone(codes):
    rng = np.random.default_rng(0)
    table = rng.integers(0, 5, size=(40, 2)).astype(float)
    keys, cells = ColumnEncoder(codes, seed=0).fit(table, np.arange(40) % 2).transform(table)
    assert np.isfinite(keys).all()
    assert cells.shape[1] == sum(5 if column in codes else 1 for column in (0, 1))


def test_a_table_of_constants_has_no_keys():
    table = np.ones((20, 3))
    table[:, 1] = np.nan
    keys, cells = ColumnEncoder([], seed=0).fit(table, np.arange(20) % 2).transform(table)
    assert not keys.any()
    assert np.isfinite(keys).all()
    assert np.isfinite(cells).all()


def test_a_very_wide_table_is_projected():
    rng = np.random.default_rng(0)
    table, labels = rng.normal(size=(700, 300)), rng.integers(0, 2, 700)
    keys, cells = ColumnEncoder([], seed=0).fit(table, labels).transform(table)
    assert keys.shape == (700, MAX_KEYS)
    assert cells.shape == (700, 300)
    few = ColumnEncoder([], seed=0).fit(table[:50], labels[:50])
    assert few.transform(table)[0].shape == (700, 49)  # no more than rows span


def test_a_projection_keeps_what_few_directions_hold(monkeypatch):
    monkeypatch.setattr(module, "MAX_KEYS", 8)
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(200, 2))
    table = hidden @ rng.normal(size=(2, 20))
    keys, _ = ColumnEncoder([], seed=0).fit(table, np.arange(200) % 2).transform(table)
    assert keys.shape == (200, 8)
    together = np.linalg.lstsq(np.c_[keys, np.ones(200)], hidden, rcond=None)[0]
    assert np.abs(np.c_[keys, np.ones(200)] @ together - hidden).max() < 0.1


@pytest.mark.parametrize("n_columns", [4, 300])
def test_same_bits_again_and_one_row_as_among_many(n_columns):
    rng = np.random.default_rng(0)
    table, labels = rng.normal(size=(150, n_columns)), rng.integers(0, 2, 150)
    made = [ColumnEncoder([], seed=0).fit(table, labels).transform(table) for _ in range(2)]
    for first, again in zip(*made, strict=True):
        np.testing.assert_array_equal(first, again)
    encoder = ColumnEncoder([], seed=0).fit(table, labels)
    keys, cells = made[0]
    for row in (0, 77):
        one_keys, one_cells = encoder.transform(table[row : row + 1])
        np.testing.assert_allclose(one_keys[0], keys[row], atol=1e-5, rtol=0)
        np.testing.assert_array_equal(one_cells[0], cells[row])


def test_neither_the_table_nor_the_seed_of_the_user_is_touched():
    table, labels = mixed_table()
    before, state = table.copy(), np.random.get_state()[1].copy()
    encoder = fitted(table, labels)
    encoder.transform_known(table, labels, np.arange(120) % 4)
    np.testing.assert_array_equal(table, before)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
