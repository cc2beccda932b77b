"""Rows on linear attention: closed forms, large-d limits, and the real gradient step on sampled rows."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from tttabpfn.theory import LinearTask, critical_k, one_step, pretrained_weight, risk_floor, simulate

Row = dict[str, Any]

REPEATS = 4000
D = 20
CONTEXTS = ("fresh", "shared")
STEP_COUNTS = (1, 2, 3, 4, 5, 7, 10)


def unit_task(n: int, d: int) -> tuple[LinearTask, np.ndarray]:
    """Identity covariance, no noise, label variance 1, with the weight pretrained on its own isotropic prior."""
    return LinearTask(n, np.full(d, d**-0.5), 1.0), pretrained_weight(n, 1.0, 1 / d, d=d, form="diagonal")


def measured(task: LinearTask, W: Any, k: int, context: str, seed: list[int]) -> Row:
    """Simulation of one step at the best step size, and how far it lies from theory."""
    step = one_step(task, W, k, context)
    mean, error = simulate(task, W, k, step.step_size, context, REPEATS, np.random.SeedSequence(seed))
    return {"simulated": mean, "standard_error": error, "z": (mean - step.risk_after) / error, "n_repeats": REPEATS}


def context_rows(context: str) -> list[Row]:
    """Risk against context size at several numbers of training queries."""
    rows: list[Row] = []
    simulated = {5, 10, 20, 40, 80, 120}
    for ratio in (0, 1, 2, 5, 20):
        for n in sorted(simulated | set(range(5, 125, 5))):
            task, warm = unit_task(n, D)
            step = one_step(task, warm, max(1, ratio * D), context)
            row = {
                "figure": f"{context} context",
                "curve": f"k/d = {ratio}",
                "x": n / D,
                "n": n,
                "d": D,
                "k": ratio * D,
            }
            row["theory"] = step.risk_after if ratio else step.risk_before
            if ratio == 20:
                share = ratio / (ratio + 1)
                gain = share / (1 + n / D) ** 3 if context == "fresh" else share / (1 + n / D)
                row["limit"] = 1 / (1 + n / D) - gain
            if n in simulated and ratio:
                row |= measured(task, warm, ratio * D, context, [1, CONTEXTS.index(context), n, ratio])
            rows.append(row)
    return rows


def transition_rows() -> list[Row]:
    """Warm and cold start against the number of queries, new context at prediction."""
    rows: list[Row] = []
    for d in (D, 1000):
        task, warm = unit_task(d, d)
        threshold = critical_k(task, warm).thresholds[0] / d
        for ratio in (0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5, 7, 10):
            k = round(ratio * d)
            for name, W in (("warm", warm), ("cold", 0.0)):
                row = {"figure": "transition", "curve": f"{name}, d = {d}", "x": k / d, "n": d, "d": d, "k": k}
                row |= {"theory": one_step(task, W, k).risk_after, "threshold": threshold}
                if d == D and ratio in (0.5, 1, 2, 2.5, 4, 10):
                    row |= measured(task, W, k, "fresh", [2, k, int(name == "cold")])
                rows.append(row)
    return rows


def threshold_rows() -> list[Row]:
    """The threshold of the transition against context size."""
    rows: list[Row] = []
    alphas = [float(alpha) for alpha in np.round(np.geomspace(0.2, 6, 24), 3)]
    for d in (20, 100, 1000):
        for alpha in alphas:
            task, warm = unit_task(round(alpha * d), d)
            thresholds = critical_k(task, warm).thresholds
            shared = critical_k(task, warm, "shared").thresholds
            row = {"figure": "threshold", "curve": f"exact, d = {d}", "x": task.n / d, "n": task.n, "d": d}
            row |= {"theory": thresholds[0] / d if thresholds else None, "shared_context_thresholds": shared}
            rows.append(row)
    for alpha in alphas:
        limit = (1 + alpha) ** 2 / (2 + alpha)
        rows.append({"figure": "threshold", "curve": "limit, (1+a)^2/(2+a)", "x": alpha, "limit": limit})
    return rows


def alignment_rows() -> list[Row]:
    """Effect of a task that lies where the pretraining prior has little variance."""
    n, k = D, 2 * D
    prior = 1.0 / np.arange(1, D + 1)
    prior /= prior.sum()
    warm = pretrained_weight(n, 1.0, prior, form="diagonal")
    rows: list[Row] = []
    for share in np.round(np.linspace(0, 1, 11), 2):
        beta = np.sqrt((1 - share) * prior + share * prior[::-1])
        task = LinearTask(n, beta, 1.0)
        A, B = float(np.sum((beta - n * warm * beta) ** 2)), n * float(warm @ warm)
        common = {"figure": "alignment", "x": float(share), "n": n, "d": D, "k": k}
        rows.append(common | {"curve": "warm, before TTT", "theory": one_step(task, warm, k).risk_before})
        for name, W in (("warm", warm), ("cold", 0.0)):
            step = one_step(task, W, k)
            row = common | {"curve": f"{name}, after one step", "theory": step.risk_after, "gain": step.gain}
            if name == "warm":
                row["limit"] = step.risk_before - k / (k + D) * A**2 / (A + B)
            if round(10 * share) % 2 == 0:
                row |= measured(task, W, k, "fresh", [3, round(10 * share), int(name == "cold")])
            rows.append(row)
    return rows


def step_rows(k: int = 5 * D) -> list[Row]:
    """Several gradient steps against one.

    Each sample's steps are `c / (2 |u|^2 lambda)` with `lambda` the largest eigenvalue of its queries' Gram matrix, so
    that gradient descent converges for every sample if `c < 2`; `c` is chosen for each number of steps on other samples
    than those reported. A step size fixed in advance, as in the closed form, diverges on rare samples after few steps.
    """
    task, warm = unit_task(D, D)
    rows: list[Row] = []
    multiples = np.linspace(0.1, 1.9, 19)
    for name, W in (("warm", warm), ("cold", np.zeros(D))):
        tried = {c: _normalised_steps(task, W, k, c, np.random.default_rng(11)) for c in multiples}
        for context in CONTEXTS:
            step = one_step(task, W, k, context)
            common = {"figure": "steps", "curve": f"{name}, {context} context", "n": D, "d": D, "k": k}
            rows.append(common | {"x": 0, "steps": "none", "simulated": step.risk_before, "standard_error": 0.0})
            mean, error = simulate(task, W, k, step.step_size, context, REPEATS, 12)
            fixed = {"simulated": mean, "standard_error": error, "theory": step.risk_after, "n_repeats": REPEATS}
            rows[-1]["fixed_step_size"] = fixed
            for count in STEP_COUNTS:
                best = min(multiples, key=lambda c: float(np.mean(tried[c][context, count])))
                risks = _normalised_steps(task, W, k, best, np.random.default_rng(13))[context, count]
                error = float(risks.std(ddof=1) / math.sqrt(risks.size))
                row = common | {"x": count, "steps": "normalised", "c": float(best), "n_repeats": risks.size}
                row |= {"simulated": float(risks.mean()), "standard_error": error}
                rows.append(row)
    rows.append({"figure": "steps", "curve": "floor, fresh context", "x": 0, "limit": risk_floor(task)})
    rows.append({"figure": "steps", "curve": "floor, fresh context", "x": STEP_COUNTS[-1], "limit": risk_floor(task)})
    return rows


def _normalised_steps(
    task: LinearTask, W: np.ndarray, k: int, c: float, generator: np.random.Generator, repeats: int = 1500
) -> dict[tuple[str, int], np.ndarray]:
    """Risk of each sample by context and number of steps; identity covariance."""
    X, X_new = generator.standard_normal((2, repeats, task.n, task.d))
    queries = generator.standard_normal((repeats, k, task.d))
    u, u_new = (np.einsum("rnd,rn->rd", rows, rows @ task.beta) for rows in (X, X_new))
    largest = np.linalg.eigvalsh(np.einsum("rki,rkj->rij", queries, queries))[:, -1:]
    labels, length = queries @ task.beta, np.sum(u * u, axis=1, keepdims=True)
    size = c / (2 * length * largest)
    moved, out = np.zeros_like(u), {}
    for count in range(1, STEP_COUNTS[-1] + 1):
        errors = labels - np.einsum("rkd,rd->rk", queries, W * u + moved * length)
        moved = moved + 2 * size * np.einsum("rkd,rk->rd", queries, errors)
        for context, read in (("shared", u), ("fresh", u_new)):
            residual = task.beta - W * read - moved * np.sum(u * read, axis=1, keepdims=True)
            out[context, count] = np.sum(residual**2, axis=1)
    return out


def agreement(rows: list[Row], rate: float = 0.01) -> Row:
    """How all simulated points that have a closed form sit around it."""
    z = np.array([row["z"] for row in rows if "z" in row])
    return {
        "figure": "agreement",
        "points": int(z.size),
        "largest_z": float(np.abs(z).max()),
        "allowed_z_at_family_wise_1_percent": NormalDist().inv_cdf(1 - (1 - (1 - rate) ** (1 / z.size)) / 2),
        "beyond_3_standard_errors": int(np.sum(np.abs(z) > 3)),
        "mean_z": float(z.mean()),
        "rms_z": math.sqrt(float(np.mean(z**2))),
    }


def linear_rows() -> list[Row]:
    """All rows of the linear figures."""
    rows = [row for context in CONTEXTS for row in context_rows(context)]
    rows += transition_rows() + threshold_rows() + alignment_rows() + step_rows()
    return [*rows, agreement(rows)]
