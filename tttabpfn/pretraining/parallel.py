"""Data parallelism: processes that draw their own tables of every batch and make the same update."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Team:
    """One process's place among those that train together.

    Parameters
    ----------
    rank : int
        Number of this process; 0 leads: it alone reports and writes.
    size : int
        How many there are.

    Examples
    --------
    >>> Team().sum(torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process reports and writes."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over the processes, in place; each of them gets the sum."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def leaders(self, value: float) -> float:
        """Return the leader's value, so that all decide alike."""
        if self.size == 1:
            return value
        return float(self.sum(torch.tensor(value if self.leads else 0.0, dtype=torch.float64)))


def _join(rank: int, size: int, store: str, train: Callable[..., object], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // size))
    distributed.init_process_group("gloo", init_method=Path(store).as_uri(), rank=rank, world_size=size)
    try:
        train(Team(rank, size), *args)
    finally:
        distributed.destroy_process_group()


def launch(processes: int, train: Callable[..., object], *args: Any) -> None:
    """Run ``train(team, *args)`` in one or several processes, and wait for them.

    With one process it runs in this one. Several run on CPU cores, which they share equally: small models keep one core
    busy much better than two.

    Parameters
    ----------
    processes : int
        How many.
    train : callable
        Function of a module, so that a new process finds it.
    *args
        Its further arguments.

    Raises
    ------
    torch.multiprocessing.ProcessRaisedException
        If one of the processes failed; the others are stopped.
    """
    if processes == 1:
        train(Team(), *args)
        return
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder).resolve() / "store")
        torch.multiprocessing.spawn(_join, (processes, store, train, args), nprocs=processes)
