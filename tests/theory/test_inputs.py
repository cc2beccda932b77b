"""Bad input: the message names the parameter, what is allowed and what came."""

import numpy as np
import pytest

from tttabpfn.theory import LinearTask, critical_k, one_step, pretrained_weight, risk, simulate, step_size_for

TASK = LinearTask(5, [1.0, 2.0], 1.0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n": 0}, ValueError, r"n must be a whole number >= 1, got 0"),
        ({"n": -3}, ValueError, r"n must be a whole number >= 1, got -3"),
        ({"n": 2.5}, TypeError, r"n must be a whole number >= 1, got 2\.5 of type float"),
        ({"n": True}, TypeError, r"n must be a whole number >= 1, got True"),
        ({"n": "5"}, TypeError, r"n must be a whole number >= 1, got '5'"),
        ({"beta": 1.0}, ValueError, r"beta must be a vector of shape \(d,\) with d >= 1, got shape \(\)"),
        ({"beta": []}, ValueError, r"beta must be a vector of shape \(d,\) with d >= 1, got shape \(0,\)"),
        ({"beta": [[1.0, 2.0]]}, ValueError, r"beta must be a vector .* got shape \(1, 2\)"),
        ({"beta": [1.0, np.nan]}, ValueError, r"beta must be finite, got 1 NaN or infinite"),
        ({"beta": ["a", "b"]}, TypeError, r"beta must hold real numbers, got \['a', 'b'\]"),
        ({"beta": [1j, 2.0]}, TypeError, r"beta must hold real numbers"),
        ({"beta": [[1.0], [1.0, 2.0]]}, TypeError, r"beta must hold real numbers"),
        ({"Sigma_x": [1.0, 2.0, 3.0]}, ValueError, r"Sigma_x must be a scalar .* shape \(2, 2\), got shape \(3,\)"),
        ({"Sigma_x": np.eye(3)}, ValueError, r"Sigma_x must be .* got shape \(3, 3\)"),
        ({"Sigma_x": -1.0}, ValueError, r"Sigma_x must have no negative variance, got -1\.0"),
        ({"Sigma_x": [1.0, -0.5]}, ValueError, r"Sigma_x must have no negative variance, got -0\.5"),
        ({"Sigma_x": [[1.0, 2.0], [2.0, 1.0]]}, ValueError, r"Sigma_x must be positive semidefinite, got .* -1"),
        ({"Sigma_x": [[1.0, 0.5], [0.2, 1.0]]}, ValueError, r"Sigma_x must be symmetric, got .* 0\.3"),
        ({"Sigma_x": [[1.0, np.inf], [np.inf, 1.0]]}, ValueError, r"Sigma_x must be finite, got 2 NaN or infinite"),
        ({"sigma2": -0.1}, ValueError, r"sigma2 must be a finite number >= 0, got -0\.1"),
        ({"sigma2": np.nan}, ValueError, r"sigma2 must be a finite number, got nan"),
        ({"sigma2": [0.1]}, ValueError, r"sigma2 must be a single number, got an array of shape \(1,\)"),
        ({"sigma2": None}, TypeError, r"sigma2 must be a finite number, got None"),
    ],
)
def test_task(arguments, error, message):
    with pytest.raises(error, match=message):
        LinearTask(**{"n": 5, "beta": [1.0, 2.0], "Sigma_x": 1.0, **arguments})


