"""Float64 results against the expanded formulas in exact rational arithmetic, where rounding is hardest.

The module groups the formulas around the residual; here they stand expanded in beta and W, as polynomials whose terms
cancel by many digits for a well pretrained weight. Fractions do not mind.
"""

from fractions import Fraction

import numpy as np
import pytest

from tttabpfn.theory import LinearTask, critical_k, one_step, pretrained_weight, risk, risk_floor

RTOL = 1e-10


def exact(array):
    return np.vectorize(lambda entry: Fraction(float(entry)), otypes=[object])(np.asarray(array))


def alpha(n, i, j):
    value = Fraction(1)
    for step in range(j):
        value *= n + 2 * step
    for step in range(i):
        value *= n + 2 * j + step
    return value


def tr(A):
    return sum(A.diagonal())


def expanded(n, beta, S, sigma2, W, context):
    """(L0, a, P, H) from the expanded moment formulas, in Fractions."""
    b, S, W, s2 = exact(beta), exact(S), exact(W), Fraction(sigma2)
    p = S @ b
    s = b @ S @ b + s2
    S2, S3 = S @ S, S @ S @ S
    P0, P1, t1, t2 = p @ p, p @ S @ p, tr(S), tr(S2)
    M = n * (n + 1) * np.outer(p, p) + n * s * S

    def al(i, j):
        return alpha(n, i, j)

    def quadratic(A, D):
        """E[u^T A u * r^T D r] for symmetric A and D."""
        v, K = W.T @ D @ b, W.T @ D @ W
        pAp, tAS = p @ A @ p, tr(A @ S)
        zero = al(2, 0) * pAp + al(0, 1) * s * tAS
        one = al(3, 0) * pAp * (v @ p) + al(1, 1) * s * (tAS * (v @ p) + 2 * (v @ S @ A @ p))
        two = al(4, 0) * pAp * (p @ K @ p)
        two += al(2, 1) * s * (pAp * tr(K @ S) + tAS * (p @ K @ p) + 4 * (p @ A @ S @ K @ p))
        two += al(0, 2) * s**2 * (tAS * tr(K @ S) + 2 * tr(A @ S @ K @ S))
        return (b @ D @ b) * zero - 2 * one + two, zero

    def quartic(D):
        """E[|u|^4 r^T D r] for a symmetric D."""
        v, K = W.T @ D @ b, W.T @ D @ W
        c1, c2 = 2 * P0 * t1 + 4 * P1, t1**2 + 2 * t2
        zero = al(4, 0) * P0**2 + al(2, 1) * s * c1 + al(0, 2) * s**2 * c2
        one = al(5, 0) * P0**2 * (v @ p) + al(3, 1) * s * (c1 * (v @ p) + 4 * P0 * (v @ S @ p))
        one += al(1, 2) * s**2 * (c2 * (v @ p) + 4 * t1 * (v @ S @ p) + 8 * (v @ S2 @ p))
        two = al(6, 0) * P0**2 * (p @ K @ p)
        two += al(4, 1) * s * (P0**2 * tr(K @ S) + c1 * (p @ K @ p) + 8 * P0 * (p @ S @ K @ p))
        two += (
            al(2, 2)
            * s**2
            * (
                c1 * tr(K @ S)
                + c2 * (p @ K @ p)
                + 4 * P0 * tr(K @ S2)
                + 8 * t1 * (p @ S @ K @ p)
                + 16 * (p @ S2 @ K @ p)
                + 8 * (p @ S @ K @ S @ p)
            )
        )
        two += al(0, 3) * s**3 * (c2 * tr(K @ S) + 4 * t1 * tr(K @ S2) + 8 * tr(K @ S3))
        return (b @ D @ b) * zero - 2 * one + two, zero

    before = s - 2 * n * (p @ W @ p) + tr(W.T @ S @ W @ M)
    if context == "fresh":
        C = n * np.outer(b, p) - W @ M
        a = tr(S2 @ C @ C.T)
        (P, _), (F, zero) = quadratic(M, S3), quadratic(M, S)
    else:
        identity = exact(np.eye(len(b)))
        a = quadratic(identity, S2)[0]
        (P, _), (F, zero) = quartic(S3), quartic(S)
    return before, a, P, P + t2 * (F + s2 * zero)


