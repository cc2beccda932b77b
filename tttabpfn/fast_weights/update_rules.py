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

from tttabpfn.fast_weights import operations
from tttabpfn.fast_weights.reference.newton_schulz import coefficients, compute_dtype
from tttabpfn.fast_weights.reference.step import row_norms
from tttabpfn.fast_weights.rules import RULES

__all__ = [
    "RULES",
    "SCALES",
    "State",
    "init_state",
    "orthogonal_factors",
    "update",
]

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
    along = {name: RULES[rule].moves_along(value.dim()) for name, value in weights.items()}
    first = {name: torch.zeros_like(value) for name, value in weights.items() if along[name] != "gradient"}
    second = {name: torch.zeros_like(value) for name, value in weights.items() if along[name] == "adam"}
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
    orthogonal: Mapping[str, Tensor] | None = None,
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
        See `tttabpfn.fast_weights.reference.newton_schulz`.
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
    orthogonal : dict of Tensor, optional
        Muon's orthogonal factors of these gradients and this state, from `orthogonal_factors`, used in place of the
        iteration: for updates from one gradient and state by several step sizes.

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

    count = state.step + 1
    first, second = dict(state.first), dict(state.second)
    directions: dict[str, Tensor] = dict(gradients)
    if RULES[rule].is_orthogonal:
        running = _running(gradients, state, momentum)
        first |= running
        if orthogonal is None:
            iteration = newton_schulz, newton_schulz_steps, newton_schulz_dtype
            orthogonal = _orthogonalise(running, *iteration, backend)
        directions |= {name: _scaled(value, weights[name], scale) for name, value in orthogonal.items()}

    new_weights = dict(weights)
    for name, direction in directions.items():
        weight = weights[name]
        size = step_size[name] if isinstance(step_size, Mapping) else step_size
        along = RULES[rule].moves_along(weight.dim())
        if along == "adam":
            direction, first[name], second[name] = _adam_direction(
                direction, first[name], second[name], int(count), betas, eps
            )
        norms = None
        if restore_norms and weight.dim() == 3:
            norms = row_norms(weight) if initial_norms is None else initial_norms[name]
        buffer = first[name] if along == "running" else None
        factor, size = _checked(momentum, weight, "momentum"), _checked(size, weight, "step_size")
        options = operations.StepOptions(factor, size, weight_decay, norms, norm_eps)
        new_weights[name], buffer = _step(weight, direction, buffer, options, backend)
        if buffer is not None:
            first[name] = buffer
    return new_weights, State(count, first, second)


def orthogonal_factors(
    gradients: Mapping[str, Tensor],
    state: State,
    *,
    momentum: float | Tensor = 0.9,
    newton_schulz: str = "schedule",
    newton_schulz_steps: int = 5,
    newton_schulz_dtype: str = "float32",
    backend: str = "auto",
) -> dict[str, Tensor]:
    """Muon's orthogonal factors, of matrices alone, of these gradients and this state; parameters as in `update`."""
    running = _running(gradients, state, momentum)
    return _orthogonalise(running, newton_schulz, newton_schulz_steps, newton_schulz_dtype, backend)


def _running(gradients: Mapping[str, Tensor], state: State, momentum: float | Tensor) -> dict[str, Tensor]:
    """Running gradients of the matrices, after these."""
    return {
        name: value + _per_entry(momentum, value, "momentum") * state.first[name]
        for name, value in gradients.items()
        if value.dim() == 3
    }


def _step(
    weight: Tensor, direction: Tensor, buffer: Tensor | None, options: operations.StepOptions, backend: str
) -> tuple[Tensor, Tensor | None]:
    """Run the leaf operation; vectors pass through it as matrices of one row."""
    if weight.dim() == 3:
        return operations.step(weight, direction, buffer, options, backend=backend)
    row = None if buffer is None else buffer.unsqueeze(1)
    new, row = operations.step(weight.unsqueeze(1), direction.unsqueeze(1), row, options, backend=backend)
    return new.squeeze(1), None if row is None else row.squeeze(1)


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
        result = operations.newton_schulz(stack, schedule, steps, dtype, backend=backend)
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


def _checked(value: float | Tensor, weight: Tensor, name: str) -> float | Tensor:
    """Return a float as it is, a tensor as [B]."""
    if not isinstance(value, Tensor):
        return float(value)
    if value.dim() > 1 or value.numel() not in (1, weight.shape[0]):
        raise ValueError(
            f"{name} must be a float or a tensor of shape [B] = [{weight.shape[0]}], got shape {tuple(value.shape)}"
        )
    return value.to(weight).expand(weight.shape[0])


def _per_entry(value: float | Tensor, weight: Tensor, name: str) -> float | Tensor:
    """Return a float as it is, a tensor [B] so that it broadcasts over matrices."""
    value = _checked(value, weight, name)
    return value.reshape(-1, 1, 1) if isinstance(value, Tensor) else value


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
