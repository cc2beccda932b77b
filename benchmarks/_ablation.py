"""From test losses along paths to the choice of a configuration, and how well such a choice carries over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from _running import group_by
from numpy.typing import NDArray

Configuration = tuple[str, int]


def summarise(rows: list[dict[str, Any]], worst: float) -> dict[str, Any]:
    """Everything that is made of the rows, on the splits that the variations compared have in common."""
    result: dict[str, Any] = {"effects": effects(rows), "one_step": one_step(rows)}
    paths = [row for row in rows if not row["whole"]]
    cells, names, losses, frozen = table_of_losses(paths)
    if not names:
        return result
    mean, harm = losses.mean(axis=1), (losses - frozen).max(axis=1)
    order = np.argsort(mean)
    result["configurations"] = [
        {"variant": names[i][0], "steps": names[i][1], "log_loss": mean[i], "worst_above_frozen": harm[i]}
        for i in order
    ]
    best = choose(losses, frozen, worst)
    result["cells"] = len(cells)
    result["frozen_log_loss"] = float(frozen.mean())
    result["winner"] = None if best is None else _described(names[best], losses[best], frozen)
    result["cross_validation"] = cross_validate(cells, names, losses, frozen, worst)
    return result


def table_of_losses(
    rows: list[dict[str, Any]],
) -> tuple[list[tuple[Any, ...]], list[Configuration], NDArray[np.float64], NDArray[np.float64]]:
    """Losses by configuration and cell (table, seed, context share), on cells that all variations have."""
    n_variants = len({row["variant"] for row in rows})
    cells = {k: part for k, part in group_by(rows, "table", "seed", "share").items() if len(part) == n_variants}
    found: dict[Configuration, list[float]] = {}
    for part in cells.values():
        for row in part:
            # A path that ended early, because its loss was not finite, stays as bad as it gets.
            for steps, loss in zip(row["steps"], row["losses"], strict=True):
                found.setdefault((row["variant"], steps), []).append(loss if np.isfinite(loss) else np.inf)
    names = [name for name, losses in found.items() if len(losses) == len(cells)]
    losses = np.array([found[name] for name in names]).reshape(len(names), len(cells))
    frozen = np.array([part[0]["frozen"] for part in cells.values()])
    return list(cells), names, losses, frozen


def choose(losses: NDArray[np.float64], frozen: NDArray[np.float64], worst: float) -> int | None:
    """The configuration of lowest mean loss among those that are never worse than frozen by more than `worst`."""
    mean, harm = losses.mean(axis=1), (losses - frozen).max(axis=1)
    allowed = np.where((harm <= worst) & np.isfinite(mean), mean, np.inf)
    best = int(np.argmin(allowed))
    return best if np.isfinite(allowed[best]) else None


def cross_validate(
    cells: list[tuple[Any, ...]],
    names: list[Configuration],
    losses: NDArray[np.float64],
    frozen: NDArray[np.float64],
    worst: float,
) -> dict[str, Any] | None:
    """Choose on all tables but one, score on that one."""
    tables = np.array([cell[0] for cell in cells])
    held_out = {}
    for table in dict.fromkeys(tables):
        here = tables == table
        best = None if here.all() else choose(losses[:, ~here], frozen[~here], worst)
        if best is not None:
            held_out[str(table)] = _described(names[best], losses[best, here], frozen[here])
    if not held_out:
        return None
    return {
        "log_loss": float(np.mean([item["log_loss"] for item in held_out.values()])),
        "frozen_log_loss": float(np.mean([item["frozen"] for item in held_out.values()])),
        "worst_above_frozen": max(item["worst_above_frozen"] for item in held_out.values()),
        "tables": held_out,
    }


def effects(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each variation against the default of its kind, cell by cell, at the end of the path."""
    found = []
    references = {False: "default", True: "whole default"}
    kept = {row["variant"] for row in rows}
    if "whole default" not in kept:
        references[True] = "whole gradient"
    for (group, variant), part in group_by(rows, "group", "variant").items():
        reference = {
            (row["table"], row["seed"], row["share"]): row
            for row in rows
            if row["variant"] == references[part[0]["whole"]]
        }
        pairs = [(row, reference.get((row["table"], row["seed"], row["share"]))) for row in part]
        both = [(row["log_loss"], other["log_loss"], row["frozen"]) for row, other in pairs if other is not None]
        if not both:
            continue
        own, other, frozen = np.array(both).T
        difference = own - other
        found.append(
            {
                "group": group,
                "variant": variant,
                "cells": len(both),
                "log_loss": float(own.mean()),
                "difference": float(difference.mean()),
                "standard_error": float(difference.std(ddof=1) / np.sqrt(len(both))) if len(both) > 1 else None,
                "worst_above_frozen": float((own - frozen).max()),
                "seconds": float(np.median([row["seconds"] for row, other in pairs if other is not None])),
            }
        )
    return sorted(found, key=lambda item: (item["group"], item["log_loss"]))


