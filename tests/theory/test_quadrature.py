"""Closed forms against Gaussian quadrature, which is exact for these polynomials and shares no formula with them."""

from itertools import product

import numpy as np
import pytest
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import roots_genlaguerre

from tttabpfn.theory import LinearTask, one_step, pretrained_weight

RTOL = 1e-10


def normal_grid(dimensions, nodes):
    """Nodes (points, dimensions) and weights of a product rule for independent standard normals."""
    points, weights = hermegauss(nodes)
    weights = weights / weights.sum()
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*[points] * dimensions, indexing="ij")], axis=-1)
    mass = np.ones(1)
    for _ in range(dimensions):
        mass = np.multiply.outer(mass, weights).ravel()
    return grid, mass


def rows_grid(task, rows, nodes):
    """Raw rows (points, rows, d), their labels (points, rows) and the weights, at all nodes of rows and noise."""
    grid, mass = normal_grid(rows * (task.d + 1), nodes)
    grid = grid.reshape(len(grid), rows, task.d + 1)
    S = np.diag(task.S) if task.S.ndim == 1 else task.S
    values, vectors = np.linalg.eigh(S)
    X = grid[..., :-1] @ (vectors * np.sqrt(np.clip(values, 0, None))).T
    return X, X @ task.beta + np.sqrt(task.sigma2) * grid[..., -1], mass


def quadratic_in_step_size(task, W, k, context, seen, seen_mass, read, read_mass):
    """Risk before and the slope and curvature in the step size, from nodes of u and of the context that is read."""
    S = np.diag(task.S) if task.S.ndim == 1 else task.S
    X, y, mass = rows_grid(task, k, nodes=3)
    slope = curvature = before = 0.0
    left_read = task.beta - read @ W.T
    for u, weight in zip(seen, seen_mass, strict=True):
        g = np.einsum("tkd,tk->td", X, y - X @ (W @ u))
        mean_g, mean_gSg = mass @ g, mass @ np.einsum("ti,ij,tj->t", g, S, g)
        if context == "fresh":
            agreement = read @ u
            left = (read_mass * agreement) @ left_read
            square = read_mass @ agreement**2
        else:
            left, square = (u @ u) * (task.beta - W @ u), (u @ u) ** 2
        slope += weight * left @ S @ mean_g
        curvature += weight * square * mean_gSg
        before += weight * (task.beta - W @ u) @ S @ (task.beta - W @ u)
    return before + task.sigma2, slope, curvature


def check(task, W, k, context, before, slope, curvature):
    step = one_step(task, W, k, context)
    np.testing.assert_allclose(step.risk_before, before, rtol=RTOL)
    np.testing.assert_allclose(k * step.a, slope, rtol=RTOL, atol=1e-12 * curvature**0.5)
    np.testing.assert_allclose(k * (k * step.P + step.H), curvature, rtol=RTOL)
    eta = 0.7 * step.step_size + 1e-3
    np.testing.assert_allclose(step.risk_at(eta), before - 4 * eta * slope + 4 * eta**2 * curvature, rtol=RTOL)


def random_covariance(generator, d, rank=None):
    A = generator.standard_normal((d, rank or d + 1))
    return A @ A.T / d


@pytest.mark.parametrize("context", ["fresh", "shared"])
@pytest.mark.parametrize(
    ("n", "k", "d"), [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 1), (1, 1, 2), (1, 2, 2), (2, 1, 2), (1, 1, 3)]
)
def test_raw_rows(n, k, d, context):
    """No lemma: the nodes are those of X, xi, X_t and xi_t themselves."""
    generator = np.random.default_rng([n, k, d])
    task = LinearTask(n, generator.standard_normal(d), random_covariance(generator, d), sigma2=0.7)
    W = generator.standard_normal((d, d)) / (n + d)
    X, y, seen_mass = rows_grid(task, n, nodes=7 if context == "shared" else 5)
    seen = np.einsum("cnd,cn->cd", X, y)
    X, y, read_mass = rows_grid(task, n, nodes=3)
    read = np.einsum("cnd,cn->cd", X, y)
    # A context that gives the same u to rounding is one node: most nodes of a single row differ by sign only.
    seen, inverse = np.unique(seen.round(12), axis=0, return_inverse=True)
    seen_mass = np.bincount(inverse.ravel(), weights=seen_mass)
    check(task, W, k, context, *quadratic_in_step_size(task, W, k, context, seen, seen_mass, read, read_mass))


