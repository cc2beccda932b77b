"""What share of one adaptation is spent outside the model's own forward and backward passes.

    python benchmarks/adaptation_share.py --no-guard --threads 1 --out adaptation_share.json

Gradient TTT of the bundled base on a made-up table: processor time of a whole adaptation (preprocessing of the
demonstrations included, loading of weights not), of the outermost calls of the networks, of autograd's backward pass,
and of the updates and the Newton-Schulz iterations in them. Once with all weights adapted, and once with the
in-context stage alone, for which the rows of a context are embedded once: with most of the networks' work gone, all
else weighs more.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from _common import parser, summary, write
from _running import base_checkpoint, file_digest, use_threads
from sklearn.datasets import make_classification
from tabpfn import TabPFNClassifier
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from tttabpfn import FastWeightCache, TTTTabPFNClassifier
from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.adaptation.fast_model import FastModel
from tttabpfn.fast_weights import operations, update_rules


class Parts:
    """Processor seconds by part of the adaptation; a part inside itself counts once."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self._open: dict[str, list[float]] = {}

    def enter(self, part: str) -> None:
        self._open.setdefault(part, []).append(time.process_time())

    def leave(self, part: str) -> None:
        started = self._open[part].pop()
        if not self._open[part]:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.process_time() - started
            self.calls[part] = self.calls.get(part, 0) + 1

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, timed as `part`."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self.enter(part)
            try:
                return call(*args, **kwargs)
            finally:
                self.leave(part)

        return run


@contextmanager
def measuring(parts: Parts) -> Iterator[None]:
    """Time the networks' forward (recomputing in the backward counts there), the backward and the updates."""

    def before(module: torch.nn.Module, _: Any) -> None:
        if not parts._open.get("backward"):
            parts.enter("forward")

    def after(module: torch.nn.Module, *_: Any) -> None:
        if not parts._open.get("backward"):
            parts.leave("forward")

    with ExitStack() as stack:
        # a pass that keeps row embeddings ends in an exception, which must end its time as well
        for handle in (register_module_forward_pre_hook(before), register_module_forward_hook(after, always_call=True)):
            stack.callback(handle.remove)
        for owner, name, part in (
            (torch.autograd, "grad", "backward"),
            (update_rules, "update", "update"),
            (operations, "newton_schulz", "newton_schulz"),
            (adapter, "fit_tabpfn", "preprocessing"),
            (adapter, "prepare_demonstrations", "preprocessing"),
            (FastModel, "load", "loading fast weights"),
        ):
            stack.enter_context(mock.patch.object(owner, name, parts.timed(part, getattr(owner, name))))
        yield


def adapt(
    checkpoint: str, given: argparse.Namespace, fast_weights: str, seed: int, parts: Parts | None
) -> tuple[float, Any]:
    """Processor seconds of fitting and adapting, and what is reported."""
    X, y = make_classification(
        given.rows, given.features, n_informative=given.features // 2, n_classes=3, flip_y=0.1, random_state=seed
    )
    base = TabPFNClassifier(model_path=checkpoint, device="cpu", random_state=0, ignore_pretraining_limits=True)
    model = TTTTabPFNClassifier(
        base,
        n_steps=given.steps,
        chunk_size=given.chunk_size,
        context_size=given.context,
        adaptation="gradient",
        fast_weights=fast_weights,
        step_size=given.step_size,
        guard=given.guard,
        random_state=seed,
        cache=FastWeightCache(),
    )
    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.filterwarnings("ignore", "Running on CPU", UserWarning)
        if parts is not None:
            stack.enter_context(measuring(parts))
        start = time.process_time()
        report = model.fit(X, y).adaptation_report()  # adapting waits until something asks for its outcome
        return time.process_time() - start, report


def options() -> argparse.Namespace:
    """The command line."""
    out = parser((__doc__ or "").splitlines()[0], data=False)
    out.add_argument("--checkpoint", metavar="FILE", help="base weights; default: the checkpoint in the package")
    out.add_argument("--rows", type=int, default=4500, help="demonstrations, the context included")
    out.add_argument("--features", type=int, default=20)
    out.add_argument("--context", type=int, default=500)
    out.add_argument("--steps", type=int, default=20)
    out.add_argument("--chunk-size", type=int, default=2048)
    out.add_argument("--step-size", type=float, default=0.01)
    out.add_argument("--fast-weights", nargs="*", default=["all", "in_context"], metavar="NAME")
    out.add_argument("--guard", action=argparse.BooleanOptionalAction, default=True)
    out.add_argument("--repeats", type=int, default=1)
    out.add_argument("--threads", type=int, default=1)
    return out.parse_args()


def main() -> None:
    """Measure and write."""
    given = options()
    use_threads(given)
    checkpoint = base_checkpoint(given)
    small = argparse.Namespace(**{**vars(given), "rows": 200, "context": 50, "steps": 1})
    settings = {name: value for name, value in vars(given).items() if name not in ("out", "checkpoint")}
    settings |= {"checkpoint_sha256": file_digest(checkpoint)}
    rows: list[dict[str, Any]] = []
    for name in given.fast_weights:
        adapt(checkpoint, small, name, 0, None)
        for seed in range(given.repeats):
            parts = Parts()
            whole, report = adapt(checkpoint, given, name, seed, parts)
            inside = parts.seconds["forward"] + parts.seconds["backward"]
            rows.append(
                {
                    "measured": "adaptation",
                    "fast_weights": name,
                    "seed": seed,
                    "processor_seconds": whole,
                    "outside_share": 1 - inside / whole,
                    "parts_processor_seconds": parts.seconds,
                    "parts_calls": parts.calls,
                    "report": str(report),
                }
            )
            shares = {part: f"{seconds / whole:.2%}" for part, seconds in parts.seconds.items()}
            outside = rows[-1]["outside_share"]
            print(f"{name}, seed {seed}: {whole:.1f} s, outside {outside:.2%}; {shares}", flush=True)
        own = [row["outside_share"] for row in rows if row["fast_weights"] == name]
        settings[f"outside_share, {name}"] = summary(own)
        write(given.out, "adaptation_share", settings, rows)


if __name__ == "__main__":
    main()