@pytest.mark.parametrize("call", [risk, lambda task, W: one_step(task, W, 3), critical_k])
@pytest.mark.parametrize(
    ("W", "error", "message"),
    [
        (np.eye(3), ValueError, r"W must be a scalar .* shape \(2, 2\), got shape \(3, 3\)"),
        ([1.0], ValueError, r"W must be .* got shape \(1,\)"),
        (np.nan, ValueError, r"W must be finite"),
        (None, TypeError, r"W must hold real numbers, got None"),
    ],
)
def test_weight(call, W, error, message):
    with pytest.raises(error, match=message):
        call(TASK, W)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: one_step(TASK, 0.0, 0), ValueError, r"k must be a whole number >= 1, got 0"),
        (lambda: one_step(TASK, 0.0, 1.5), TypeError, r"k must be a whole number >= 1, got 1\.5"),
        (lambda: one_step(TASK, 0.0, 3, "new"), ValueError, r"context must be one of \('fresh', 'shared'\), got 'new'"),
        (lambda: critical_k(TASK, 0.0, None), ValueError, r"context must be one of .* got None"),
        (lambda: one_step(TASK, 0.0, 3).risk_at([0.0, np.inf]), ValueError, r"step_size must be finite"),
        (lambda: simulate(TASK, 0.0, 3, 0.1, "both"), ValueError, r"context must be one of .* got 'both'"),
        (lambda: simulate(TASK, 0.0, -1, 0.1), ValueError, r"k must be a whole number >= 1, got -1"),
        (lambda: simulate(TASK, 0.0, 3, np.nan), ValueError, r"step_size must be finite"),
        (lambda: simulate(TASK, 0.0, 3, 0.1, n_repeats=1), ValueError, r"n_repeats must be a whole number >= 2"),
        (lambda: simulate(TASK, 0.0, 3, 0.1, n_steps=0), ValueError, r"n_steps must be a whole number >= 1, got 0"),
        (lambda: pretrained_weight(0, 1.0, 1.0, d=2), ValueError, r"n must be a whole number >= 1, got 0"),
        (lambda: pretrained_weight(5, 1.0, 1.0), ValueError, r"d must be given when .* scalars, got None"),
        (lambda: pretrained_weight(5, 1.0, 1.0, d=0), ValueError, r"d must be a whole number >= 1, got 0"),
        (lambda: pretrained_weight(5, np.eye(2), np.eye(3)), ValueError, r"Sigma_beta must be .* got shape \(3, 3\)"),
        (lambda: pretrained_weight(5, np.eye(2), 1.0, d=3), ValueError, r"Sigma_x must be .* got shape \(2, 2\)"),
        (lambda: pretrained_weight(5, [1.0], -1.0), ValueError, r"Sigma_beta must have no negative variance"),
        (lambda: pretrained_weight(5, [1.0], 1.0, -2), ValueError, r"sigma2 must be a finite number >= 0, got -2"),
        (lambda: pretrained_weight(5, [1.0], 1.0, form="x"), ValueError, r'form must be "dense" or "diagonal", got'),
        (lambda: pretrained_weight(5, np.eye(2), 1.0, form="diagonal"), ValueError, r"needs scalar or diagonal"),
        (lambda: step_size_for(0.1, loss="mean"), ValueError, r'k must be given with loss="mean", got None'),
        (lambda: step_size_for(0.1, loss="max"), ValueError, r"loss must be one of .* got 'max'"),
        (lambda: step_size_for(0.1, context_scale="mean"), ValueError, r"n must be given .* got None"),
        (lambda: step_size_for(0.1, context_scale="max"), ValueError, r"context_scale must be one of .* got 'max'"),
    ],
)
def test_calls(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_whole_numbers_of_numpy_and_whole_arrays_are_welcome():
    task = LinearTask(np.int32(5), np.array([1, 2]), np.int64(1), 0)
    assert task.n == 5
    assert isinstance(task.n, int)
    assert one_step(task, 0, np.int64(3)).gain == one_step(TASK, 0.0, 3).gain


def test_rounding_in_a_covariance_is_forgiven():
    A = np.random.default_rng(0).standard_normal((6, 2))
    singular = A @ A.T
    singular[0, 1] *= 1 + 1e-14
    task = LinearTask(5, np.ones(6), singular)
    np.testing.assert_array_equal(task.Sigma_x, task.Sigma_x.T)
