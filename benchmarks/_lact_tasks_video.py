"""Video task: frame-by-frame diffusion of moving shapes, noisy and clean copies interleaved by LaCT's operator list.

Frame i is drawn from noise given the clean frames before it. The sequence is noisy 1, clean 1, noisy 2, clean 2, ...:
noisy frames are applied to the fast weights, clean ones update them. All contenders have attention inside a frame's
copy; "window" also attends to the clean frame before, "full" to all clean frames before, LaCT reads its fast weights.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _lact_tasks_models import Block, join, split
from torch import Tensor, nn

from tttabpfn.lact import LaCTSwiGLU

WINDOW = 1
"""Clean frames before its own that window attention sees; LaCT's has the same."""


def jobs(options: argparse.Namespace) -> list[dict[str, Any]]:
    kinds = [{"part": "mixers", "kind": kind, "rule": "muon"} for kind in ("lact", "window", "full")]
    rules = [{"part": "rules", "kind": "lact", "rule": "plain"}]
    seeds = range(options.seeds)
    return [{**one, "seed": s} for s in seeds for one in kinds] + [{**one, "seed": s} for s in seeds for one in rules]


class Source:
    """Clips of two discs and squares that bounce; one of them is hidden behind a curtain for some frames."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.size, self.patch, self.frames = options.size, options.patch, options.frames

    def describe(self) -> dict[str, int]:
        return {"tokens_per_frame": (self.size // self.patch) ** 2}

    def clips(self, rng: np.random.Generator, n: int) -> Tensor:
        """Grey patches [n, frames, tokens, p^2] in [-1, 1]."""
        grid = (np.arange(self.size) + 0.5) / self.size
        x, y = np.meshgrid(grid, grid)
        out = np.full((n, self.frames, self.size, self.size), -1.0)
        for clip in out:
            start, step = rng.uniform(0.2, 0.8, (2, 2)), rng.uniform(-0.14, 0.14, (2, 2))
            radius, value, disc = rng.uniform(0.12, 0.22, 2), rng.uniform(-0.2, 1.0, 2), rng.integers(0, 2, 2)
            hidden = rng.integers(2, max(3, self.frames - 2))
            for t, frame in enumerate(clip):
                place = np.abs((start + t * step) % 2.0 - 1.0)
                for i in range(2):
                    if i == 1 and hidden <= t < hidden + 3:
                        continue
                    across, down = np.abs(x - place[i, 0]), np.abs(y - place[i, 1])
                    inside = across**2 + down**2 < radius[i] ** 2 if disc[i] else np.maximum(across, down) < radius[i]
                    frame[inside] = value[i]
        cut = torch.from_numpy(out.astype(np.float32)).unflatten(2, (-1, self.patch)).unflatten(4, (-1, self.patch))
        return cut.permute(0, 1, 2, 4, 3, 5).flatten(4).flatten(2, 3)

    def frames_of(self, patches: Tensor) -> Tensor:
        """Patches [frames, tokens, p^2] back to images [frames, size, size]."""
        side = self.size // self.patch
        grid = patches.unflatten(1, (side, side)).unflatten(3, (self.patch, self.patch))
        return grid.permute(0, 1, 3, 2, 4).reshape(-1, self.size, self.size)


def copies_seen(frames: int, before: int | None) -> Tensor:
    """Which of the 2 f copies (noisy 1, clean 1, ...) each sees: itself, and clean ones up to `before` frames back."""
    copy = torch.arange(2 * frames)
    frame, clean = copy // 2, copy % 2 == 1
    back = frame[:, None] - frame[None, :]
    return (copy[:, None] == copy[None, :]) | (clean[None, :] & (back > 0) & (back <= (before or frames)))


class FrameAttention(nn.Module):
    def __init__(self, dim: int, heads: int, mask: Tensor) -> None:
        super().__init__()
        self.heads, self.mask = heads, mask
        self.to_qkv, self.to_output = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split(part, self.heads).unsqueeze(1) for part in self.to_qkv(x).chunk(3, dim=-1))
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask[: x.shape[1], : x.shape[1]])
        return self.to_output(join(o.squeeze(1), self.heads))


class VideoLaCT(nn.Module):
    """The LaCT layer over interleaved copies, and frame attention beside it."""

    def __init__(self, dim: int, heads: int, mask: Tensor, tokens: int, muon: bool) -> None:
        super().__init__()
        self.attention, self.tokens = FrameAttention(dim, heads, mask), tokens
        self.lact = LaCTSwiGLU(dim, n_heads=heads, mode="operators", muon=muon)

    def forward(self, x: Tensor) -> Tensor:
        operators = []
        for start in range(0, x.shape[1], self.tokens):
            clean = start // self.tokens % 2 == 1
            operators += [(start, start + self.tokens, False, True)]
            if clean:
                operators.append((start, start + self.tokens, True, False))
        return self.attention(x) + self.lact(x, operators=operators)


class VideoModel(nn.Module):
    """Clean patches of every noisy copy, given noise levels and the clean copies before."""

    def __init__(self, job: dict[str, Any], options: argparse.Namespace) -> None:
        super().__init__()
        dim, self.tokens = options.dim, (options.size // options.patch) ** 2
        before = None if job["kind"] == "full" else WINDOW
        mask = copies_seen(options.frames, before).repeat_interleave(self.tokens, 0).repeat_interleave(self.tokens, 1)
        self.from_pixels, self.from_level = nn.Linear(options.patch**2, dim), nn.Linear(2, dim)
        self.place = nn.Parameter(torch.randn(self.tokens, dim) * 0.3)
        self.frame = nn.Parameter(torch.randn(options.frames, 1, dim) * 0.3)
        blocks = []
        for _ in range(options.layers):
            if job["kind"] == "lact":
                mixer: nn.Module = VideoLaCT(dim, options.heads, mask, self.tokens, job["rule"] == "muon")
            else:
                mixer = FrameAttention(dim, options.heads, mask)
            blocks.append(Block(dim, mixer))
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.to_pixels = nn.RMSNorm(dim), nn.Linear(dim, options.patch**2)

    def forward(self, noisy: Tensor, clean: Tensor, level: Tensor) -> Tensor:
        """[n, f, tokens, pixels] twice and levels [n, f] to predicted clean patches [n, f, tokens, pixels]."""
        frames = noisy.shape[1]
        both = torch.stack([noisy, clean], dim=2)
        levels = torch.stack([level, torch.zeros_like(level)], dim=2)
        told = self.from_level(torch.stack([levels, (levels == 0).float()], dim=-1))
        x = self.from_pixels(both) + told.unsqueeze(3) + self.place + self.frame[:frames, None]
        x = self.blocks(x.flatten(1, 3)).unflatten(1, (frames, 2, self.tokens))
        return self.to_pixels(self.norm(x[:, :, 0]))


def noised(clean: Tensor, level: Tensor, draw: torch.Generator) -> Tensor:
    """Straight-line noising: level 0 is the clean frame, level 1 noise."""
    noise = torch.randn(clean.shape, generator=draw)
    return (1 - level[..., None, None]) * clean + level[..., None, None] * noise


def measure(job: dict[str, Any], options: argparse.Namespace, source: Source) -> dict[str, Any]:
    torch.manual_seed(job["seed"])
    model, rng = VideoModel(job, options), np.random.default_rng(job["seed"])
    draw = torch.Generator().manual_seed(job["seed"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=0.01)
    start = time.perf_counter()
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = options.rate * min((step + 1) / 20, 1.0) * max(0.05, 1 - step / options.steps)
        clean = source.clips(rng, options.batch)
        level = torch.rand(clean.shape[:2], generator=draw)
        loss = F.mse_loss(model(noised(clean, level, draw), clean, level), clean)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    seconds = time.perf_counter() - start
    by_frame = held_back(model, source, options)
    row: dict[str, Any] = {"loss": float(by_frame[1:].mean()), "loss_by_frame": by_frame.tolist()}
    row["loss_late"] = float(by_frame[by_frame.shape[0] // 2 :].mean())
    if job["seed"] == 0 and job["kind"] == "lact" and job["rule"] == "muon":
        row["generated"] = (127.5 + 127.5 * generate(model, source, options)).byte().tolist()
    row["parameters"] = sum(one.numel() for one in model.parameters())
    return {**row, "train_loss": float(loss.detach()), "seconds_per_step": seconds / options.steps}


@torch.no_grad()
def held_back(model: VideoModel, source: Source, options: argparse.Namespace) -> Tensor:
    """Squared error per frame [f] at levels 0.3, 0.6 and 0.9, on the same clips and noise for every model."""
    clean = source.clips(np.random.default_rng(99_999), options.eval_clips)
    draw, errors = torch.Generator().manual_seed(7), []
    for value in (0.3, 0.6, 0.9):
        level = torch.full(clean.shape[:2], value)
        errors.append((model(noised(clean, level, draw), clean, level) - clean).square().mean(dim=(0, 2, 3)))
    return torch.stack(errors).mean(dim=0)


@torch.no_grad()
def generate(model: VideoModel, source: Source, options: argparse.Namespace, steps: int = 12) -> Tensor:
    """One clip [frames, size, size]: two given frames, the rest drawn one after the other by Euler steps."""
    clean = source.clips(np.random.default_rng(5), 1)
    draw = torch.Generator().manual_seed(5)
    clean[:, 2:] = 0.0
    for t in range(min(2, options.frames), options.frames):
        frame = torch.randn(clean[:, t].shape, generator=draw)
        for step in range(steps):
            now, after = 1 - step / steps, 1 - (step + 1) / steps
            noisy, level = clean[:, : t + 1].clone(), torch.full((1, t + 1), now)
            noisy[:, t] = frame
            found = model(noisy, clean[:, : t + 1], level)[:, t]
            frame = found + (frame - found) * (after / now)
        clean[:, t] = frame.clamp(-1, 1)
    return source.frames_of(clean[0]).clamp(-1, 1)
