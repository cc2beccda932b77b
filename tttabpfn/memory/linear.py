"""The linear memory: one matrix per ensemble member on the keys, written by preconditioned full-chunk steps."""

from __future__ import annotations

import torch
from torch import Tensor

from tttabpfn.fast_weights import update_rules
from tttabpfn.memory.rows import MemoryRows, Observer, residuals, write_in_full_chunks

BIAS_PENALTY = 0.01
"""Share of the L2 penalty that falls on the constant key's column."""


def read_linear(weight: Tensor, keys: Tensor) -> Tensor:
    """What S linear memories for each of M members read, of shape (S, M, Q, K); to be added to the scaled logits.

    `weight` has the shape (S * M, K, E), member by member within each memory, `keys` (M, Q, E).
    """
    n_members, n_rows, width = keys.shape
    stack, n_classes = weight.shape[0] // n_members, weight.shape[1]
    # All memories of a member side by side: its keys are read once, in one product.
    beside = weight.reshape(stack, n_members, n_classes, width).transpose(0, 1).reshape(n_members, -1, width)
    return (keys @ beside.mT).reshape(n_members, n_rows, stack, n_classes).permute(2, 0, 1, 3)


def linear_loss_gradient(
    weight: Tensor, rows: MemoryRows, penalties: Tensor, start: int, end: int
) -> tuple[Tensor, Tensor]:
    r"""A slice's share of the regularised loss and of its gradient, for every stacked memory.

    With frozen logits :math:`z`, the loss is
    :math:`\frac{1}{|D|}\sum_{n \in D} \mathrm{CE}(z_n + W k_n, y_n) + \frac{\lambda}{2} \lVert W \rVert^2`, with the
    penalty on the constant key's column lowered by `BIAS_PENALTY`. It is convex in :math:`W`.

    Parameters
    ----------
    weight : Tensor of shape (C * F * M, K, E)
    rows : MemoryRows
    penalties : Tensor of shape (C,)
    start, end : int

    Returns
    -------
    loss : Tensor of shape (C, F, M)
    gradient : Tensor of shape (C * F * M, K, E)
        Both add up over slices.
    """
    n_candidates, n_folds, n_members = len(penalties), rows.n_folds, rows.n_members
    keys = rows.keys[:, start:end]
    read = read_linear(weight, keys).reshape(n_candidates, n_folds, n_members, end - start, rows.n_classes)
    loss, derivative = residuals(read + rows.offsets[:, start:end], rows, start, end)
    beside = derivative.flatten(0, 1).permute(1, 2, 0, 3).reshape(n_members, end - start, -1)
    gradient = (beside.mT @ keys).reshape(n_members, -1, rows.n_classes, keys.shape[2])
    gradient = gradient.transpose(0, 1).reshape_as(weight)
    share = (end - start) / rows.n_rows
    pull = share * _column_penalties(penalties, rows) * weight
    loss = loss + 0.5 * (pull * weight).sum(dim=(-1, -2)).reshape_as(loss)
    return loss, gradient + pull


def write_linear(
    rows: MemoryRows,
    penalties: Tensor,
    n_steps: int,
    *,
    momentum: float,
    backend: str,
    observer: Observer | None = None,
) -> tuple[Tensor, list[float]]:
    r"""Write linear memories for every penalty, fold and member in one stack.

    Each step takes the gradient over all rows, one chunk, and multiplies it by :math:`(C/2 + \lambda I)^{-1}` with the
    keys' second moments :math:`C`. :math:`C/2` bounds the curvature of the softmax cross-entropy from above (Böhning
    1992, Ann. Inst. Stat. Math. 44), so a step of size 1 needs no search and, without momentum, never raises the loss.

    Parameters
    ----------
    rows : MemoryRows
    penalties : Tensor of shape (C,)
        L2 penalties, above 0.
    n_steps : int
    momentum : float
    backend : {"auto", "torch", "triton"}
    observer : callable, optional
        Called with the number of steps done and the weights.

    Returns
    -------
    weight : Tensor of shape (C * F * M, K, E)
    losses : list of float
        Mean loss over the stack before each step.
    """
    penalties = penalties.to(rows.keys)
    preconditioner = _preconditioner(rows, penalties)
    stack, width = preconditioner.shape[0], rows.keys.shape[2]
    weights = {"w": rows.keys.new_zeros(stack, rows.n_classes, width)}

    def loss_gradients(now: dict[str, Tensor], start: int, end: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss, gradient = linear_loss_gradient(now["w"], rows, penalties, start, end)
        return loss, {"w": gradient}

    def update(
        now: dict[str, Tensor], gradients: dict[str, Tensor], state: update_rules.State
    ) -> tuple[dict[str, Tensor], update_rules.State]:
        step = {"w": gradients["w"] @ preconditioner}
        return update_rules.update("momentum", now, step, state, 1.0, momentum=momentum, backend=backend)

    written, losses = write_in_full_chunks(
        rows,
        weights,
        update_rules.init_state("momentum", weights),
        n_steps,
        rows.micro_batch(stack, 3 * rows.n_classes),
        loss_gradients,
        update,
        observer,
    )
    return written["w"], losses


def _column_penalties(penalties: Tensor, rows: MemoryRows) -> Tensor:
    """Penalty of every column of every stacked memory, of shape (C * F * M, 1, E)."""
    columns = torch.ones(rows.keys.shape[2], dtype=penalties.dtype, device=penalties.device)
    columns[-1] = BIAS_PENALTY
    return (penalties[:, None] * columns).repeat_interleave(rows.n_folds * rows.n_members, dim=0).unsqueeze(1)


def _preconditioner(rows: MemoryRows, penalties: Tensor) -> Tensor:
    """Inverse of the curvature's bound, in double precision where it is formed, of shape (C * F * M, E, E)."""
    share = rows.written / rows.written.sum(dim=1, keepdim=True)
    moments = torch.stack([(rows.keys * one[None, :, None]).mT @ rows.keys for one in share]).flatten(0, 1)
    bound = 0.5 * moments.double()
    inverses = [
        # Positive definite: Cholesky is the cheaper way, and torch's batched LU was seen to fail now and then.
        torch.cholesky_inverse(torch.linalg.cholesky(bound + torch.diag_embed(one.squeeze(1)))).to(rows.keys.dtype)
        for one in _column_penalties(penalties.double(), rows).split(len(bound))
    ]
    return torch.cat(inverses)
