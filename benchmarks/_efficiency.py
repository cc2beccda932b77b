"""From test scores at context sizes to curves with bands, context-reduction factors and the share of harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from _running import group_by
from numpy.typing import NDArray

METRICS = {"log_loss": "Log loss", "accuracy": "Accuracy", "roc_auc_ovo": "ROC AUC"}
HARM = 0.01
N_BOOTSTRAP = 2000
SHARES = (1 / 10, 1 / 5, 1 / 3, 1.0)
Curve = dict[int, dict[str, float]]


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything that is made of the rows; pairs of which one side is missing play no part."""
    pairs = _pairs(rows)
    parts = {"small": [p for p in pairs if not p["large"]], "large": [p for p in pairs if p["large"]]}
    result: dict[str, Any] = {
        name: {"curves": mean_curves(part), "shares": at_shares(part), "harm": harm(part)}
        for name, part in parts.items()
        if part
    }
    result["reduction"] = {table: reduction(part) for (table,), part in group_by(pairs, "table").items()}
    factors = [found["factor"] for found in result["reduction"].values() if found["factor"] is not None]
    result["reduction_geometric_mean"] = float(np.exp(np.mean(np.log(factors)))) if factors else None
    result["tables"] = {table: table_curves(part) for (table,), part in group_by(pairs, "table").items()}
    return result


def _pairs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Frozen and TTT on the same split and context."""
    pairs = []
    for (table, seed, context), both in group_by(rows, "table", "seed", "context").items():
        models = {row["model"]: row for row in both}
        if len(models) == 2:
            scores = {m: {metric: row[metric] for metric in METRICS} for m, row in models.items()}
            facts = {"n_train": models["ttt"]["n_train"], "large": models["ttt"]["large"]}
            pairs.append({"table": table, "seed": seed, "context": context, **facts, **scores})
    return pairs


def mean_curves(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over tables and seeds at every context size, with 90 % bootstrap bands over tables and seeds.

    A table smaller than a context size counts with its largest context: so every point is a mean over the same tables.
    Only tables and seeds that have all sizes up to their own count.
    """
    splits = group_by(pairs, "table", "seed")
    grid = sorted({p["context"] for p in pairs if p["context"] & (p["context"] - 1) == 0})
    largest = {table: max(p["context"] for p in part) for (table,), part in group_by(pairs, "table").items()}
    grid = [*grid, max(largest.values())] if grid and grid[-1] < max(largest.values()) else grid
    whole: dict[str, list[NDArray[np.float64]]] = {}
    for (table, _), part in splits.items():
        own = {p["context"]: p for p in part}
        wanted = [min(size, largest[table]) for size in grid]
        if all(size in own for size in wanted):
            values = [[[own[s][m][metric] for s in wanted] for metric in METRICS] for m in ("frozen", "ttt")]
            whole.setdefault(table, []).append(np.array(values))
    if not whole:
        return {}
    mean, low, high = bootstrap(list(whole.values()))
    result: dict[str, Any] = {"context": grid, "tables": sorted(whole), "n_splits": sum(map(len, whole.values()))}
    for i, model in enumerate(("frozen", "ttt")):
        result[model] = {
            metric: {"mean": list(mean[i, j]), "low": list(low[i, j]), "high": list(high[i, j])}
            for j, metric in enumerate(METRICS)
        }
    frozen, adapted = (result[model]["log_loss"]["mean"] for model in ("frozen", "ttt"))
    result["factor"] = equal_score_factors(grid, frozen, adapted)
    return result


def bootstrap(tables: list[list[NDArray[np.float64]]]) -> tuple[NDArray[np.float64], ...]:
    """Mean over tables of means over seeds, and its 5th and 95th percentile when tables and their seeds are redrawn."""
    rng = np.random.default_rng(0)
    mean = np.mean([np.mean(seeds, axis=0) for seeds in tables], axis=0)
    draws = []
    for _ in range(N_BOOTSTRAP):
        chosen = [tables[i] for i in rng.integers(len(tables), size=len(tables))]
        draws.append(
            np.mean([np.mean([s[j] for j in rng.integers(len(s), size=len(s))], axis=0) for s in chosen], axis=0)
        )
    low, high = np.percentile(draws, [5, 95], axis=0)
    return mean, low, high


def equal_score_factors(sizes: list[int], frozen: list[float], adapted: list[float]) -> list[dict[str, Any]]:
    """For each context of TTT, how many times more rows the frozen model needs for the same log loss.

    Interpolated in the logarithm of the size, along the best loss up to each size. `bound` says that the frozen model
    does not get there with all rows ("at least") or is there with the smallest context already ("at most").
    """
    best = np.minimum.accumulate(frozen)
    found = []
    for size, loss in zip(sizes, adapted, strict=True):
        if loss < best[-1]:
            found.append({"context": size, "factor": sizes[-1] / size, "bound": "at least"})
        elif loss > best[0]:
            found.append({"context": size, "factor": sizes[0] / size, "bound": "at most"})
        else:
            needed = float(np.exp(np.interp(-loss, -best, np.log(sizes))))
            found.append({"context": size, "factor": needed / size, "bound": None})
    return found


