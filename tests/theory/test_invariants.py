"""What holds for every task: closed forms of special cases, limits, diagonal against full, memory."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import torch

from tttabpfn.theory import (
    LinearTask,
    critical_k,
    one_step,
    pretrained_weight,
    risk,
    risk_floor,
    simulate,
    step_size_for,
)
from tttabpfn.theory.simulate import gradient_steps

RTOL = 1e-10
FIELDS = ("risk_before", "step_size", "risk_after", "gain", "a", "P", "H")
CONTEXTS = ("fresh", "shared")


def random_task(seed, d=5, n=11, sigma2=0.3):
    generator = np.random.default_rng(seed)
    A = generator.standard_normal((d, d))
    task = LinearTask(n, generator.standard_normal(d), A @ A.T / d, sigma2)
    return task, generator.standard_normal((d, d)) / (n + d), generator


def values(step):
    return [getattr(step, name) for name in FIELDS]


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("seed", range(20))
def test_signs_and_consistency(seed, context):
    task, W, _ = random_task(seed, d=1 + seed % 6, n=1 + seed, sigma2=0.2 * (seed % 3))
    step = one_step(task, W, 7, context)
    assert step.a >= 0
    assert step.P > 0
    assert step.H >= step.P
    assert 0 <= step.gain <= step.risk_before - task.sigma2
    assert step.risk_before == risk(task, W)
    np.testing.assert_allclose(step.risk_after, step.risk_before - step.gain, rtol=RTOL)
    np.testing.assert_allclose(step.risk_at(step.step_size), step.risk_after, rtol=RTOL)
    np.testing.assert_allclose(step.risk_at(2 * step.step_size), step.risk_before, rtol=RTOL)
    around = step.risk_at(step.step_size * np.array([0.9, 1.0, 1.1]))
    assert around.argmin() == 1
    assert risk_floor(task) <= risk(task, W)
    if context == "fresh":
        assert risk_floor(task) <= step.risk_after


@pytest.mark.parametrize("context", CONTEXTS)
def test_coefficients_do_not_depend_on_k_and_gain_grows_with_it(context):
    task, W, _ = random_task(3)
    steps = [one_step(task, W, k, context) for k in (1, 10, 100, 1000)]
    assert len({(step.a, step.P, step.H) for step in steps}) == 1
    assert all(small.gain < large.gain for small, large in pairwise(steps))


def test_fresh_slope_is_a_quarter_of_the_squared_gradient_of_the_risk():
    """The gradient is taken by autograd of the risk written out in torch."""
    for seed in range(5):
        task, W, _ = random_task(seed)
        S, p = torch.from_numpy(task.S.copy()), torch.from_numpy(task.p.copy())
        n, s = task.n, task.label_variance
        M = n * (n + 1) * torch.outer(p, p) + n * s * S
        weight = torch.from_numpy(W).requires_grad_()
        value = s - 2 * n * p @ weight @ p + torch.trace(weight.T @ S @ weight @ M)
        value.backward()
        np.testing.assert_allclose(risk(task, W), value.item(), rtol=RTOL)
        np.testing.assert_allclose(one_step(task, W, 1).a, weight.grad.square().sum().item() / 4, rtol=RTOL)


def test_the_best_weight_leaves_nothing_to_gain_with_a_fresh_context():
    task, _, _ = random_task(8, sigma2=0.0)
    n, s = task.n, task.label_variance
    M = n * (n + 1) * np.outer(task.p, task.p) + n * s * task.S
    best = np.linalg.solve(M, n * np.outer(task.p, task.beta)).T
    np.testing.assert_allclose(risk(task, best), risk_floor(task), rtol=RTOL)
    assert one_step(task, best, 50).gain < 1e-20
    assert one_step(task, best, 50, "shared").gain > 1e-3


def test_one_feature_without_noise_has_nothing_to_gain():
    task = LinearTask(7, [1.3], 0.6)
    step = one_step(task, pretrained_weight(7, 0.6, 2.0, d=1), 30)
    assert (step.gain, step.step_size, step.a) == (0.0, 0.0, 0.0)
    assert step.risk_after == step.risk_before


@pytest.mark.parametrize("sigma2", [0.0, 1.7])
def test_cold_start(sigma2):
    task, _, _ = random_task(4, sigma2=sigma2)
    n, s, S, b = task.n, task.label_variance, task.S, task.beta
    P0, P1, t1, t2 = task.p @ task.p, task.p @ S @ task.p, np.trace(S), np.trace(S @ S)
    fresh, shared = (one_step(task, 0.0, 9, context) for context in CONTEXTS)
    assert fresh.risk_before == shared.risk_before == pytest.approx(s, rel=RTOL)
    E0 = n**2 * ((n + 1) ** 2 * P0**2 + 2 * (n + 1) * s * P1 + s**2 * t2)
    P = E0 * b @ S @ S @ S @ b
    np.testing.assert_allclose([fresh.a, fresh.P, fresh.H], [n**2 * P0**2, P, P + t2 * s * E0], rtol=RTOL)
    np.testing.assert_allclose(shared.a, b @ S @ S @ b * (n * (n + 1) * P0 + n * s * t1), rtol=RTOL)


@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 1), (40, 20, 60), (3, 50, 7), (1000, 2, 5000)])
def test_identity_covariance_without_noise_cold(n, d, k):
    beta = np.random.default_rng(d).standard_normal(d)
    B, N = beta @ beta, n + d + 1
    task = LinearTask(n, beta, 1.0)
    fresh, shared = (one_step(task, 0.0, k, context) for context in CONTEXTS)
    R = n**2 + 4 * n + 3 + d
    np.testing.assert_allclose(fresh.step_size, 1 / (2 * B * (k + d + 1) * R), rtol=RTOL)
    np.testing.assert_allclose(fresh.risk_after, B * (1 - k * n**2 / ((k + d + 1) * R)), rtol=RTOL)
    share = n * N**2 / ((n + 2) * (N + 2) * (N + 4))
    np.testing.assert_allclose(shared.gain, B * k / (k + d + 1) * share, rtol=RTOL)


@pytest.mark.parametrize(("n", "d", "k"), [(1, 3, 1), (40, 20, 60), (20, 20, 100), (3, 50, 7), (400, 9, 31)])
def test_identity_covariance_without_noise_pretrained(n, d, k):
    beta = np.random.default_rng(d).standard_normal(d)
    B, N = beta @ beta, n + d + 1
    task, W = LinearTask(n, beta, 1.0), pretrained_weight(n, 1.0, 2.5, d=d)
    np.testing.assert_allclose(W, np.eye(d) / N, rtol=RTOL)
    R = (d + 1) * n**3 + (d**2 + 2 * d + 17) * n**2 + (5 * d**2 - 2 * d + 53) * n + d**3 + 3 * d**2 - d + 45
    step = one_step(task, W, k)
    P = n**2 * B**3 * R / N**2
    np.testing.assert_allclose([step.risk_before, step.P, step.H], [B * (d + 1) / N, P, (d + 1) * P], rtol=RTOL)
    np.testing.assert_allclose(step.step_size, d * (d - 1) / (2 * B * (k + d + 1) * R), rtol=RTOL)
    gain = B * k / (k + d + 1) * n**2 * d**2 * (d - 1) ** 2 / (N**2 * R)
    np.testing.assert_allclose(step.gain, gain, rtol=RTOL)

    step = one_step(task, W, k, "shared")
    A = d**3 + 2 * d**2 * n + d**2 + d * n**2 + 2 * d * n + 3 * d + n**2 + 12 * n + 19
    A2 = d**3 + 2 * d**2 * n + d**2 + d * n**2 + 2 * d * n + 7 * d + n**2 + 56 * n + 199
    gain = B * k / (k + d + 1) * n * A**2 / ((n + 2) * N**2 * (N + 4) * A2)
    np.testing.assert_allclose(step.gain, gain, rtol=RTOL)
    assert critical_k(task, W, "shared").thresholds == []


def test_published_limits_are_reached_at_rate_one_over_d():
    """d times the relative error of the large-d forms settles: the error is O(1/d)."""
    for context, gain_limit in (("fresh", 2 / 3 / 8), ("shared", 2 / 3 / 2)):
        scaled = []
        for d in (500, 1000, 2000, 4000):
            task = LinearTask(d, np.ones(d), 1.0)
            warm = pretrained_weight(d, 1.0, 1.0, d=d, form="diagonal")
            error = gain_limit / (one_step(task, warm, 2 * d, context).gain / d) - 1
            scaled.append(d * error)
        assert abs(scaled[-1] / d) < 3e-3
        np.testing.assert_allclose(scaled[2:], scaled[1:3], rtol=0.02)


@pytest.mark.parametrize(("alpha", "exact", "limit"), [(0.5, 0.919, 0.900), (2, 2.266, 2.250), (5, 5.169, 5.143)])
def test_transition_limit(alpha, exact, limit):
    """Thresholds at d = 1000 stated with the derivation, and the limit (1 + alpha)^2 / (2 + alpha)."""
    d = 1000
    task = LinearTask(int(alpha * d), np.ones(d), 1.0)
    (threshold,) = critical_k(task, pretrained_weight(task.n, 1.0, 1.0, d=d, form="diagonal")).thresholds
    assert round(threshold / d, 3) == exact
    assert (1 + alpha) ** 2 / (2 + alpha) == pytest.approx(limit, abs=5e-4)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("sigma2", [0.0, 0.4])
def test_scalar_diagonal_and_full_inputs_agree(sigma2, context):
    d = 6
    generator = np.random.default_rng(5)
    beta, diagonal, w = generator.standard_normal(d), generator.exponential(size=d), generator.exponential(size=d) / 30
    for S, W in ((diagonal, w), (0.7, 0.03), (diagonal, 0.03), (0.7, w)):
        full_S, full_W = (np.diag(np.broadcast_to(value, d)) for value in (S, W))
        results = []
        for covariance in (S, full_S):
            task = LinearTask(9, beta, covariance, sigma2)
            for weight in (W, full_W):
                step, crossover = one_step(task, weight, 13, context), critical_k(task, weight, context)
                results.append([*values(step), risk(task, weight), *crossover.thresholds])
        for other in results[1:]:
            np.testing.assert_allclose(other, results[0], rtol=1e-12)
    dense, flat = (pretrained_weight(9, diagonal, w, sigma2, form=form) for form in ("dense", "diagonal"))
    np.testing.assert_array_equal(dense, np.diag(flat))
    np.testing.assert_allclose(pretrained_weight(9, np.diag(diagonal), np.diag(w), sigma2), dense, rtol=1e-12)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("sigma2", [0.0, 0.4])
def test_rotated_features_change_nothing(sigma2, context):
    """A rotation turns diagonals into full matrices, so that the diagonal and the full path must agree."""
    d = 6
    generator = np.random.default_rng(7)
    beta, diagonal, w = generator.standard_normal(d), generator.exponential(size=d), generator.exponential(size=d) / 30
    R = np.linalg.qr(generator.standard_normal((d, d)))[0]
    flat, turned = LinearTask(9, beta, diagonal, sigma2), LinearTask(9, R @ beta, R * diagonal @ R.T, sigma2)
    assert (flat.S.ndim, turned.S.ndim) == (1, 2)
    for W in (w, np.zeros(d)):
        here, there = one_step(flat, W, 13, context), one_step(turned, R * W @ R.T, 13, context)
        np.testing.assert_allclose(values(there), values(here), rtol=RTOL)
        crossings = [critical_k(flat, W, context), critical_k(turned, R * W @ R.T, context)]
        np.testing.assert_allclose(crossings[1].thresholds, crossings[0].thresholds, rtol=RTOL)
    prior = generator.exponential(size=d)
    expected = R * pretrained_weight(9, diagonal, prior, sigma2, form="diagonal") @ R.T
    np.testing.assert_allclose(
        pretrained_weight(9, turned.Sigma_x, R * prior @ R.T, sigma2), expected, rtol=RTOL, atol=1e-14
    )


@pytest.mark.parametrize("zero", [0, 0.0, np.float64(0), np.zeros(()), np.zeros(4), np.zeros((4, 4))])
def test_kinds_of_zero_weight(zero):
    task = LinearTask(5, [1, 2, 3, 4], 1, 1)
    assert values(one_step(task, zero, 3)) == values(one_step(task, 0.0, 3))
    assert critical_k(task, zero) == critical_k(task, 0.0)
    assert critical_k(task, zero).thresholds == []


def test_equal_risks_before_any_step_are_no_threshold():
    """Twice the best multiple of the identity is as bad as no weight at all; zero queries are not a threshold."""
    d, n, B = 3, 10, 14.0
    task = LinearTask(n, [1.0, 2.0, 3.0], 1.0)
    W = 2 * B / ((n + 1) * B + B * d)
    np.testing.assert_allclose(risk(task, W), risk(task, 0.0), rtol=1e-14)
    crossover = critical_k(task, W)
    assert crossover.cold_better_at_k0 is False
    assert 0.0 not in crossover.thresholds
    many = one_step(task, W, 10**9).risk_after - one_step(task, 0.0, 10**9).risk_after
    few = one_step(task, W, 1).risk_after - one_step(task, 0.0, 1).risk_after
    assert crossover.cold_better_at_kinf is (many > 0)
    assert bool(crossover.thresholds) is (few * many < 0)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(("beta", "S"), [([1.0, 2.0], 0.0), ([0.0, 0.0], 1.0), ([0.0, 1.0], [1.0, 0.0])])
def test_tasks_without_signal(beta, S, context):
    """No label, no row or no row that bears on the label: zero labels leave nothing to learn."""
    step = one_step(LinearTask(4, beta, S), 0.1, 5, context)
    assert values(step) == [0.0] * len(FIELDS)
    noisy = one_step(LinearTask(4, beta, S, 2.0), 0.0, 5, context)
    assert (noisy.risk_before, noisy.risk_after, noisy.step_size) == (2.0, 2.0, 0.0)
    assert critical_k(LinearTask(4, beta, S, 2.0), 0.1, context).cold_better_at_k0 is bool(np.any(S))


def test_large_diagonal_needs_linear_memory():
    d = 2000
    spectrum = np.arange(1, d + 1) ** -0.5
    beta = np.random.default_rng(0).standard_normal(d)
    tracemalloc.start()
    task = LinearTask(3000, beta, spectrum, 0.5)
    W = pretrained_weight(3000, spectrum, 1.0, 0.5, form="diagonal")
    for context in CONTEXTS:
        one_step(task, W, 500, context)
        critical_k(task, W, context)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 * d * 8, f"{peak} bytes; one d x d matrix is {8 * d * d}"


def test_pretrained_weight_of_singular_priors():
    S = np.array([[1.0, 0.5], [0.5, 0.25]])
    prior = np.array([[1.0, -2.0], [-2.0, 4.0]])
    np.testing.assert_array_equal(pretrained_weight(5, S, prior), np.zeros((2, 2)))
    np.testing.assert_array_equal(pretrained_weight(5, 0.0, 1.0, d=3), np.zeros((3, 3)))
    noisy = pretrained_weight(5, S, prior, 0.5)
    np.testing.assert_allclose(noisy, prior / 0.5, rtol=RTOL)
    np.testing.assert_array_equal(noisy, noisy.T)


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_gradient_step_against_autograd(kind):
    """The vector form W + G u^T equals steps on W itself with autograd's gradient of the summed loss."""
    _, W, generator = random_task(2)
    W = W if kind == "full" else np.diagonal(W).copy()
    u, X = generator.standard_normal((3, 5)), generator.standard_normal((3, 6, 5))
    y = generator.standard_normal((3, 6))
    eta, n_steps = 0.003, 4
    G = gradient_steps(W, u, X, y, step_size=eta, n_steps=n_steps)
    for repeat in range(3):
        weight = torch.tensor(W if kind == "full" else np.diag(W), requires_grad=True)
        rows, labels, seen = (torch.from_numpy(array[repeat]) for array in (X, y, u))
        for _ in range(n_steps):
            loss = (labels - rows @ weight @ seen).square().sum()
            (gradient,) = torch.autograd.grad(loss, weight)
            weight = (weight - eta * gradient).detach().requires_grad_()
        stepped = (W if kind == "full" else np.diag(W)) + np.outer(G[repeat], u[repeat])
        np.testing.assert_allclose(stepped, weight.detach().numpy(), rtol=RTOL)


