"""Panels of benchmarks/theory.py, built from its rows; captions quote the rows, so that they cannot drift from them."""

from __future__ import annotations

import math
from typing import Any

from _theory_plot import Figure

Row = dict[str, Any]
D = 20
RELATIVE = "risk / variance of a label"
STARTS = ("random", "pretrained")


def panels(rows: list[Row]) -> list[Figure]:
    """All panels for which there are rows, in order."""
    makers = {
        "fresh context": _fresh,
        "shared context": _shared,
        "transition": _transition,
        "threshold": _threshold,
        "alignment": _alignment,
        "steps": _steps,
    }
    by_figure = {name: [row for row in rows if row["figure"] == name] for name in (*makers, "transformer")}
    figures = [make(by_figure[name]) for name, make in makers.items() if by_figure[name]]
    if by_figure["transformer"]:
        cost = next(row for row in rows if row["figure"] == "transformer pretraining")
        figures += [_transformer_queries(by_figure["transformer"], cost), _transformer_shift(by_figure["transformer"])]
    return figures


def _at(rows: list[Row], key: str = "theory", **wanted: Any) -> Any:
    """`key` of the one row that has all the wanted values."""
    (row,) = [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]
    return row[key]


def _equal_context(risk: float) -> float:
    """Context rows n / d that give this risk without TTT, from risk = (d + 1) / (n + d + 1)."""
    return (D + 1) * (1 / risk - 1) / D


def _fresh(rows: list[Row]) -> Figure:
    before, after = (_at(rows, n=D, k=k) for k in (0, 5 * D))
    late = _at(rows, n=6 * D, k=0) - _at(rows, n=6 * D, k=5 * D)
    over = 20 / 21 / 8 / (before - _at(rows, n=D, k=20 * D)) - 1
    caption = [
        f"d = {D}; points are real gradient steps, bars 3 standard errors.",
        "As in the paper, more training queries lower the risk, the gain saturates in k/d and fades as context grows.",
        f"At n = d one step on k = 5d queries takes the risk from {before:.3f} to {after:.3f},",
        f"worth a context {_equal_context(after):.2f} times as long; at n = 6d it gains {late:.4f}.",
        "Finite size: the large-d gain k/(k+d) d^3/(n+d)^3 (dotted, k/d = 20)",
        f"is {over:.0%} above the exact one at n = d.",
    ]
    title = "a. Risk against context; a new context at prediction"
    return Figure("fresh context", title, "context rows n / d", rows, " ".join(caption))


def _shared(rows: list[Row]) -> Figure:
    before, after = (_at(rows, n=D, k=k) for k in (0, 5 * D))
    limit, exact = _at(rows, "limit", n=D, k=20 * D), _at(rows, n=D, k=20 * D)
    caption = [
        "The context of TTT is the one read at prediction, as the classifier does. One step gains far more:",
        f"at n = d, k = 5d the risk goes from {before:.3f} to {after:.3f}, worth a context {_equal_context(after):.1f}",
        "times as long. The paper's scaling is that of panel a; here the large-d gain is k/(k+d) d/(n+d)",
        f"(dotted, k/d = 20). Finite size costs more: at n = d that limit leaves {limit:.3f}, the exact risk is",
        f"{exact:.3f}.",
    ]
    title = "b. Risk against context; the same context at prediction"
    scales = ("linear", "log")
    return Figure("shared context", title, "context rows n / d", rows, " ".join(caption), scales=scales)


def _transition(rows: list[Row]) -> Figure:
    small, large = (next(row["threshold"] for row in rows if row["d"] == d) for d in (D, 1000))
    cold, warm = (_at(rows, curve=f"{name}, d = {D}", k=10 * D) for name in ("cold", "warm"))
    caption = [
        "n = d. As in the paper, the pretrained (warm) start wins with few queries, the cold start W = 0 with many.",
        f"Finite size moves the crossing from the limit k/d = 1.333 to {large:.3f} (d = 1000)",
        f"and {small:.3f} (d = {D}). At k = 10d the cold start is at {cold:.3f}, the warm one at {warm:.3f} (d = {D}).",
        "All this is for a new context at prediction; with the same context this setting has no crossing.",
    ]
    marks = {f"crossing, d = {D}": small, "limit": 4 / 3}
    title = "c. Warm against cold start"
    return Figure("transition", title, "training queries k / d", rows, " ".join(caption), vertical=marks)


