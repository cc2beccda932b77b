"""Views task: new views of ray-traced scenes from a set of posed images; LaCT against full attention."""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _lact_tasks_models import Block, join, split
from _lact_tasks_scenes import cameras, render, scene
from torch import Tensor, nn

from tttabpfn.lact import LaCTSwiGLU

LARGE = 64
"""Pixels along the side of images that are timed, not scored."""


def jobs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """LaCT and full attention, and LaCT's rules and forms, over seeds."""
    base = {"kind": "lact", "rule": "plain", "form": "full"}
    mixers = [{**base, "part": "mixers", "kind": kind} for kind in ("lact", "full")]
    rest = [{**base, "part": "rules", "rule": "muon"}, {**base, "part": "forms", "form": "last layer"}]
    rest.append({**base, "part": "forms", "form": "sum"})
    seeds = range(options.seeds)
    return [{**one, "seed": s} for s in seeds for one in mixers] + [{**one, "seed": s} for s in seeds for one in rest]


class Source:
    """Scenes as tokens: a patch's colours and the rays (direction, and moment origin x direction) of its pixels."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.size, self.patch = options.size, options.patch

    def describe(self) -> dict[str, int]:
        return {"tokens_per_view": (self.size // self.patch) ** 2}

    def views(self, rng: np.random.Generator, scenes: int, n: int) -> tuple[Tensor, Tensor]:
        """Colours [scenes, n * tokens, 3 p^2] and rays [scenes, n * tokens, 6 p^2]."""
        colours, rays = [], []
        for _ in range(scenes):
            objects = scene(rng)
            origin, directions = cameras(rng, n, self.size)
            image = render(objects, origin[:, None, None], directions)
            moment = np.cross(np.broadcast_to(origin[:, None, None], directions.shape), directions)
            colours.append(self._patches(image))
            rays.append(self._patches(np.concatenate([directions, moment], axis=-1)))
        return torch.stack(colours), torch.stack(rays)

    def _patches(self, image: np.ndarray) -> Tensor:
        cut = torch.from_numpy(image.astype(np.float32)).unflatten(1, (-1, self.patch)).unflatten(3, (-1, self.patch))
        return cut.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(0, 2)


class SetAttention(nn.Module):
    """Every token attends to the input views' tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv, self.to_output = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, n_inputs: int) -> Tensor:
        q, k, v = (split(part, self.heads).unsqueeze(1) for part in self.to_qkv(x).chunk(3, dim=-1))
        o = F.scaled_dot_product_attention(q, k[:, :, :n_inputs], v[:, :, :n_inputs])
        return self.to_output(join(o.squeeze(1), self.heads))


class SetLaCT(LaCTSwiGLU):
    """Update on the input views as one set, apply to them and to the targets."""

    def forward(self, x: Tensor, n_inputs: int) -> Tensor:
        return super().forward(x, operators=[(0, n_inputs, True, False), (0, x.shape[1], False, True)])


class SetBlock(Block):
    def forward(self, x: Tensor, n_inputs: int) -> Tensor:
        x = x + self.mixer(self.first(x), n_inputs)
        return x + self.mlp(self.second(x))


class ViewModel(nn.Module):
    """Colours of target patches from input patches and all rays."""

    def __init__(self, job: dict[str, Any], options: argparse.Namespace) -> None:
        super().__init__()
        dim, pixels = options.dim, options.patch**2
        self.from_colours, self.from_rays = nn.Linear(3 * pixels, dim), nn.Linear(6 * pixels, dim)
        self.blocks = nn.ModuleList(SetBlock(dim, self._mixer(job, options)) for _ in range(options.layers))
        self.norm, self.to_colours = nn.RMSNorm(dim), nn.Linear(dim, 3 * pixels)

    @staticmethod
    def _mixer(job: dict[str, Any], options: argparse.Namespace) -> nn.Module:
        if job["kind"] == "full":
            return SetAttention(options.dim, options.heads)
        how: dict[str, Any] = {"muon": job["rule"] == "muon"}
        if job["form"] != "full":
            how["updated"] = "last"
        if job["form"] == "sum":
            how |= {"weight_norm": False, "muon": False}
        return SetLaCT(options.dim, n_heads=options.heads, mode="operators", **how)

    def forward(self, colours: Tensor, rays: Tensor) -> Tensor:
        n_inputs = colours.shape[1]
        seen = F.pad(self.from_colours(colours), (0, 0, 0, rays.shape[1] - n_inputs))
        x = seen + self.from_rays(rays)
        for block in self.blocks:
            x = block(x, n_inputs)
        return self.to_colours(self.norm(x[:, n_inputs:])).sigmoid()


def measure(job: dict[str, Any], options: argparse.Namespace, source: Source) -> dict[str, Any]:
    """Train on 2 to 16 input views, then score held-back scenes at every number of views."""
    torch.manual_seed(job["seed"])
    model, rng = ViewModel(job, options), np.random.default_rng(job["seed"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=0.01)
    per_view, start = source.describe()["tokens_per_view"], time.perf_counter()
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = options.rate * min((step + 1) / 20, 1.0) * max(0.05, 1 - step / options.steps)
        n = int(rng.choice([2, 4, 8, 16]))
        colours, rays = source.views(rng, options.batch, n + options.targets)
        found = model(colours[:, : n * per_view], rays)
        loss = F.mse_loss(found, colours[:, n * per_view :])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    seconds = time.perf_counter() - start
    row: dict[str, Any] = {"views": options.views}
    for name, other in (("psnr", False), ("psnr_other_scene", True)):
        row[name] = [psnr(model, source, options, n, other) for n in options.views]
    row["psnr_16"] = dict(zip(options.views, row["psnr"], strict=True)).get(16)
    row["render_seconds"] = [render_seconds(model, source, options, n) for n in options.views]
    wide = Source(argparse.Namespace(size=LARGE, patch=options.patch))
    row["large_tokens"] = 16 * wide.describe()["tokens_per_view"]
    row["large_seconds"] = render_seconds(model, wide, options, 16)
    row["parameters"] = sum(one.numel() for one in model.parameters())
    return {**row, "train_loss": float(loss.detach()), "seconds_per_step": seconds / options.steps}


@torch.no_grad()
def psnr(model: ViewModel, source: Source, options: argparse.Namespace, n: int, other: bool = False) -> float:
    """Mean over held-back scenes, in dB; the same scenes and targets for every model and number of views.

    `other` gives the model the views of another scene: what is lost tells how much it takes from them.
    """
    per_view, found = source.describe()["tokens_per_view"], []
    for index in range(options.eval_scenes):
        colours, rays = source.views(np.random.default_rng(10_000 + index), 1, max(options.views) + options.targets)
        first = options.targets * per_view
        wanted, seen = colours[:, :first], slice(first, first + n * per_view)
        if other:
            colours = source.views(np.random.default_rng(20_000 + index), 1, max(options.views) + options.targets)[0]
        error = F.mse_loss(model(colours[:, seen], torch.cat([rays[:, seen], rays[:, :first]], dim=1)), wanted)
        found.append(-10 * math.log10(float(error)))
    return sum(found) / len(found)


@torch.no_grad()
def render_seconds(model: ViewModel, source: Source, options: argparse.Namespace, n: int) -> float:
    """Processor seconds to take in n views and render the targets; the fastest of 5."""
    per_view = source.describe()["tokens_per_view"]
    colours, rays = source.views(np.random.default_rng(0), 1, n + options.targets)
    spent = []
    for _ in range(5):
        start = time.process_time()
        model(colours[:, : n * per_view], rays)
        spent.append(time.process_time() - start)
    return min(spent)