def test_gradient_step_by_hand():
    """One feature, two queries, integers: residuals 1 and -3, gradient -2 * (1 * 1 + 2 * -3) * u = 10 u."""
    G = gradient_steps(
        np.array([2.0]), np.array([[3.0]]), np.array([[[1.0], [2.0]]]), np.array([[7.0, 9.0]]), step_size=1.0
    )
    assert G.item() == -10.0


@pytest.mark.parametrize(
    ("convert", "loss"),
    [
        ({"loss": "mean", "k": 6}, lambda errors: errors.square().mean()),
        ({"loss": "half_sum"}, lambda errors: errors.square().sum() / 2),
        ({"loss": "half_mean", "k": 6}, lambda errors: errors.square().mean() / 2),
        ({"context_scale": "mean", "n": 11}, lambda errors: errors.square().sum()),
        ({"loss": "mean", "k": 6, "context_scale": "mean", "n": 11}, lambda errors: errors.square().mean()),
    ],
)
def test_step_size_conversions_make_the_same_step(convert, loss):
    _, W, generator = random_task(6)
    n = convert.get("n", 1)
    u, X, y = generator.standard_normal(5), generator.standard_normal((6, 5)), generator.standard_normal(6)
    theirs = torch.tensor(W * n, requires_grad=True)
    errors = torch.from_numpy(y) - torch.from_numpy(X) @ theirs @ torch.from_numpy(u / n)
    (gradient,) = torch.autograd.grad(loss(errors), theirs)
    stepped = (theirs - 0.01 * gradient).detach().numpy() / n
    ours = gradient_steps(W, u[None], X[None], y[None], step_size=step_size_for(0.01, **convert))
    np.testing.assert_allclose(W + np.outer(ours[0], u), stepped, rtol=RTOL)


def test_nothing_of_the_process_is_changed():
    state = np.random.get_state()[1].copy()
    task, W, _ = random_task(1)
    kept = W.copy()
    simulate(task, W, 3, 1e-4, n_repeats=5, random_state=0)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    np.testing.assert_array_equal(W, kept)
    with pytest.raises(ValueError, match="read-only"):
        task.beta[0] = 1.0