def _threshold(rows: list[Row]) -> Figure:
    exact = [row for row in rows if "shared_context_thresholds" in row]
    last = {d: [row["theory"] for row in exact if row["d"] == d][-1] for d in (20, 1000)}
    without = sorted(row["x"] for row in exact if row["d"] == 20 and row["theory"] is None)
    shared = sum(bool(row["shared_context_thresholds"]) for row in exact)
    caption = [
        "Queries from which on the cold start of panel c wins. A pretrained model that reads a long context is",
        f"harder to beat: at n = 6d it takes k = {last[1000]:.2f}d (d = 1000; limit {49 / 8:.2f}d).",
        f"Finite size raises the threshold ({last[20]:.2f}d at d = 20) and bends it up for short contexts:",
        f"at d = 20 none exists up to n = {max(without):g}d, where the pretrained start always wins."
        if without
        else "at d = 20 it rises steeply there.",
        f"With the same context at prediction {shared} of these {len(exact)} settings have a threshold.",
    ]
    title = "d. Where the cold start takes over"
    scales = ("log", "log")
    return Figure(
        "threshold", title, "context rows n / d", rows, " ".join(caption), y_label="critical k / d", scales=scales
    )


def _alignment(rows: list[Row]) -> Figure:
    after = [row for row in rows if row["curve"] == "warm, after one step"]
    gain = {x: _at(after, "gain", x=x) for x in (0.0, 1.0)}
    limit = _at(rows, curve="warm, before TTT", x=1.0) - _at(after, "limit", x=1.0)
    cold = _at(rows, curve="cold, after one step", x=1.0)
    ahead = min(row["x"] for row in after if row["theory"] > cold)
    caption = [
        f"S = I, n = d = {D}, k = 2d. Prior variances 1/j; the task's squared coefficients move from the prior's",
        "order (0) to the reverse (1). As in the paper, the worse the prior fits, the more one step gains:",
        f"{gain[0.0]:.3f} at 0, {gain[1.0]:.3f} at 1. The cold start does not depend on the prior ({cold:.3f})",
        f"and is ahead from {ahead:.1f} on.",
        f"Finite size: the large-d gain k/(k+d) A^2/(A+B) (dotted) is {limit / gain[1.0] - 1:.0%} too large at 1.",
    ]
    title = "e. Prior-task alignment"
    return Figure("alignment", title, "share of the reversed order", rows, " ".join(caption))


def _steps(rows: list[Row]) -> Figure:
    shares, fixed = [], []
    for curve in dict.fromkeys(row["curve"] for row in rows if "simulated" in row):
        own = [row for row in rows if row["curve"] == curve]
        before, first, *more = [row["simulated"] for row in own]
        shares.append(f"{curve} {(before - first) / (before - min(first, *more)):.0%}")
        fixed.append(f"{curve} {own[0]['fixed_step_size']['theory']:.3f}")
    caption = [
        f"n = d = {D}, k = 5d; step sizes normalised by each sample's curvature, best factor per number of steps.",
        f"The first step's share of the best gain in up to {max(row['x'] for row in rows)} steps: {'; '.join(shares)}.",
        f"One step at the fixed size of the closed form reaches {'; '.join(fixed)}.",
        "The paper treats one step. With a new context more steps add little, and no weight gets below the floor;",
        "with the same context they go on, since k > d noiseless queries determine the task.",
    ]
    title = "f. Several gradient steps against one"
    scales = ("linear", "log")
    text = " ".join(caption)
    return Figure("steps", title, "gradient steps", rows, text, scales=scales, join_points=True)


def _shown(row: Row, curve: str, x: float) -> Row:
    return {"curve": curve, "x": x, "simulated": row["relative_risk"], "standard_error": row["standard_error"]}


