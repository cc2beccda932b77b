"""Update rules for fast weights: pure functions on stacks of same-shape matrices.

Letters: B stacks layers, ensemble members or step-size candidates; a matrix entry is [B, D_out, D_in], a vector entry
(bias, norm gain) is [B, D]. Every rule is ``new = weights - step_size * direction`` entry by entry of the stack.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tttabpfn.fast_weights import dispatch
from tttabpfn.fast_weights.newton_schulz import coefficients, compute_dtype, newton_schulz
from tttabpfn.fast_weights.norms import restore_row_norms, row_norms

__all__ = [
    "RULES",
    "SCALES",
    "State",
    "init_state",
    "newton_schulz",
    "restore_row_norms",
    "row_norms",
    "update",
]

RULES = ("sgd", "momentum", "muon", "adamw")
SCALES = ("lact", "match_rms", "relative")

StepSize = float | Tensor


class State(NamedTuple):
    """What an update rule carries from one update to the next; a value, never edited in place.

    Attributes
    ----------
    step : Tensor of shape [], int64
        Updates done so far.
    first : dict of Tensor
        Running gradient ("momentum", matrices under "muon") or first moment ("adamw", vectors under "muon"), shaped
        like the weights; empty for "sgd".
    second : dict of Tensor
        Second moment, for the entries that follow adamw.
    """

    step: Tensor
    first: dict[str, Tensor]
    second: dict[str, Tensor]


def init_state(rule: str, weights: Mapping[str, Tensor]) -> State:
    """State before the first update: zeros.

    Parameters
    ----------
    rule : {"sgd", "momentum", "muon", "adamw"}
    weights : dict of Tensor
        Entries of shape [B, D_out, D_in] or [B, D].

    Returns
    -------
    State

    Raises
    ------
    ValueError
        If the rule is unknown or an entry is neither a stack of matrices nor of vectors.

    Examples
    --------
    >>> import torch
    >>> sorted(init_state("muon", {"w": torch.ones(1, 2, 2), "b": torch.ones(1, 2)}).second)
    ['b']
    """
    _check_rule(rule)
    for name, value in weights.items():
        if value.dim() not in (2, 3):
            raise ValueError(f"weights[{name!r}] must have shape [B, D_out, D_in] or [B, D], got {tuple(value.shape)}")
    first = {} if rule == "sgd" else {name: torch.zeros_like(value) for name, value in weights.items()}
    second = {name: torch.zeros_like(value) for name, value in weights.items() if _follows_adamw(rule, value)}
    return State(torch.zeros((), dtype=torch.int64), first, second)


def update(
    rule: str,
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    state: State,
    step_size: StepSize | Mapping[str, StepSize],
    *,
    momentum: float | Tensor = 0.9,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    newton_schulz: str = "schedule",
    newton_schulz_steps: int = 5,
    newton_schulz_dtype: str = "float32",
    scale: str = "lact",
    restore_norms: bool = False,
    initial_norms: Mapping[str, Tensor] | None = None,
    norm_eps: float = 1e-8,
    backend: str = "auto",
) -> tuple[dict[str, Tensor], State]:
    r"""One update of all fast weights; returns new weights and state and edits nothing.

    With :math:`G` the gradient, :math:`s` the step size and :math:`\mu` the momentum:

    - "sgd": :math:`W - s G`
    - "momentum": :math:`M \leftarrow G + \mu M`, then :math:`W - s M`
    - "muon": the same :math:`M`, then :math:`W - s \, c \, \mathrm{NS}(M)`, each matrix of the stack orthogonalised
      alone; vectors (biases, norm gains) have no singular values and follow "adamw" with the same step size
    - "adamw": Adam with bias correction and decoupled weight decay

    after which each row of a matrix may get back its starting L2 norm.

    Guaranteed: an entry of the stack whose step size is 0 keeps its bits, whatever the other options; entries of the
    stack never influence one another; inputs are not written. For "muon": singular values of the direction before
    `scale` lie in a band around 1, see `newton_schulz`. With `restore_norms`: row norms stay within 1e-6 (relative) of
    `initial_norms`. Not guaranteed: that the loss goes down; that a step size carries over from one rule to another
    (except muon's "match_rms" from adamw); that weight decay shrinks matrices whose norms are restored.

    Parameters
    ----------
    rule : {"sgd", "momentum", "muon", "adamw"}
    weights : dict of Tensor
        Entries of shape [B, D_out, D_in] (matrices) or [B, D] (vectors), floating point.
    gradients : dict of Tensor
        Gradients of the loss, same names and shapes. A weight without an entry is returned as it is.
    state : State
        From `init_state` or the previous update under the same rule.
    step_size : float, Tensor of shape [B], or dict of these
        Per entry of the stack, so that step-size candidates run as one batch. A dict gives one per weight name.
        Unit: for "muon" with ``scale="lact"`` the spectral norm of an update, about; for "relative" the share of
        the matrix's Frobenius norm; for "adamw" and "match_rms" the root mean square change of an entry (about, and
        a fifth of it, respectively).
    momentum : float or Tensor of shape [B], default=0.9
        Factor on the running gradient ("momentum", "muon").
    betas : (float, float), default=(0.9, 0.999)
        Decay of adamw's two moments.
    eps : float, default=1e-8
        Added to the root of adamw's second moment.
    weight_decay : float, default=0.0
        Decoupled: ``step_size * weight_decay * W`` is subtracted as well, under every rule.
    newton_schulz : {"schedule", "fixed"}, default="schedule"
    newton_schulz_steps : int, default=5
    newton_schulz_dtype : {"float32", "bfloat16"}, default="float32"
        See `newton_schulz` in this module.
    scale : {"lact", "match_rms", "relative"}, default="lact"
        The factor :math:`c` of muon. "lact": 1, the orthogonal factor as it is. "match_rms":
        :math:`0.2 \sqrt{\max(D_{out}, D_{in})}`, so that an AdamW-sized step size carries over (Liu et al. 2025, arXiv
        2502.16982). "relative": :math:`\lVert W \rVert_F / \lVert \mathrm{NS}(M) \rVert_F`, so that the step is a share
        of the matrix's norm.
    restore_norms : bool, default=False
        Whether rows of matrices get back their norm after the update.
    initial_norms : dict of Tensor of shape [B, D_out, 1], optional
        The norms to restore. None: those of `weights` as passed in.
    norm_eps : float, default=1e-8
        Added to the present norm in the restoration (LaCT: 1e-5).
    backend : {"auto", "torch", "triton"}, default="auto"
        Who runs the leaf operations. "triton" runs or raises.

    Returns
    -------
    weights : dict of Tensor
    state : State

    Raises
    ------
    ValueError
        If an option is unknown or shapes do not match.

    Notes
    -----
    Muon: Jordan et al. 2024; row norms and Muon on fast weights: LaCT (Zhang et al. 2025, arXiv 2505.23884); AdamW:
    Loshchilov and Hutter 2019 (arXiv 1711.05101).

    Examples
    --------
    Two step sizes for the same matrix, as one batch; the first is 0 and changes nothing:

    >>> import torch
    >>> weights = {"w": torch.eye(2).expand(2, 2, 2).clone()}
    >>> gradients = {"w": torch.tensor([[1.0, 2.0], [0.5, 1.0]]).expand(2, 2, 2)}
    >>> state = init_state("sgd", weights)
    >>> new, state = update("sgd", weights, gradients, state, torch.tensor([0.0, 0.1]))
    >>> torch.equal(new["w"][0], weights["w"][0]), int(state.step)
    (True, 1)
    """
    _check_rule(rule)
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {list(SCALES)}, got {scale!r}")
    coefficients(newton_schulz, newton_schulz_steps)
    compute_dtype(newton_schulz_dtype, torch.float32)
    _check_names(weights, gradients)

    step = state.step + 1
    first, second = dict(state.first), dict(state.second)
    directions: dict[str, Tensor] = {}
    to_orthogonalise: dict[str, Tensor] = {}
    for name, gradient in gradients.items():
        weight = weights[name]
        if _follows_adamw(rule, weight):
            directions[name], first[name], second[name] = _adam_direction(
                gradient, first[name], second[name], int(step), betas, eps
            )
        elif rule == "sgd":
            directions[name] = gradient
        else:
            first[name] = gradient + _per_entry(momentum, weight, "momentum") * first[name]
            (to_orthogonalise if rule == "muon" else directions)[name] = first[name]
    if to_orthogonalise:
        directions |= _orthogonalise(to_orthogonalise, newton_schulz, newton_schulz_steps, newton_schulz_dtype, backend)

    new_weights = dict(weights)
    for name, direction in directions.items():
        weight = weights[name]
        size = step_size[name] if isinstance(step_size, Mapping) else step_size
        if name in to_orthogonalise:
            direction = _scaled(direction, weight, scale)
        norms = None
        if restore_norms and weight.dim() == 3:
            norms = row_norms(weight) if initial_norms is None else initial_norms[name]
        new_weights[name] = _step(weight, direction, size, weight_decay, norms, norm_eps)
    return new_weights, State(step, first, second)


def _step(
    weight: Tensor, direction: Tensor, size: StepSize, weight_decay: float, norms: Tensor | None, norm_eps: float
) -> Tensor:
    """Move against `direction`, restore norms, and keep the bits of entries whose step size is 0."""
    if not isinstance(size, Tensor) and size == 0:
        return weight
    factor = _per_entry(size, weight, "step_size")
    moved = weight - factor * (direction + weight_decay * weight if weight_decay else direction)
    if norms is not None:
        moved = restore_row_norms(moved, norms, norm_eps)
    return torch.where(factor == 0, weight, moved) if isinstance(factor, Tensor) else moved


def _orthogonalise(
    matrices: Mapping[str, Tensor], schedule: str, steps: int, dtype: str, backend: str
) -> dict[str, Tensor]:
    """Newton-Schulz on all matrices of one shape in one batch."""
    groups: dict[Any, list[str]] = {}
    for name, matrix in matrices.items():
        groups.setdefault((matrix.shape[1:], matrix.dtype, matrix.device), []).append(name)
    out: dict[str, Tensor] = {}
    for names in groups.values():
        stack = matrices[names[0]] if len(names) == 1 else torch.cat([matrices[name] for name in names])
        result = dispatch.newton_schulz(stack, schedule, steps, dtype, backend=backend)
        parts = result.split([matrices[name].shape[0] for name in names])
        out |= dict(zip(names, parts, strict=True))
    return out


def _scaled(orthogonal: Tensor, weight: Tensor, scale: str) -> Tensor:
    if scale == "match_rms":
        return orthogonal * (0.2 * math.sqrt(max(weight.shape[-2:])))
    if scale == "relative":
        size = torch.linalg.matrix_norm(weight, keepdim=True)
        own = torch.linalg.matrix_norm(orthogonal, keepdim=True)
        return orthogonal * (size / own.clamp_min(torch.finfo(weight.dtype).tiny))
    return orthogonal


def _adam_direction(
    gradient: Tensor, first: Tensor, second: Tensor, step: int, betas: tuple[float, float], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    beta1, beta2 = betas
    first = beta1 * first + (1 - beta1) * gradient
    second = beta2 * second + (1 - beta2) * gradient.square()
    corrected = (second / (1 - beta2**step)).sqrt() + eps
    return first / (1 - beta1**step) / corrected, first, second


def _per_entry(value: float | Tensor, weight: Tensor, name: str) -> float | Tensor:
    """Return a scalar as it is, a tensor [B] shaped to broadcast over the entries of `weight`."""
    if not isinstance(value, Tensor):
        return float(value)
    if value.numel() not in (1, weight.shape[0]) or value.dim() > 1:
        raise ValueError(
            f"{name} must be a float or a tensor of shape [B] = [{weight.shape[0]}], got shape {tuple(value.shape)}"
        )
    return value.to(weight).reshape(-1, *(1,) * (weight.dim() - 1))


def _follows_adamw(rule: str, weight: Tensor) -> bool:
    return rule == "adamw" or (rule == "muon" and weight.dim() == 2)


def _check_rule(rule: str) -> None:
    if rule not in RULES:
        raise ValueError(f"rule must be one of {list(RULES)}, got {rule!r}")


def _check_names(weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
    for name, gradient in gradients.items():
        if name not in weights:
            raise ValueError(f"gradients[{name!r}] has no weight of that name; weights are {sorted(weights)}")
        if gradient.shape != weights[name].shape:
            raise ValueError(
                f"gradients[{name!r}] must have the weight's shape {tuple(weights[name].shape)}, "
                f"got {tuple(gradient.shape)}"
            )
