"""Processor time of a training step, plain and with each of the faster operations, on the same batches by turns."""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

import torch

from tttabpfn.pretraining.config import TrainConfig, load_config
from tttabpfn.pretraining.prior import Batch, sample_batch
from tttabpfn.pretraining.train import Trainer

STEPS = {
    "plain": {"precision": "float32", "kernels": False},
    "kernels": {"precision": "float32", "kernels": True},
    "kernels, bfloat16 products and Muon": {"precision": "bfloat16_products", "kernels": True},
}


def trainers(config: TrainConfig, init: str | None, folder: str) -> dict[str, Trainer]:
    """One trainer for each kind of step, all with the same weights."""
    return {
        name: Trainer(dataclasses.replace(config, **change), Path(folder) / str(number), init=init)
        for number, (name, change) in enumerate(STEPS.items())
    }


def spent(trainer: Trainer, batch: Batch) -> tuple[float, float]:
    """Processor seconds of one step, and its loss."""
    started = time.process_time()
    loss, _ = trainer.train_step(batch)
    return time.process_time() - started, loss


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="cpu_v2")
    parser.add_argument("--init", help="state.pt of a run; by default the weights are fresh")
    parser.add_argument("--progress", type=float, nargs="+", default=[0.3], help="places in the curriculum")
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    config = load_config(options.config)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        made = trainers(config, options.init, folder)
        for trainer in made.values():
            trainer.train_step(sample_batch(config, 0, options.progress[0]))
        for progress in options.progress:
            batches = [sample_batch(config, 1000 + index, progress) for index in range(options.batches)]
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
            for batch in batches:
                for name, trainer in made.items():
                    found[name].append(spent(trainer, batch))
            rows = sum(batch.y.size for batch in batches)
            plain = sum(seconds for seconds, _ in found["plain"])
            for name, values in found.items():
                seconds, losses = (sum(column) for column in zip(*values, strict=True))
                record = {
                    "progress": progress,
                    "step": name,
                    "seconds_per_step": seconds / len(batches),
                    "rows_per_second": rows / seconds,
                    "times_faster": plain / seconds,
                    "mean_loss": losses / len(batches),
                }
                results.append(record)
                print(json.dumps(record))
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
