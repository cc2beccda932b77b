"""What the LaCT backend is compared with: the published operation as it stands, and written again with less work.

The published form makes silu and its derivative from the gate anew, and puts two of the rates on copies of the keys.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Step = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]


def chunk_step(
    w0: Tensor,
    w1: Tensor,
    w2: Tensor,
    norms: tuple[Tensor, Tensor, Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr0: Tensor,
    lr1: Tensor,
    lr2: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Update on one chunk, then apply to it, silu made once. Tokens are columns, [b, d, l]."""
    gate, up = torch.bmm(w0, k), torch.bmm(w2, k)
    activated = F.silu(gate)
    hidden = torch.bmm(w1.transpose(1, 2), v)
    sigmoid = torch.sigmoid(gate)
    d_gate = hidden * up * sigmoid * (1 + gate * (1 - sigmoid))
    d_up = hidden * activated
    w0 = w0 + torch.bmm(d_gate * lr0, k.transpose(1, 2))
    w1 = w1 + torch.bmm(v * lr1, (activated * up).transpose(1, 2))
    w2 = w2 + torch.bmm(d_up * lr2, k.transpose(1, 2))
    w0, w1, w2 = (w / (w.norm(dim=2, keepdim=True) + 1e-5) * n for w, n in zip((w0, w1, w2), norms, strict=True))
    return w0, w1, w2, torch.bmm(w1, F.silu(torch.bmm(w0, q)) * torch.bmm(w2, q))


def _silu_derivative(upstream: Tensor, gate: Tensor) -> Tensor:
    sigmoid = torch.sigmoid(gate)
    return upstream * sigmoid * (1 + gate * (1 - sigmoid))


def published_step(
    w0: Tensor,
    w1: Tensor,
    w2: Tensor,
    norms: tuple[Tensor, Tensor, Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr0: Tensor,
    lr1: Tensor,
    lr2: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`chunk_step` with the operations of the published language-model version, one by one."""
    keys = k.transpose(1, 2)
    gate, up = torch.bmm(w0, k), torch.bmm(w2, k)
    product = F.silu(gate) * up
    hidden = torch.bmm(w1.transpose(1, 2), v)
    d_up = hidden * F.silu(gate)
    d_gate = _silu_derivative(hidden * up, gate)
    g1 = torch.bmm(v, product.transpose(1, 2) * lr1.transpose(1, 2))
    g0 = torch.bmm(d_gate, keys * lr0.transpose(1, 2))
    g2 = torch.bmm(d_up, keys * lr2.transpose(1, 2))
    w0, w1, w2 = w0 + g0, w1 + g1, w2 + g2
    w0, w1, w2 = (w / (w.norm(dim=2, keepdim=True) + 1e-5) * n for w, n in zip((w0, w1, w2), norms, strict=True))
    applied = torch.bmm(w2, q)
    return w0, w1, w2, torch.bmm(w1, F.silu(torch.bmm(w0, q), inplace=True) * applied)


def over_chunks(inputs: list[Tensor], chunk: int, step: Step) -> Tensor:
    """Run the operation over all chunks of w0, w1, w2, q, k, v, lr0, lr1, lr2, in order update then apply."""
    w0, w1, w2, *tokens = inputs
    norms = (w0.norm(dim=2, keepdim=True), w1.norm(dim=2, keepdim=True), w2.norm(dim=2, keepdim=True))
    columns = [tensor.transpose(1, 2) for tensor in tokens]
    output = torch.zeros_like(columns[2])
    for start in range(0, tokens[0].shape[1], chunk):
        window = [tensor[:, :, start : start + chunk] for tensor in columns]
        w0, w1, w2, output[:, :, start : start + chunk] = step(w0, w1, w2, norms, *window)
    return output.transpose(1, 2)


def zeropower(matrix: Tensor, triples: tuple[tuple[float, float, float], ...]) -> Tensor:
    """Newton-Schulz on a matrix or a stack, the way it is usually written."""
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in triples:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def one_by_one(matrices: Tensor, triples: tuple[tuple[float, float, float], ...]) -> Tensor:
    """Newton-Schulz on each matrix of a stack in a Python loop."""
    return torch.stack([zeropower(matrix, triples) for matrix in matrices])
