"""Causal sliding-window attention with torch's own attention, in memory linear in the number of tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["window_attention", "window_attention_after"]


def window_attention(q: Tensor, k: Tensor, v: Tensor, window_size: int) -> Tensor:
    """Softmax attention of each token to itself and the `window_size` - 1 tokens before it.

    Tokens are cut into blocks of `window_size`; a block sees itself and the block before, so that one mask serves all.

    Parameters
    ----------
    q, k : Tensor of shape [b, l, dk]
    v : Tensor of shape [b, l, dv]
    window_size : int
        1 or more; `l` and more is full causal attention.

    Returns
    -------
    Tensor of shape [b, l, dv]

    Raises
    ------
    ValueError
        If `window_size` is below 1.

    Examples
    --------
    A window of one token returns that token's value:

    >>> import torch
    >>> v = torch.arange(6.0).reshape(1, 3, 2)
    >>> bool(torch.equal(window_attention(v, v, v, 1), v))
    True
    """
    if window_size < 1:
        raise ValueError(f"window_size must be 1 or more, got {window_size}")
    batch, length = q.shape[:2]
    if window_size >= length:
        return _causal(q, k, v)
    first = _causal(q[:, :window_size], k[:, :window_size], v[:, :window_size])
    blocks = -(-length // window_size)
    missing = blocks * window_size - length
    queries, keys, values = (
        F.pad(tensor, (0, 0, 0, missing)).unflatten(1, (blocks, window_size)) for tensor in (q, k, v)
    )
    rest = F.scaled_dot_product_attention(
        queries[:, 1:].flatten(0, 1).unsqueeze(1),
        _with_previous(keys).unsqueeze(1),
        _with_previous(values).unsqueeze(1),
        attn_mask=_mask(window_size, q.device),
    )
    rest = rest.squeeze(1).unflatten(0, (batch, blocks - 1)).flatten(1, 2)
    return torch.cat([first, rest], dim=1)[:, :length]


def window_attention_after(
    q: Tensor, k: Tensor, v: Tensor, window_size: int, past_k: Tensor, past_v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sliding-window attention of new tokens behind the last ones of a sequence.

    Parameters
    ----------
    q, k : Tensor of shape [b, l, dk]
    v : Tensor of shape [b, l, dv]
    window_size : int
    past_k, past_v : Tensor of shape [b, p, dk] and [b, p, dv]
        Keys and values of the last `window_size` - 1 tokens before, or of all there are.

    Returns
    -------
    o : Tensor of shape [b, l, dv]
    past_k, past_v : Tensor
        For the next call.

    Examples
    --------
    >>> v = torch.arange(4.0).reshape(1, 4, 1)
    >>> q = torch.zeros(1, 4, 1)
    >>> o, past, _ = window_attention_after(q[:, 3:], q[:, 3:], v[:, 3:], 2, q[:, 2:3], v[:, 2:3])
    >>> o.item(), past.shape[1]
    (2.5, 1)
    """
    length, past = q.shape[1], past_k.shape[1]
    keys, values = torch.cat([past_k, k], dim=1), torch.cat([past_v, v], dim=1)
    if length <= window_size:
        back = torch.arange(past, past + length, device=q.device)[:, None]
        back = back - torch.arange(past + length, device=q.device)[None, :]
        o = F.scaled_dot_product_attention(q, keys, values, attn_mask=(back >= 0) & (back < window_size))
    else:
        # queries of zeros stand for the past tokens, whose outputs are known already
        o = window_attention(F.pad(q, (0, 0, past, 0)), keys, values, window_size)[:, past:]
    first = max(0, past + length - window_size + 1)
    return o, keys[:, first:], values[:, first:]


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Full causal attention; with the axis of heads, without which torch writes out all l x l scores."""
    q, k, v = (part.unsqueeze(1) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1)


def _with_previous(blocks: Tensor) -> Tensor:
    """Each block but the first, behind the block before it: [b * (blocks - 1), 2 * window, width]."""
    return torch.cat([blocks[:, :-1], blocks[:, 1:]], dim=2).flatten(0, 1)


def _mask(window_size: int, device: torch.device) -> Tensor:
    """Which of the 2 w keys each of the w queries sees: those 0 to w - 1 tokens back."""
    back = torch.arange(window_size, 2 * window_size, device=device)[:, None]
    back = back - torch.arange(2 * window_size, device=device)[None, :]
    return (back >= 0) & (back < window_size)
