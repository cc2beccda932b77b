"""What an adaptation leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from tttabpfn.report import AdaptationReport

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Adaptation:
    """Fast weights and how they came about.

    Parameters
    ----------
    tensors : dict of str to Tensor
        Fast weights by name; empty if the frozen model predicts.
    report : AdaptationReport
        What happened.
    """

    tensors: dict[str, Tensor]
    report: AdaptationReport
