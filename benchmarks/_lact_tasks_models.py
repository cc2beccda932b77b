"""Small models of benchmarks/lact_tasks.py: one block with four ways to mix tokens."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tttabpfn.lact import LaCTSwiGLU
from tttabpfn.lact.window import window_attention

KINDS = ("lact", "linear", "window", "full")


class Attention(nn.Module):
    """Causal attention without positions: over a window, or over everything."""

    def __init__(self, dim: int, heads: int, window: int | None) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.to_qkv, self.to_output = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split(part, self.heads) for part in self.to_qkv(x).chunk(3, dim=-1))
        o = window_attention(q, k, v, self.window or x.shape[1])
        return self.to_output(join(o, self.heads))


class LinearState(nn.Module):
    """Chunked linear attention whose state has as many numbers as LaCT's, with the same window attention."""

    def __init__(self, dim: int, heads: int, window: int, chunk: int, state_numbers: int) -> None:
        super().__init__()
        self.heads, self.window, self.chunk = heads, window, chunk
        self.width = state_numbers // dim  # per head: width x (dim / heads) numbers
        self.to_qkv, self.to_output = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.to_keys = nn.Linear(dim, heads * self.width, bias=False)
        self.to_queries = nn.Linear(dim, heads * self.width, bias=False)
        self.to_rates = nn.Linear(dim, heads)
        self.norm = nn.RMSNorm(dim // heads, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split(part, self.heads) for part in self.to_qkv(x).chunk(3, dim=-1))
        keys = F.normalize(F.silu(split(self.to_keys(x), self.heads)), dim=-1)
        queries = F.normalize(F.silu(split(self.to_queries(x), self.heads)), dim=-1)
        values = F.silu(v) * F.softplus(split(self.to_rates(x), self.heads))
        state = values.new_zeros(values.shape[0], values.shape[2], self.width)
        outputs = []
        for start in range(0, x.shape[1], self.chunk):
            part = slice(start, start + self.chunk)
            outputs.append(queries[:, part] @ state.mT)
            state = state + values[:, part].mT @ keys[:, part]
        o = self.norm(torch.cat(outputs, dim=1)) + window_attention(q, k, v, self.window)
        return self.to_output(join(o, self.heads))


class Block(nn.Module):
    """A mixer and an MLP, each behind a norm."""

    def __init__(self, dim: int, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer, self.first, self.second = mixer, nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 3 * dim), nn.GELU(), nn.Linear(3 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.first(x))
        return x + self.mlp(self.second(x))


def causal_mixer(kind: str, dim: int, heads: int, window: int, chunk: int, **lact: Any) -> nn.Module:
    """One of `KINDS`; `lact` are options of the LaCT layer, and its state's size also sets the linear one's."""
    ratio = lact.get("hidden_ratio", 2.0)
    if kind == "lact":
        return LaCTSwiGLU(dim, n_heads=heads, mode="causal", window_size=window, chunk_size=chunk, **lact)
    if kind == "linear":
        head = dim // heads
        return LinearState(dim, heads, window, chunk, 3 * heads * head * round(head * ratio))
    return Attention(dim, heads, window if kind == "window" else None)


class ByteModel(nn.Module):
    """Next byte from the bytes before; a token is the embeddings of the last four bytes side by side."""

    def __init__(self, kind: str, *, dim: int, heads: int, layers: int, window: int, chunk: int, **lact: Any) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(256, dim // 4) for _ in range(4))
        mixers = (causal_mixer(kind, dim, heads, window, chunk, **lact) for _ in range(layers))
        self.blocks = nn.Sequential(*(Block(dim, mixer) for mixer in mixers))
        self.norm, self.head = nn.RMSNorm(dim), nn.Linear(dim, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        parts = [table(F.pad(tokens, (back, 0))[:, :length]) for back, table in enumerate(self.tables)]
        x = torch.cat(parts, dim=-1)
        return self.head(self.norm(self.blocks(x)))


def split(x: Tensor, heads: int) -> Tensor:
    """[n, l, heads * width] to [n * heads, l, width]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1)


def join(x: Tensor, heads: int) -> Tensor:
    """[n * heads, l, width] to [n, l, heads * width]."""
    return x.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)
