"""Text task: a byte model on Python's own sources and documentation; loss per position, against other mixers."""

from __future__ import annotations

import argparse
import itertools
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _lact_tasks_models import ByteModel
from torch import Tensor

SMALLEST_FILE = 2
"""A file is used if it holds this many contexts."""


def jobs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Settings to train, most telling first: mixers and update rules over seeds, then LaCT's other ablations."""
    base = {"kind": "lact", "rule": "plain", "chunk": options.chunk, "ratio": 2.0, "form": "full"}
    out = [{**base, "part": "mixers", "kind": kind} for kind in ("lact", "window", "full", "linear")]
    rules = [{**base, "part": "rules", "rule": rule} for rule in ("momentum", "muon")]
    chunks = [{**base, "part": "chunks", "chunk": size} for size in options.chunks if size != options.chunk]
    forms = [{**base, "part": "forms", "form": form} for form in ("last layer", "no norm", "sum")]
    states = [{**base, "part": "states", "ratio": ratio} for ratio in (0.5, 4.0)]
    seeds = range(options.seeds)
    every = [[*out, *rules], forms, chunks, states]
    return [{**one, "seed": seed} for part in every for seed in seeds for one in part]


class Corpus:
    """Contexts cut from files of the standard library; every tenth file is held back."""

    def __init__(self, context: int) -> None:
        root = Path(sysconfig.get_paths()["stdlib"])
        files = sorted(path for path in root.rglob("*.py") if not {"site-packages", "test"} & set(path.parts))
        texts = [np.frombuffer(path.read_bytes(), dtype=np.uint8) for path in files]
        kept = [text for text in texts if len(text) > SMALLEST_FILE * context]
        self.train, self.held_back = [t for i, t in enumerate(kept) if i % 10], kept[::10]
        self.context = context

    def batch(self, texts: list[np.ndarray], rng: np.random.Generator, n: int) -> Tensor:
        """Draw n contexts and one byte more [n, context + 1], files by their length."""
        sizes = np.array([len(text) for text in texts], dtype=float)
        picked = rng.choice(len(texts), n, p=sizes / sizes.sum())
        starts = [rng.integers(len(texts[i]) - self.context) for i in picked]
        rows = [texts[i][start : start + self.context + 1] for i, start in zip(picked, starts, strict=True)]
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    def describe(self) -> dict[str, int]:
        return {"train_bytes": sum(map(len, self.train)), "held_back_bytes": sum(map(len, self.held_back))}


def model_of(job: dict[str, Any], options: argparse.Namespace) -> ByteModel:
    torch.manual_seed(job["seed"])
    lact: dict[str, Any] = {"hidden_ratio": job["ratio"]}
    if job["kind"] == "lact":
        lact |= {"muon": job["rule"] == "muon", "momentum": job["rule"] == "momentum", "base_rate": options.base_rate}
        lact |= {"last layer": {"updated": "last"}, "no norm": {"weight_norm": False}}.get(job["form"], {})
        if job["form"] == "sum":
            lact |= {"updated": "last", "weight_norm": False, "muon": False}
    sizes = {"dim": options.dim, "heads": options.heads, "layers": options.layers, "window": options.window}
    return ByteModel(job["kind"], chunk=job["chunk"], **sizes, **lact)


def measure(job: dict[str, Any], options: argparse.Namespace, corpus: Corpus) -> dict[str, Any]:
    """Train one model and score it by position on held-back files, the same ones for every model."""
    model = model_of(job, options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=0.01, betas=(0.9, 0.95))
    rng = np.random.default_rng(job["seed"])
    warm, steps = max(1, options.steps // 10), options.steps
    start = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = options.rate * min((step + 1) / warm, 1.0) * max(0.05, 1 - step / steps)
        tokens = corpus.batch(corpus.train, rng, options.batch)
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    seconds = time.perf_counter() - start
    losses = held_back(model, options, corpus)
    edges = [0, options.window, *_doubling(options.window * 4, options.context)]
    beyond = losses[:, options.window * options.layers + 5 :].mean()
    return {
        "loss": float(losses.mean()),
        "loss_beyond": float(beyond),
        "loss_by_position": [float(losses[:, a:b].mean()) for a, b in itertools.pairwise(edges)],
        "edges": edges,
        "train_loss": float(loss.detach()),
        "parameters": sum(one.numel() for one in model.parameters()),
        "seconds_per_step": seconds / steps,
    }


@torch.no_grad()
def held_back(model: ByteModel, options: argparse.Namespace, corpus: Corpus) -> Tensor:
    """Nats per byte [contexts, context]."""
    rng, rows = np.random.default_rng(12345), []
    for _ in range(options.eval_contexts):
        tokens = corpus.batch(corpus.held_back, rng, 1)
        rows.append(F.cross_entropy(model(tokens[:, :-1])[0], tokens[0, 1:], reduction="none"))
    return torch.stack(rows)


def _doubling(first: int, last: int) -> list[int]:
    edges = [first]
    while edges[-1] * 2 < last:
        edges.append(edges[-1] * 2)
    return [*edges, last]
