"""Parts of benchmarks/on_gpu.sh that no other benchmark has; each writes one small JSON file."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from _common import machine, summary, write


def note_machine(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What the GPU is, and one large product on it."""
    import torch

    size = 8192 if options.device == "cuda" else 256
    a = torch.randn(size, size, device=options.device)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        total = float((a @ a).sum())
        seconds.append(time.perf_counter() - start)
    memory = torch.cuda.get_device_properties(0).total_memory if options.device == "cuda" else None
    return [{"matmul_seconds": summary(seconds), "size": size, "finite": total == total, "gpu_bytes": memory}]


def adaptation(options: argparse.Namespace) -> list[dict[str, Any]]:
    """First and second prediction of a classifier that adapts by gradient steps, and the frozen base's."""
    from sklearn.datasets import make_classification
    from tabpfn import TabPFNClassifier

    from tttabpfn import FastWeightCache, TTTTabPFNClassifier
    from tttabpfn.checkpoints import bundled_model_path

    features = options.features
    X, y = make_classification(
        options.rows + 100, features, n_informative=min(8, features), n_redundant=0, random_state=0
    )
    rows = []
    more = {} if options.context is None else {"context_size": options.context, "n_steps": 2}
    for way in ("gradient", "memory"):
        base = TabPFNClassifier(
            model_path=str(bundled_model_path()),
            device=options.device,
            n_estimators=options.estimators,
            random_state=0,
        )
        model = TTTTabPFNClassifier(base, adaptation=way, random_state=0, cache=FastWeightCache(), **more)
        model.fit(X[:-100], y[:-100])
        spent = []
        for _ in range(2):
            start = time.perf_counter()
            p = model.predict_proba(X[-100:])
            spent.append(time.perf_counter() - start)
        accuracy = float((p.argmax(1) == y[-100:]).mean())
        rows.append({"adaptation": way, "first_seconds": spent[0], "second_seconds": spent[1], "accuracy": accuracy})
    return rows


def pretraining(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Steps per second and losses from a training log of one JSON line a step."""
    lines = [json.loads(line) for line in Path(options.log).read_text().splitlines() if line.strip()]
    steps = [line for line in lines if "loss" in line]
    if not steps:
        return [{"steps": 0}]
    clock = [line["seconds"] for line in steps if "seconds" in line]
    gaps = [after - before for before, after in itertools.pairwise(clock)]
    row = {"steps": len(steps), "first_loss": steps[0]["loss"], "last_loss": steps[-1]["loss"], "last": steps[-1]}
    if gaps:
        row["median_seconds_per_step"] = statistics.median(gaps)
    return [row]


def parallel(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One sequence over the processes that torchrun started: seconds, and the difference from one process."""
    import torch
    from torch import distributed

    from tttabpfn.lact import LaCTSwiGLU
    from tttabpfn.lact.parallel import split_sequence

    gpu = options.device == "cuda"
    device = f"cuda:{os.environ['LOCAL_RANK']}" if gpu else "cpu"
    if gpu:
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if gpu else "gloo")
    try:
        group, size = distributed.group.WORLD, distributed.get_world_size()
        width, length, chunk = (512, 65536, 16384) if gpu else (16, 64, 16)
        draw = torch.Generator().manual_seed(0)
        layer = LaCTSwiGLU(width, n_heads=4, mode="causal", chunk_size=chunk, generator=draw).to(device)
        x = torch.randn(1, length, width, generator=draw).to(device)
        with torch.no_grad():
            part, wanted, seconds = split_sequence(x, chunk), split_sequence(layer(x), chunk), []
            for _ in range(3):
                start = time.perf_counter()
                y = layer(part, group=group)
                error = float((y - wanted).abs().max())
                seconds.append(time.perf_counter() - start)
        return [{"processes": size, "largest_difference": error, "seconds": seconds[1:], "tokens": length}]
    finally:
        distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("machine", "adaptation", "pretraining", "parallel"))
    parser.add_argument("--out", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--log")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--features", type=int, default=20)
    parser.add_argument("--estimators", type=int, default=8)
    parser.add_argument("--context", type=int)
    options = parser.parse_args()
    made = {"machine": note_machine, "adaptation": adaptation, "pretraining": pretraining, "parallel": parallel}
    rows = made[options.part](options)
    if int(os.environ.get("RANK", "0")) == 0:
        kept = {name: value for name, value in vars(options).items() if name not in ("out", "log")}
        write(options.out, f"on_gpu_{options.part}", kept, rows)
        print(json.dumps(rows), machine()["gpu"])


if __name__ == "__main__":
    main()