def _transformer_queries(rows: list[Row], cost: Row) -> Figure:
    longest = max(row["k"] for row in rows)
    shifted = [row for row in rows if row["shift"] == 1.0]
    shown = [
        _shown(row, f"{row['start']}, {row['steps']}", row["k"])
        for steps in ("before", "10 Adam", "30 Adam")
        for row in shifted
        if row["steps"] == steps
    ]
    numbers = []
    for steps in ("before", "1 plain", "10 Adam", "30 Adam"):
        cold, warm = (_at(shifted, "relative_risk", start=s, steps=steps, k=longest) for s in STARTS)
        numbers.append(f"{steps} {cold:.3f} | {warm:.3f}")
    ahead = {steps: _queries_where_random_leads(shifted, steps) for steps in ("3 Adam", "10 Adam", "30 Adam")}
    caption = [
        f"{cost['layers']} layers, width {cost['width']}, {cost['parameters']:,} parameters, pretrained for",
        f"{cost['pretrain_steps']:,} steps on tasks in {cost['known']} of d = {cost['d']} coordinates, n = {cost['n']}",
        f"(risk {cost['curve'][-1][1]:.4f} there), tested on tasks in the others. k = {longest}, random | pretrained:",
        "; ".join(numbers) + ".",
        "The random start is ahead by over 2 standard errors at "
        + "; ".join(f"{where} after {steps}" for steps, where in ahead.items())
        + ".",
        "As in the paper, a random start can beat a pretrained one on a shifted task; at this size the number of steps",
        "matters more than k. Bars: 3 standard errors over tasks.",
    ]
    title = "g. Small transformer under full task shift"
    scales = ("log", "log")
    text = " ".join(caption)
    return Figure(
        "transformer queries", title, "training queries k", shown, text, RELATIVE, scales=scales, join_points=True
    )


def _queries_where_random_leads(rows: list[Row], steps: str) -> str:
    leads = [k for k in sorted({row["k"] for row in rows}) if _random_leads(rows, steps=steps, k=k)]
    return "k = " + ", ".join(map(str, leads)) if leads else "no k"


def _random_leads(rows: list[Row], **cell: Any) -> bool:
    """Whether the random start is ahead by more than two standard errors of the difference, taken as unpaired."""
    risk, error = ([_at(rows, key, start=s, **cell) for s in STARTS] for key in ("relative_risk", "standard_error"))
    return risk[1] - risk[0] > 2 * math.hypot(*error)


def _transformer_shift(rows: list[Row]) -> Figure:
    rows = [row for row in rows if row["steps"] == "10 Adam"]
    ends = (min(row["k"] for row in rows), max(row["k"] for row in rows))
    shown = [_shown(row, f"{row['start']}, k = {row['k']}", row["shift"]) for row in rows if row["k"] in ends]

    def risk(start: str, k: int, shift: float) -> float:
        return _at(rows, "relative_risk", start=start, k=k, shift=shift)

    shifts = sorted({row["shift"] for row in rows})
    first = {k: [shift for shift in shifts if _random_leads(rows, k=k, shift=shift)] for k in ends}
    where = [f"from {min(ahead):g} on for k = {k}" if ahead else f"nowhere for k = {k}" for k, ahead in first.items()]
    caption = [
        "The same models after 10 Adam steps, against the share of the task that lies where pretraining never was",
        f"(rates chosen on other tasks). The random start is ahead by over 2 standard errors {' and '.join(where)}.",
        f"Without shift the pretrained one is at {risk('pretrained', ends[1], 0.0):.4f}, the random one at",
        f"{risk('random', ends[1], 0.0):.3f} (k = {ends[1]}). Softmax attention, layer norms and Adam lie outside the",
        "closed form: the direction is what is compared with panels c and e.",
    ]
    title = "h. Small transformer against task shift"
    scales = ("linear", "log")
    text = " ".join(caption)
    label = "share of the task outside the prior"
    return Figure("transformer shift", title, label, shown, text, RELATIVE, scales=scales, join_points=True)