def mixture_grid(task, nodes):
    """Nodes of u = Q p + sqrt(s Q) h with Q ~ chi^2_n and h ~ N(0, S - p p^T / s), for any n."""
    S = np.diag(task.S) if task.S.ndim == 1 else task.S
    s = task.label_variance
    values, vectors = np.linalg.eigh(S - np.outer(task.p, task.p) / s)
    half_q, q_mass = roots_genlaguerre(nodes, task.n / 2 - 1)
    grid, h_mass = normal_grid(task.d, nodes)
    h = grid @ (vectors * np.sqrt(np.clip(values, 0, None))).T
    q = 2 * half_q[:, None, None]
    u = q * task.p + np.sqrt(s * q) * h
    return u.reshape(-1, task.d), np.multiply.outer(q_mass / q_mass.sum(), h_mass).ravel()


def full_rank(generator, d):
    return random_covariance(generator, d), generator.standard_normal((d, d)) / 10


def singular(generator, d):
    return random_covariance(generator, d, rank=1), generator.standard_normal((d, d)) / 10


def one_feature_off(generator, d):
    return np.r_[np.zeros(1), np.ones(d - 1)], 0.05


def scalar(generator, d):
    return 0.5, np.full(d, 0.03)


@pytest.mark.parametrize("context", ["fresh", "shared"])
@pytest.mark.parametrize("sigma2", [0.0, 0.9])
@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 2), (5, 2, 2), (30, 1, 3), (17, 2, 2), (250, 1, 2)])
@pytest.mark.parametrize("kind", [full_rank, singular, one_feature_off, scalar])
def test_mixture(kind, n, k, d, sigma2, context):
    generator = np.random.default_rng([n, k, d])
    covariance, W = kind(generator, d)
    task = LinearTask(n, generator.standard_normal(d), covariance, sigma2)
    full = W if np.ndim(W) == 2 else np.diag(np.broadcast_to(W, d))
    seen, mass = mixture_grid(task, nodes=7)
    check(task, W, k, context, *quadratic_in_step_size(task, full, k, context, seen, mass, seen, mass))


@pytest.mark.parametrize("n", [1, 6, 40])
def test_pretrained_weight_solves_its_normal_equations(n):
    """W E[u u^T] = E[beta u^T], with both expectations over tasks of a non-commuting prior by quadrature."""
    generator = np.random.default_rng(n)
    d, sigma2 = 2, 0.4
    S, prior = random_covariance(generator, d), random_covariance(generator, d)
    W = pretrained_weight(n, S, prior, sigma2)
    grid, mass = normal_grid(d, 4)
    left, right = np.zeros((d, d)), np.zeros((d, d))
    for beta, weight in zip(grid @ np.linalg.cholesky(prior).T, mass, strict=True):
        u, u_mass = mixture_grid(LinearTask(n, beta, S, sigma2), 4)
        left += weight * (u_mass[:, None] * u).T @ u
        right += weight * np.outer(beta, u_mass @ u)
    np.testing.assert_allclose(W @ left, right, rtol=RTOL, atol=1e-12 * abs(right).max())


def test_the_lemma_behind_the_mixture():
    """u has the same moments up to order 4 from raw rows and from the mixture."""
    generator = np.random.default_rng(0)
    task = LinearTask(2, generator.standard_normal(2), random_covariance(generator, 2), 0.7)
    X, y, raw_mass = rows_grid(task, 2, nodes=5)
    raw = np.einsum("cnd,cn->cd", X, y)
    mixed, mixed_mass = mixture_grid(task, 5)
    for i, j in product(range(5), repeat=2):
        if i + j <= 4:
            moment = raw_mass @ (raw[:, 0] ** i * raw[:, 1] ** j)
            np.testing.assert_allclose(mixed_mass @ (mixed[:, 0] ** i * mixed[:, 1] ** j), moment, rtol=RTOL)