def table_curves(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean log loss over seeds at every context size of one table."""
    sizes = sorted({p["context"] for p in pairs})
    by_size = {size: [p for p in pairs if p["context"] == size] for size in sizes}
    curves = {m: [float(np.mean([p[m]["log_loss"] for p in by_size[s]])) for s in sizes] for m in ("frozen", "ttt")}
    return {"context": sizes, "n_train": pairs[0]["n_train"], "large": pairs[0]["large"], **curves}


def reduction(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """How many times fewer rows TTT needs for the frozen model's loss with its largest context.

    Interpolated in the logarithm of the size; None if no context of TTT gets there, a bound if the smallest one does.
    """
    curves = table_curves(pairs)
    sizes, target, losses = curves["context"], min(curves["frozen"]), curves["ttt"]
    per_size = equal_score_factors(sizes, curves["frozen"], losses)
    reached = next((i for i, loss in enumerate(losses) if loss <= target), None)
    if reached is None:
        return {"factor": None, "context": None, "target": target, "per_context": per_size}
    if reached == 0:
        needed, bound = float(sizes[0]), "at least"
    else:
        pair = slice(reached - 1, reached + 1)
        needed = float(np.exp(np.interp(-target, -np.array(losses[pair]), np.log(sizes[pair]))))
        bound = None
    most = sizes[int(np.argmin(curves["frozen"]))]
    return {"factor": most / needed, "bound": bound, "context": needed, "target": target, "per_context": per_size}


def at_shares(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means at shares of the training rows, over the splits that have the share and all rows."""
    result = {}
    for share in SHARES:
        cells: dict[str, list[dict[str, dict[str, float]]]] = {}
        for (table, _), part in group_by(pairs, "table", "seed").items():
            own = {p["context"]: p for p in part}
            here = own.get(round(share * part[0]["n_train"]))
            full = own.get(max(own)) if max(own) >= 0.99 * part[0]["n_train"] else None
            if here and full:
                cells.setdefault(table, []).append(
                    {"frozen": here["frozen"], "ttt": here["ttt"], "frozen_all": full["frozen"]}
                )
        if cells:
            means = {
                m: {k: float(np.mean([np.mean([c[m][k] for c in part]) for part in cells.values()])) for k in METRICS}
                for m in ("frozen", "ttt", "frozen_all")
            }
            result[f"1/{round(1 / share)}"] = {**means, "tables": len(cells), "splits": sum(map(len, cells.values()))}
    return result


def harm(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Share of (table, seed) pairs where TTT's log loss is worse than the frozen one's by more than 0.01, by size."""
    worse = [{**p, "worse": p["ttt"]["log_loss"] - p["frozen"]["log_loss"] > HARM} for p in pairs]
    by_size = {
        size: {"share": float(np.mean([p["worse"] for p in part])), "pairs": len(part)}
        for (size,), part in sorted(group_by(worse, "context").items())
    }
    splits = group_by(worse, "table", "seed").values()
    return {
        "of_all": float(np.mean([p["worse"] for p in worse])),
        "of_splits_at_any_size": float(np.mean([any(p["worse"] for p in part) for part in splits])),
        "pairs": len(worse),
        "worst": float(max(p["ttt"]["log_loss"] - p["frozen"]["log_loss"] for p in pairs)),
        "where": sorted({(p["table"], p["seed"], p["context"]) for p in worse if p["worse"]}),
        "by_context": by_size,
    }


def tell(result: dict[str, Any]) -> None:
    """Print the summary."""
    for part in ("small", "large"):
        for share, means in result.get(part, {}).get("shares", {}).items():
            cells = "  ".join(
                f"{m} {means[m]['log_loss']:.4f}/{means[m]['accuracy']:.4f}/{means[m]['roc_auc_ovo']:.4f}"
                for m in ("frozen", "ttt", "frozen_all")
            )
            print(f"{part} tables, {share} of the rows: {cells} ({means['tables']} tables, {means['splits']} splits)")
        if part in result:
            hurt = result[part]["harm"]
            print(f"{part} tables: TTT worse by > {HARM} in {hurt['of_all']:.1%} of {hurt['pairs']} pairs")
    for table, found in result["reduction"].items():
        factor = "-" if found["factor"] is None else f"{found['factor']:.1f}"
        print(f"{table:24s} context reduction {found.get('bound') or ''} {factor}")


def draw(result: dict[str, Any], path: str | Path) -> None:
    """The figure: mean scores against context size, and the log loss of each table."""
    from matplotlib.figure import Figure

    curves = result.get("small", {}).get("curves", {}) or result.get("large", {}).get("curves", {})
    tables = result["tables"]
    columns = max(1, min(6, len(tables)))
    lines = -(-len(tables) // columns)
    figure = Figure(figsize=(15, 4.6 + 2.1 * lines), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[4.2, 2.1 * lines])
    for ax, (metric, title) in zip(top.subplots(1, 3), METRICS.items(), strict=True):
        for model, colour, label in (("frozen", "0.4", "frozen TabPFN"), ("ttt", "C0", "TTT")):
            if curves:
                values = curves[model][metric]
                ax.plot(curves["context"], values["mean"], "o-", color=colour, label=label)
                ax.fill_between(curves["context"], values["low"], values["high"], color=colour, alpha=0.2, lw=0)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.set_xlabel("context rows")
        ax.set_title(f"{title} ({'lower' if metric == 'log_loss' else 'higher'} is better)")
        if curves:
            ax.legend()
    if curves:
        top.suptitle(f"Mean of {len(curves['tables'])} tables, {curves['n_splits']} splits; 90 % bootstrap bands")
    grid = bottom.subplots(lines, columns, squeeze=False).ravel()
    for ax, (name, own) in zip(grid, sorted(tables.items()), strict=False):
        ax.plot(own["context"], own["frozen"], ".-", color="0.4")
        ax.plot(own["context"], own["ttt"], ".-", color="C0")
        ax.axhline(min(own["frozen"]), color="0.4", lw=0.8, ls=":")
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.set_title(f"{name} ({own['n_train']:,} demonstrations)", fontsize="small")
        ax.tick_params(labelsize="x-small")
    for ax in grid[len(tables) :]:
        ax.set_axis_off()
    bottom.suptitle("Log loss of each table; dotted: the frozen model's best")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