def random_case(seed):
    """Sizes, noise, a covariance of any rank and a weight of any kind."""
    generator = np.random.default_rng(seed)
    d = int(generator.integers(1, 5))
    n = int(generator.choice([1, 2, 3, 10, 77, 1000, 10_000]))
    A = generator.standard_normal((d, int(generator.integers(1, d + 1))))
    S = [A @ A.T, np.diag(generator.exponential(size=d)), np.eye(d)][seed % 3]
    S = (S + S.T) / 2
    beta = generator.standard_normal(d) * 10.0 ** generator.integers(-2, 3)
    sigma2 = float(generator.choice([0.0, 1e-6, 0.5, 30.0]))
    B = generator.standard_normal((d, d))
    weights = [
        lambda: pretrained_weight(n, S, B @ B.T, sigma2),
        lambda: pretrained_weight(n, S, 1.0, sigma2, d=d),
        lambda: B / (n + d),
        lambda: np.zeros((d, d)),
        lambda: np.eye(d) / (n + 1),
    ]
    return n, int(generator.integers(1, 500)), beta, S, sigma2, weights[seed % 5]()


@pytest.mark.parametrize("context", ["fresh", "shared"])
@pytest.mark.parametrize("seed", range(60))
def test_random_cases(seed, context):
    n, k, beta, S, sigma2, W = random_case(seed)
    task, step = LinearTask(n, beta, S, sigma2), one_step(LinearTask(n, beta, S, sigma2), W, k, context)
    before, a, P, H = expanded(n, beta, S, sigma2, W, context)
    got = [step.risk_before, step.P, step.H, risk(task, W)]
    np.testing.assert_allclose(got, [float(v) for v in (before, P, H, before)], rtol=RTOL)
    # sqrt(a) is the norm of a difference; where its operands agree to more than five digits, a float64 weight does
    # not determine it to ten, and it is held to rounding of the operands instead.
    size = np.linalg.norm
    aligned = size(S) * (size(beta) + size((n + 1) * W @ task.p)) * size(task.p)
    operands = n * (aligned + task.label_variance * size(S) ** 2 * size(W))
    if context == "fresh" and float(a) ** 0.5 < 1e-5 * operands:
        assert abs(step.a**0.5 - float(a) ** 0.5) <= 1e-14 * operands
        return
    np.testing.assert_allclose(step.a, float(a), rtol=RTOL)
    gain = k * a**2 / (k * P + H)
    np.testing.assert_allclose(step.step_size, float(a / (2 * (k * P + H))), rtol=RTOL)
    np.testing.assert_allclose(step.gain, float(gain), rtol=RTOL)
    np.testing.assert_allclose(step.risk_after, float(before - gain), rtol=RTOL)


@pytest.mark.parametrize("context", ["fresh", "shared"])
@pytest.mark.parametrize("seed", range(60))
def test_crossover_signs(seed, context):
    """The exact difference of the two risks changes its sign at each threshold and nowhere else on a wide grid."""
    n, _, beta, S, sigma2, W = random_case(seed)
    crossover = critical_k(LinearTask(n, beta, S, sigma2), W, context)
    warm = expanded(n, beta, S, sigma2, W, context)
    cold = expanded(n, beta, S, sigma2, 0 * W, context)

    def cold_wins(k):
        after = [start - (k * a * a / (k * P + H) if k * P + H else 0) for start, a, P, H in (warm, cold)]
        return after[1] < after[0]

    if not np.any(W):
        assert (crossover.thresholds, crossover.cold_better_at_k0, crossover.cold_better_at_kinf) == ([], False, False)
        return
    assert crossover.cold_better_at_k0 is cold_wins(Fraction(0))
    assert crossover.cold_better_at_kinf is cold_wins(Fraction(10) ** 30)
    for k in np.logspace(-4, 12, 50):
        flips = sum(k > threshold for threshold in crossover.thresholds)
        if all(abs(k / threshold - 1) > 1e-6 for threshold in crossover.thresholds):
            assert cold_wins(Fraction(k)) is (crossover.cold_better_at_k0 ^ bool(flips % 2)), k
    for threshold in crossover.thresholds:
        assert cold_wins(Fraction(threshold * (1 - 1e-7))) is not cold_wins(Fraction(threshold * (1 + 1e-7)))


@pytest.mark.parametrize("seed", range(0, 60, 7))
def test_floor_is_the_risk_of_the_best_weight(seed):
    n, _, beta, S, sigma2, _ = random_case(seed)
    task = LinearTask(n, beta, S, sigma2)
    b, S = exact(beta), exact(S)
    m = b @ S @ b
    s = m + Fraction(sigma2)
    np.testing.assert_allclose(risk_floor(task), float(s - n * m**2 / (s + (n + 1) * m)), rtol=RTOL)
