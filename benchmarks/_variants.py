"""Variations of the adaptation around its defaults, in groups; each changes one choice, some at several step sizes."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tttabpfn import TTTTabPFNClassifier
from tttabpfn.adaptation import Recipe, Settings
from tttabpfn.adaptation.settings import DEFAULT_STEP_SIZES

SIZES = (0.3, 1.0, 3.0)


@dataclass(frozen=True)
class Variant:
    """A named variation.

    `factor` multiplies the update rule's default step size. `whole` runs the entire adaptation, with its search, guard
    and last steps, and scores what then predicts; otherwise one path of given step size is scored along the way.
    """

    group: str
    name: str
    settings: dict[str, Any]
    recipe: dict[str, Any]
    factor: float = 1.0
    whole: bool = False

    @property
    def label(self) -> str:
        """The name, with the factor on the step size where it is not 1."""
        return self.name if self.factor == 1.0 else f"{self.name} x{self.factor:g}"

    def resolved(self, seed: int) -> Settings:
        """Settings of the adaptation: the classifier's defaults with the variation applied."""
        changed = {**defaults(), **self.settings, "seed": seed}
        step_size = changed.pop("step_size", None)
        if not self.whole and step_size is None:
            step_size = DEFAULT_STEP_SIZES[changed["update_rule"]]
        if step_size is not None:
            step_size *= self.factor
        return Settings(step_size=step_size, recipe=replace(Recipe(), **self.recipe), **changed)


def defaults() -> dict[str, Any]:
    """The classifier's default parameters, as far as they are settings of an adaptation."""
    parameters = TTTTabPFNClassifier().get_params(deep=False)
    names = ("n_steps", "chunk_size", "update_rule", "fast_weights", "guard", "adaptation", "backend")
    return {name: parameters[name] for name in names}


def variants(groups: list[str], extra: str | None = None, n_steps: int | None = None) -> list[Variant]:
    """Variants of the groups, the default first.

    `extra` is a JSON file of ``{label: {"settings", "recipe", "factor"}}``, `n_steps` is for those that name none.
    """
    found = [Variant("default", "default", {}, {})]
    for group in groups:
        found += BUILDERS[group]()
    if extra is not None:
        for label, item in json.loads(Path(extra).read_text()).items():
            settings, recipe = item.get("settings", {}), item.get("recipe", {})
            found.append(Variant("extra", label, settings, recipe, item.get("factor", 1.0)))
    if n_steps is None:
        return found
    return [replace(variant, settings={"n_steps": n_steps, **variant.settings}) for variant in found]


def _each(group: str, where: str, values: dict[str, Any], factors: tuple[float, ...] = (1.0,)) -> list[Variant]:
    """One variant for every value of every parameter, at every factor; the default's own value is left out."""
    own = {**defaults(), **{name: getattr(Recipe(), name) for name in Recipe.__dataclass_fields__}}
    made = []
    for parameter, options in values.items():
        for option in options:
            for factor in factors:
                if option == own[parameter] and factor == 1.0:
                    continue
                settings, recipe = ({parameter: option}, {}) if where == "settings" else ({}, {parameter: option})
                made.append(Variant(group, f"{parameter}={option}", settings, recipe, factor))
    return made


def _rules() -> list[Variant]:
    return _each("rule", "settings", {"update_rule": ["adamw", "muon", "momentum", "sgd"]}, SIZES)


def _norms() -> list[Variant]:
    """LaCT's rule as it is (orthogonal steps, row norms restored), and its parts; the scales differ in their unit."""
    sizes = {"match_rms": DEFAULT_STEP_SIZES["muon"], "lact": 0.01, "relative": 0.01}
    return [
        Variant(
            "norm", f"muon {scale}{' norms' if norms else ''}", {"update_rule": "muon", "step_size": size}, recipe, f
        )
        for scale, size in sizes.items()
        for norms in (False, True)
        for recipe in [{"scale": scale, "restore_norms": norms}]
        for f in SIZES
    ]


def _one_step() -> list[Variant]:
    """The paper's algorithm: one step on all queries from the predicting context, at many sizes."""
    recipe = {"members_per_step": 64, "warm_up_share": 0.0}
    sizes = {
        "sgd": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        "muon": (1e-3, 3e-3, 0.01, 0.03),
        "adamw": (3e-4, 1e-3, 3e-3, 0.01),
    }
    return [
        Variant("one_step", f"one step {rule} {size:g}", {**one, "update_rule": rule, "step_size": size}, recipe)
        for one in [{"n_steps": 1, "chunk_size": 100_000}]
        for rule, own in sizes.items()
        for size in own
    ]


def _pipeline() -> list[Variant]:
    """Choices of search, guard and last steps, which only a whole adaptation shows."""
    values: dict[str, list[Any]] = {
        "train_on_held_back": [True, False],
        "evidence": [0.0, 1.0, 2.0],
        "held_back_share": [0.1, 0.25, 0.4],
        "n_checkpoints": [3, 6, 12],
        "trial_share": [0.1, 0.2, 0.4],
        "step_size_factors": [(1.0,), (0.3, 1.0, 3.0), (0.5, 1.0, 2.0, 4.0)],
    }
    made = [Variant("pipeline", "whole default", {}, {}), Variant("pipeline", "guard=False", {"guard": False}, {})]
    made += _each("pipeline", "recipe", {name: options for name, options in values.items() if hasattr(Recipe(), name)})
    return [replace(variant, whole=True) for variant in made]


def _adaptations() -> list[Variant]:
    """Gradient steps, the memory on row embeddings, and both."""
    kinds = ("gradient", "memory", "both")
    return [Variant("adaptation", f"whole {kind}", {"adaptation": kind}, {}, whole=True) for kind in kinds]


BUILDERS = {
    "rule": _rules,
    "one_step": _one_step,
    "weights": lambda: _each(
        "weights", "settings", {"fast_weights": ["in_context", "all", "mlp", "attention", "last_quarter"]}
    ),
    "steps": lambda: _each("steps", "settings", {"n_steps": [10, 20, 40, 80, 120]}),
    "chunk": lambda: _each("chunk", "settings", {"chunk_size": [32, 64, 128, 256, 512]}),
    "members": lambda: _each("members", "recipe", {"members_per_step": [1, 2, 4]}),
    "schedule": lambda: _each("schedule", "recipe", {"warm_up_share": [0.0, 0.1, 0.3], "final_share": [0.0, 0.1, 1.0]}),
    "norm": _norms,
    "pipeline": _pipeline,
    "adaptation": _adaptations,
}
