"""Closed forms against values from exact rational arithmetic (tests/data/theory_oracle.json)."""

import json
from pathlib import Path

import numpy as np
import pytest

from tttabpfn.theory import LinearTask, critical_k, one_step, pretrained_weight, risk

RTOL = 1e-10
ROWS = json.loads((Path(__file__).parents[1] / "data" / "theory_oracle.json").read_text())["rows"]
STEP_FIELDS = {
    "L_before": "risk_before",
    "eta_star": "step_size",
    "L_after": "risk_after",
    "gain": "gain",
    "a": "a",
    "P": "P",
    "H": "H",
}


def row_id(row):
    return f"{row['id']}: {row['name']}"


def task_of(row):
    return LinearTask(row["n"], np.broadcast_to(row["beta"], row["d"]), row["Sigma_x"], row["sigma2"])


def weight_of(row):
    if row["init"] == "zero":
        return 0.0
    if row["init"] == "matrix":
        return row["W"]
    prior = row["pretrain"]
    return pretrained_weight(prior["n"], prior["Sigma_x"], prior["Sigma_beta"], prior["sigma2"], d=row["d"])


def check_step(step, expected):
    for theirs, ours in STEP_FIELDS.items():
        if theirs in expected:
            np.testing.assert_allclose(getattr(step, ours), expected[theirs], rtol=RTOL, err_msg=theirs)


@pytest.mark.parametrize("context", ["fresh", "shared"])
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_one_step(row, context):
    task, expected = task_of(row), row[context]
    step = one_step(task, weight_of(row), row["k"], context)
    check_step(step, expected)
    half = step.risk_at(step.step_size / 2)
    np.testing.assert_allclose(half, expected["L_after_at_half_eta_star"], rtol=RTOL)
    np.testing.assert_allclose(risk(task, weight_of(row)), expected["L_before"], rtol=RTOL)


@pytest.mark.parametrize("context", ["fresh", "shared"])
@pytest.mark.parametrize("row", [row for row in ROWS if row["init"] != "zero"], ids=row_id)
def test_cold_start_and_crossover(row, context):
    task, expected = task_of(row), row[context]
    check_step(one_step(task, 0.0, row["k"], context), expected["cold"])
    crossover = critical_k(task, weight_of(row), context)
    np.testing.assert_allclose(crossover.thresholds, expected["k_star"], rtol=RTOL)
    assert crossover.cold_better_at_k0 is expected["cold_better_at_k0"]
    assert crossover.cold_better_at_kinf is expected["cold_better_at_kinf"]


@pytest.mark.parametrize("row", [row for row in ROWS if row["init"] == "pretrained"], ids=row_id)
def test_pretrained_weight(row):
    W = weight_of(row)
    assert W.shape == (row["d"], row["d"])
    if "W" in row:
        np.testing.assert_allclose(W, row["W"], rtol=RTOL)
    else:
        np.testing.assert_allclose(W[[0, -1], [0, -1]], row["W_diag_first_last"], rtol=RTOL)
        np.testing.assert_array_equal(W, np.diag(np.diagonal(W)))


def test_oracle_covers_what_the_module_offers():
    kinds = {(row["init"], np.ndim(row["Sigma_x"])) for row in ROWS}
    assert {("pretrained", 0), ("pretrained", 1), ("pretrained", 2), ("zero", 0), ("zero", 2)} <= kinds