def one_step(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The gain in mean log loss of the best single step, as share of the gain of the default's whole path."""
    single = [row for row in rows if row["group"] == "one_step"]
    default = {(row["table"], row["seed"], row["share"]): row for row in rows if row["variant"] == "default"}
    names = {row["variant"] for row in single}
    cells = {
        k: p for k, p in group_by(single, "table", "seed", "share").items() if len(p) == len(names) and k in default
    }
    if not cells:
        return None
    frozen = float(np.mean([default[key]["frozen"] for key in cells]))
    path = float(np.mean([default[key]["log_loss"] for key in cells]))
    means = {name: float(np.mean([_loss(part, name) for part in cells.values()])) for name in names}
    best = min(means, key=means.__getitem__)
    oracle = float(np.mean([min(_finite(row["log_loss"]) for row in part) for part in cells.values()]))
    return {
        "cells": len(cells),
        "frozen": frozen,
        "default_path": path,
        "best_step": best,
        "best_step_log_loss": means[best],
        "share_of_gain": (frozen - means[best]) / (frozen - path),
        "best_step_in_each_cell_log_loss": oracle,
        "share_of_gain_best_in_each_cell": (frozen - min(oracle, frozen)) / (frozen - path),
        "by_step": dict(sorted(means.items(), key=lambda item: item[1])),
    }


def _loss(part: list[dict[str, Any]], name: str) -> float:
    return next(_finite(row["log_loss"]) for row in part if row["variant"] == name)


def _finite(loss: float) -> float:
    return loss if np.isfinite(loss) else np.inf


def _described(name: Configuration, losses: NDArray[np.float64], frozen: NDArray[np.float64]) -> dict[str, Any]:
    return {
        "variant": name[0],
        "steps": name[1],
        "log_loss": float(losses.mean()),
        "frozen": float(frozen.mean()),
        "worst_above_frozen": float((losses - frozen).max()),
    }


def tell(result: dict[str, Any]) -> None:
    """Print the summary."""
    for item in result["effects"]:
        error = "" if item["standard_error"] is None else f" +- {item['standard_error']:.4f}"
        print(
            f"{item['group']:10s} {item['variant']:34s} log loss {item['log_loss']:.4f}, against the default "
            f"{item['difference']:+.4f}{error}, worst above frozen {item['worst_above_frozen']:+.4f}, "
            f"{item['seconds']:.1f} s, {item['cells']} cells"
        )
    for name in ("winner", "one_step"):
        print(f"{name}: {result.get(name)}")
    validated = result.get("cross_validation")
    if validated:
        print(
            f"chosen on the other tables: log loss {validated['log_loss']:.4f}, frozen "
            f"{validated['frozen_log_loss']:.4f}, worst above frozen {validated['worst_above_frozen']:+.4f}"
        )


def draw(result: dict[str, Any], path: str | Path) -> None:
    """Difference of every variation's mean log loss to the default's, group by group."""
    from matplotlib.figure import Figure

    items = result["effects"]
    if not items:
        return
    figure = Figure(figsize=(9, 1.2 + 0.24 * len(items)), layout="constrained")
    ax = figure.subplots()
    positions = np.arange(len(items))[::-1]
    groups = list(dict.fromkeys(item["group"] for item in items))
    limit = 1.2 * np.percentile([abs(item["difference"]) for item in items], 85) + 1e-3
    for position, item in zip(positions, items, strict=True):
        shown = float(np.clip(np.nan_to_num(item["difference"], nan=np.inf), -limit, limit))
        colour = f"C{groups.index(item['group']) % 10}"
        ax.barh(position, shown, color=colour, xerr=item["standard_error"], error_kw={"lw": 0.8})
        if abs(item["difference"]) > limit:
            side = "right" if item["difference"] > 0 else "left"
            ax.text(0, position, f" {item['difference']:+.2f} ", ha=side, va="center", fontsize="x-small")
    ax.set_yticks(positions, [f"{item['group']}: {item['variant']}" for item in items], fontsize="x-small")
    ax.set_xlim(-1.05 * limit, 1.05 * limit)
    ax.axvline(0, color="0.3", lw=0.8)
    ax.set_xlabel(
        "mean test log loss less the default's (left is better; bars: standard error; numbers: off the scale)"
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
