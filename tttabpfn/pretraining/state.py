"""Checkpoints to resume a training run from, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tttabpfn.pretraining.muon import MuonAdamW


def path(out: str | Path) -> Path:
    """Path of the checkpoint in the folder of a run."""
    return Path(out) / "state.pt"


def save(
    out: str | Path, model: nn.Module, optimizer: MuonAdamW, ema: dict[str, Tensor], step: int, seconds: float
) -> Path:
    """Write everything a run needs to go on, to a scratch file that then replaces the previous checkpoint.

    The tables need no state: a batch depends on the seed and the number of the step alone.

    Parameters
    ----------
    out : str or Path
        Folder of the run.
    model, optimizer, ema
        Weights, optimiser state and running average.
    step : int
        Steps done.
    seconds : float
        Wall-clock spent.

    Returns
    -------
    Path
        The checkpoint.
    """
    target = path(out)
    scratch = target.with_name(target.name + ".part")
    record = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": ema,
        "step": step,
        "seconds": seconds,
    }
    torch.save(record, scratch)
    os.replace(scratch, target)
    return target


def read(file: str | Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint without running any code that it might hold.

    Parameters
    ----------
    file : str or Path
        The checkpoint.
    device : torch.device
        Where the tensors go.

    Returns
    -------
    dict
        What `save` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    if not Path(file).exists():
        raise FileNotFoundError(f"no checkpoint {file}")
    return torch.load(file, map_location=device, weights_only=True)


def load(
    file: str | Path,
    model: nn.Module,
    optimizer: MuonAdamW,
    ema: dict[str, Tensor],
    device: torch.device,
) -> tuple[int, float]:
    """Restore a run in place.

    Parameters
    ----------
    file : str or Path
        The checkpoint.
    model, optimizer, ema
        Objects to fill; they must have been built from the same configuration.
    device : torch.device
        Where the tensors go.

    Returns
    -------
    step : int
        Steps done.
    seconds : float
        Wall-clock spent.
    """
    record = read(file, device)
    model.load_state_dict(record["model"])
    optimizer.load_state_dict(record["optimizer"])
    for name, value in record["ema"].items():
        ema[name].copy_(value)
    return int(record["step"]), float(record["seconds"])
