"""The table of update rules; whoever needs a rule's name, sizes or kind of step reads it here. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """One update rule.

    Parameters
    ----------
    summary : str
        One line for help texts.
    matrices, vectors : {"gradient", "running", "orthogonal", "adam"}
        Along what a matrix or a vector (bias, norm gain) moves: its gradient, the running gradient, that one
        orthogonalised, or Adam's corrected moments. Vectors have no singular values, so none is "orthogonal".
    step_size : float
        Middle of the candidates in the race of gradient steps.
    memory_step_size : float
        Step size of a memory's SwiGLU weights.
    """

    summary: str
    matrices: str
    vectors: str
    step_size: float
    memory_step_size: float

    @property
    def is_orthogonal(self) -> bool:
        """Whether matrices move along orthogonal factors, so that row norms mean something to it."""
        return self.matrices == "orthogonal"

    def moves_along(self, n_axes: int) -> str:
        """Along what an entry of a stack moves: one of three axes holds matrices, one of two vectors."""
        return self.matrices if n_axes == 3 else self.vectors


RULES = {
    "sgd": Rule("plain gradient steps", "gradient", "gradient", 0.1, 1.0),
    "momentum": Rule("gradient steps with momentum", "running", "running", 0.03, 0.3),
    "muon": Rule("orthogonalised momentum, AdamW for vectors", "orthogonal", "adam", 8e-3, 0.06),
    "adamw": Rule("Adam with decoupled weight decay", "adam", "adam", 1e-3, 0.01),
}
"""By name; a further row is a further rule, everywhere."""
