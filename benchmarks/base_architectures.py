"""Compare architectures by measurement: loss reached in a budget of processor time, and latency of a prediction.

``python benchmarks/base_architectures.py --out FILE.json`` trains every candidate from scratch on the same tables
in the same order, under the curriculum of a configuration, and scores each on the same held-out tables.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from tttabpfn.pretraining.arguments import argument_parser, parse
from tttabpfn.pretraining.config import TrainConfig
from tttabpfn.pretraining.prior.batches import Batch, sample_batch
from tttabpfn.pretraining.train import Trainer

_V3 = {
    "embed_dim": 32,
    "nlayers": 5,
    "feature_group_size": 1,
    "dist_embed_num_blocks": 2,
    "dist_embed_num_heads": 4,
    "dist_embed_num_inducing_points": 16,
    "feat_agg_num_blocks": 3,
    "feat_agg_num_heads": 4,
    "feat_agg_num_cls_tokens": 4,
    "icl_num_heads": 4,
    "decoder_head_dim": 32,
    "decoder_num_heads": 4,
    "decoder_use_softmax_scaling": True,
}

CANDIDATES: dict[str, tuple[str, dict[str, Any]]] = {
    "v3, width 32": ("tabpfn_v3", _V3),
    "v3, width 48": ("tabpfn_v3", {**_V3, "embed_dim": 48}),
    "v3, width 32, three columns a token": ("tabpfn_v3", {**_V3, "feature_group_size": 3}),
    "v2, width 48": ("tabpfn_v2", {"emsize": 48, "nhead": 4, "nlayers": 6}),
    "v2, width 96": ("tabpfn_v2", {"emsize": 96, "nhead": 4, "nlayers": 6}),
    "v2.6, width 48": ("tabpfn_v2_6", {"emsize": 48, "nhead": 4, "nlayers": 6, "num_thinking_rows": 8}),
    "v2.6, width 96": ("tabpfn_v2_6", {"emsize": 96, "nhead": 4, "nlayers": 6, "num_thinking_rows": 8}),
}
"""Name, architecture and settings of what is compared."""

HELD_OUT = 10_000_000
"""Index of the first held-out batch; no training run comes that far."""


def held_out_loss(model: torch.nn.Module, batches: Sequence[Batch]) -> float:
    """Mean cross-entropy of the query rows of some batches.

    Parameters
    ----------
    model : torch.nn.Module
        A TabPFN architecture; left in the mode it was in.
    batches : sequence of Batch
        Tables the model was not trained on.

    Returns
    -------
    float
        Nats per row.
    """
    training = model.training
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            y = torch.from_numpy(batch.y)
            logits = model(torch.from_numpy(batch.X), y[: batch.n_train].float())
            target = y[batch.n_train :].reshape(-1)
            logits = logits.float().reshape(target.shape[0], -1)
            total += F.cross_entropy(logits, target, ignore_index=-100, reduction="sum").item()
            count += int((target >= 0).sum())
    model.train(training)
    return total / count


def latency(model: torch.nn.Module, n_train: int = 1000, n_query: int = 1000, n_columns: int = 20) -> float:
    """Median wall-clock of one forward pass of one ensemble member.

    Parameters
    ----------
    model : torch.nn.Module
        A TabPFN architecture; left in evaluation mode.
    n_train, n_query, n_columns : int
        Shape of the table.

    Returns
    -------
    float
        Seconds, median of three passes after one that is not counted.
    """
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(n_train + n_query, 1, n_columns, generator=generator)
    y = torch.randint(0, 3, (n_train, 1), generator=generator).float()
    model.eval()
    seconds = []
    with torch.no_grad():
        for _ in range(4):
            started = time.perf_counter()
            model(X, y)
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def measure(name: str, base: TrainConfig, minutes: float, batches: Sequence[Batch]) -> dict[str, Any]:
    """Train one candidate for a budget of processor time and score it.

    Parameters
    ----------
    name : str
        A key of `CANDIDATES`.
    base : TrainConfig
        Prior, curriculum and schedule; its model is replaced.
    minutes : float
        Processor time for training, all threads together.
    batches : sequence of Batch
        Held-out tables.

    Returns
    -------
    dict
        Parameters, rows per second of processor time, steps, held-out loss after every quarter of the budget, and
        latency.
    """
    architecture, settings = CANDIDATES[name]
    model = {"max_num_classes": 10, "num_buckets": 0, **settings}
    config = dataclasses.replace(base, architecture=architecture, model=model, workers=0)
    losses: list[float] = []
    spent, rows = 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, folder)
        while spent < 60 * minutes:
            batch = sample_batch(config, trainer.step, min(1.0, spent / (60 * minutes)))
            started = time.process_time()
            trainer.seconds = spent * config.schedule.minutes / minutes
            trainer.train_step(batch)
            spent += time.process_time() - started
            rows += batch.y.size
            if spent > 15 * minutes * (len(losses) + 1):
                losses.append(held_out_loss(trainer.model, batches))
        return {
            "name": name,
            "architecture": architecture,
            "settings": settings,
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "steps": trainer.step,
            "rows_per_processor_second": rows / spent,
            "held_out_loss_by_quarter": losses,
            "latency_seconds": latency(trainer.model),
        }


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Parameters
    ----------
    argv : list of str or None
        Arguments; None takes those of the process.

    Returns
    -------
    int
        0 on success, 2 on a bad argument or configuration.
    """
    parser = argument_parser("python benchmarks/base_architectures.py", (__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="processor time for each candidate")
    parser.add_argument("--candidates", nargs="*", default=list(CANDIDATES), choices=list(CANDIDATES), metavar="NAME")
    parser.add_argument("--out", required=True, metavar="FILE.json", help="where the results go")
    options, base = parse(parser, argv)
    batches = [sample_batch(base, HELD_OUT + index, 0.1) for index in range(4)]
    rows = []
    for name in options.candidates:
        rows.append(measure(name, base, options.minutes, batches))
        record = {"minutes": options.minutes, "threads": torch.get_num_threads(), "rows": rows}
        Path(options.out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
