"""Training configurations: small TOML files, read into typed and checked dataclasses."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRECISIONS = ("float32", "bfloat16", "bfloat16_products")
CONFIG_DIR = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class PriorConfig:
    """How often each ingredient occurs in a synthetic table.

    Parameters
    ----------
    families : dict of str to float
        Relative frequency of the task families ``function``, ``graph`` and ``cluster``, and of ``rule`` and
        ``categorical``, which may be left out.
    categorical, missing, junk, redundant, products, label_noise, rare : float
        Probability that a table has categorical columns, missing cells, uninformative columns, columns computed from
        others, products of two columns among its columns, flipped labels, or columns of many rare levels.
    """

    families: dict[str, float] = field(default_factory=lambda: {"function": 0.4, "graph": 0.35, "cluster": 0.25})
    categorical: float = 0.4
    missing: float = 0.15
    junk: float = 0.3
    redundant: float = 0.25
    products: float = 0.0
    label_noise: float = 0.3
    rare: float = 0.0


@dataclass(frozen=True)
class PhaseConfig:
    """One phase of the curriculum.

    Parameters
    ----------
    until : float
        Share of the whole schedule, in (0, 1], at which the phase ends.
    rows, columns : tuple of two int
        Smallest and largest table; both are drawn log-uniformly, once a batch.
    max_classes : int
        Largest number of classes.
    """

    until: float
    rows: tuple[int, int]
    columns: tuple[int, int]
    max_classes: int


@dataclass(frozen=True)
class ScheduleConfig:
    """Length of the run, step sizes, and batch size.

    Parameters
    ----------
    minutes : float
        Wall-clock budget, spread over all resumptions; ignored where `steps` is set.
    steps : int
        Optimiser steps; 0 to plan by `minutes`. Only a run planned by steps repeats bit for bit.
    cells : int
        Target number of cells in a batch, ``tables * rows * (columns + 4)``.
    max_tables : int
        Most tables in a batch.
    muon_lr, adamw_lr : float
        Peak step sizes for matrices and for everything else.
    warmup, decay_from : float
        Share of the schedule after which the step size has reached its peak, and from which it falls to zero.
    clip : float
        Largest norm of the gradient.
    ema : float
        Decay of the running average of the weights, per step.
    weight_decay : float
        Decoupled weight decay, relative to the step size.
    """

    minutes: float = 100.0
    steps: int = 0
    cells: int = 60_000
    max_tables: int = 64
    muon_lr: float = 0.02
    adamw_lr: float = 0.002
    warmup: float = 0.01
    decay_from: float = 0.3
    clip: float = 1.0
    ema: float = 0.995
    weight_decay: float = 0.01


@dataclass(frozen=True)
class TrainConfig:
    """Everything a training run depends on.

    Parameters
    ----------
    architecture : str
        A key of ``tabpfn.architectures.ARCHITECTURES``.
    model : dict
        Settings of that architecture, as its configuration class names them.
    inference : dict
        Inference settings stored with the weights, as ``tabpfn.inference_config.InferenceConfig`` names them.
    prior, schedule : PriorConfig, ScheduleConfig
        The data and the plan.
    phases : tuple of PhaseConfig
        The curriculum, in order; the last one ends at 1.
    seed : int
        Seed of the initial weights and of every table.
    precision : {"float32", "bfloat16", "bfloat16_products"}
        Type the forward pass computes in: automatic mixed precision, or bfloat16 in the products of linear maps
        alone, which is the faster way on a CPU.
    kernels : bool
        Whether attention and norms run in kernels compiled for this CPU, where there is a C++ compiler; see
        `tttabpfn.pretraining.fast.faster`.
    compile : bool
        Whether to compile the model with ``torch.compile``.
    workers : int
        Processes that generate tables, for each one that trains; 0 generates them in the training process.
    processes : int
        Processes that train together on parts of every batch, one share of the CPU's cores each.
    """

    architecture: str
    model: dict[str, Any]
    inference: dict[str, Any]
    prior: PriorConfig
    schedule: ScheduleConfig
    phases: tuple[PhaseConfig, ...]
    seed: int = 0
    precision: str = "float32"
    kernels: bool = False
    compile: bool = False
    workers: int = 1
    processes: int = 1

    def as_dict(self) -> dict[str, Any]:
        """Return the configuration as nested dictionaries of plain values."""
        return dataclasses.asdict(self)


def _build(cls: type, values: dict[str, Any], where: str) -> Any:
    names = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - names)
    if unknown:
        raise ValueError(f"{where}: unknown setting {unknown[0]!r}; allowed are {', '.join(sorted(names))}")
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error


def parse_config(values: dict[str, Any]) -> TrainConfig:
    """Check a configuration given as nested dictionaries and return it typed.

    Parameters
    ----------
    values : dict
        The parsed TOML file.

    Returns
    -------
    TrainConfig

    Raises
    ------
    ValueError
        If a setting is unknown, missing or out of range; the message names it.
    """
    values = dict(values)
    prior = _build(PriorConfig, values.pop("prior", {}), "prior")
    schedule = _build(ScheduleConfig, values.pop("schedule", {}), "schedule")
    phases = []
    for number, phase in enumerate(values.pop("phases", []), start=1):
        phase = {k: tuple(v) if isinstance(v, list) else v for k, v in phase.items()}
        phases.append(_build(PhaseConfig, phase, f"phases, number {number}"))
    config = _build(TrainConfig, {**values, "prior": prior, "schedule": schedule, "phases": tuple(phases)}, "top level")
    _check(config)
    return config


def _check(config: TrainConfig) -> None:
    if not config.phases:
        raise ValueError("phases: at least one is needed")
    ends = [phase.until for phase in config.phases]
    if ends != sorted(set(ends)) or ends[-1] != 1.0 or ends[0] <= 0:
        raise ValueError(f"phases: `until` must rise from above 0 to exactly 1, got {ends}")
    for number, phase in enumerate(config.phases, start=1):
        for name, low in (("rows", 16), ("columns", 1)):
            span = getattr(phase, name)
            if len(span) != 2 or not low <= span[0] <= span[1]:
                raise ValueError(f"phases, number {number}: `{name}` must be [low, high] with low >= {low}, got {span}")
        if not 2 <= phase.max_classes <= config.model.get("max_num_classes", 10):
            raise ValueError(
                f"phases, number {number}: `max_classes` must be from 2 to the model's max_num_classes, "
                f"got {phase.max_classes}"
            )
    needed, known = {"function", "graph", "cluster"}, {"function", "graph", "cluster", "rule", "categorical"}
    families = config.prior.families
    if not needed <= set(families) <= known or min(families.values()) < 0 or not sum(families.values()) > 0:
        raise ValueError(
            f"prior: `families` needs the keys {sorted(needed)}, may have {sorted(known - needed)}, with values >= 0 "
            f"that are not all 0, got {families}"
        )
    for name in ("categorical", "missing", "junk", "redundant", "products", "label_noise", "rare"):
        if not 0 <= getattr(config.prior, name) <= 1:
            raise ValueError(f"prior: `{name}` must be in [0, 1], got {getattr(config.prior, name)}")
    if config.precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}, got {config.precision!r}")
    if config.schedule.steps < 0 or (config.schedule.steps == 0 and config.schedule.minutes <= 0):
        raise ValueError("schedule: `steps` must be >= 0, and `minutes` > 0 where `steps` is 0")
    if config.workers < 0:
        raise ValueError(f"workers must be >= 0, got {config.workers}")
    if config.processes < 1:
        raise ValueError(f"processes must be >= 1, got {config.processes}")


def load_config(path: str | Path) -> TrainConfig:
    """Read a configuration file, or one of the shipped ones by its name.

    Parameters
    ----------
    path : str or Path
        A TOML file, or the name of one shipped with the package: ``gpu``, ``cpu`` and the parts that follow it.

    Returns
    -------
    TrainConfig

    Raises
    ------
    ValueError
        If the file is not valid TOML or a setting is wrong.
    FileNotFoundError
        If there is no such file.

    Examples
    --------
    >>> load_config("cpu").architecture
    'tabpfn_v3'
    """
    shipped = CONFIG_DIR / f"{path}.toml"
    path = shipped if shipped.exists() and not Path(path).exists() else Path(path)
    if not path.exists():
        names = ", ".join(sorted(file.stem for file in CONFIG_DIR.glob("*.toml")))
        raise FileNotFoundError(f"no configuration file {path}; shipped are: {names}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    return parse_config(values)
