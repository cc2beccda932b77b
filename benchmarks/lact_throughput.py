"""LaCT's update and apply as a share of the machine's matmul peak, against chunk size; and its kernels one by one.

    python benchmarks/lact_throughput.py --out lact.json --plot lact.png
    python benchmarks/lact_throughput.py --device cuda --out lact_gpu.json --plot lact_gpu.png

The file is written after every setting measured; `--resume` keeps the rows in it that were measured in the same way.

Each contender and a large matmul of the same dtype run in turns, so a share compares times taken seconds apart. Nothing
is timed before its result has been compared with the baseline's (Muon has no baseline here: its tests are the check).
The matmul is PyTorch's own; on a CPU its product through oneDNN, which can be faster, is timed in the same turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import _lact_baseline as baseline
import torch
from _common import parser
from _lact_measure import Peak, in_turns, row
from _lact_rows import Row, Rows
from torch import Tensor

from tttabpfn.fast_weights import blocked, operations, reference
from tttabpfn.fast_weights.reference.newton_schulz import coefficients
from tttabpfn.lact import lact_swiglu

CHUNKS = [16, 64, 256, 1024, 2048, 4096, 16384, 65536]
HIDDEN = {"cpu": [256, 512], "cuda": [192, 384, 768, 1024]}
SQUARES = [64, 128, 192, 256, 384, 768, 1024]
BATCHES = [1, 12, 48, 192]
AGREEMENT = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
NEWTON_SCHULZ_AGREEMENT = {torch.float32: 1e-3, torch.bfloat16: 0.2}
"""Five steps in bfloat16 end several per cent away from float32, in every implementation."""


def inputs(width: int, tokens: int, device: str, dtype: torch.dtype, batch: int = 1) -> list[Tensor]:
    """w0, w1, w2, q, k, v, lr0, lr1, lr2; rates small enough that updates stay moderate at every chunk size."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(batch, width, width)] * 3 + [(batch, tokens, width)] * 3
    tensors = [torch.randn(*shape, generator=draw) for shape in shapes]
    for weight in tensors[:3]:
        weight /= width**0.5
    tensors += [torch.rand(batch, tokens, 1, generator=draw) * 1e-3 for _ in range(3)]
    return [tensor.to(device, dtype) for tensor in tensors]


def check(name: str, got: Tensor, wanted: Tensor, limit: float) -> None:
    """Stop the run if a contender's result is not the baseline's."""
    error = float((got.float() - wanted.float()).norm() / wanted.float().norm())
    if not error < limit:
        raise SystemExit(f"{name} differs from the baseline by {error:.2e}; not timed")


def rows_of(
    contenders: dict[str, Callable[[], Any]],
    flops: float,
    peak: Peak,
    options: argparse.Namespace,
    labels: dict[str, Any],
    **more: Any,
) -> list[Row]:
    times = in_turns(contenders, peak, options.device, budget=options.seconds, repeats=(3, options.repeats))
    rows = []
    for name in contenders:
        done = row(times[name], times["matmul"], flops, peak)
        if "matmul, oneDNN" in times:
            faster = row(times[name], times["matmul, oneDNN"], flops, peak)
            done["onednn_gflops_processor"] = faster["peak_gflops_processor"]
            done["share_of_onednn_processor"] = faster["share_of_peak_processor"]
        rows.append({**labels, **more, "implementation": name, "flop": flops, **done})
        shares = [done[f"share_of_peak{kind}"] for kind in ("", "_fastest", "_processor")]
        print(
            labels, name, "share of peak: median {:.1%}, fastest {:.1%}, processor {:.1%}".format(*shares), flush=True
        )
    return rows


@torch.no_grad()
def chunk_rows(options: argparse.Namespace, dtype: torch.dtype, peak: Peak, kept: Rows) -> Iterator[list[Row]]:
    """Forward + update + apply: nine products of 2 * tokens * width^2 operations (six update, three apply).

    Muon's own operations are not counted: its row tells what share of the useful rate is left with it.
    """
    for width in options.hidden:
        compiled = torch.compile(baseline.chunk_step, dynamic=True) if options.compile else None
        for chunk in options.chunks:
            tokens = max(chunk, min(options.tokens, 128 * chunk))
            labels = {"section": "chunks", "hidden": width, "chunk": chunk, "tokens": tokens}
            if labels in kept:
                continue
            args = inputs(width, tokens, options.device, dtype)
            operators = [(start, start + chunk, True, True) for start in range(0, tokens, chunk)]

            def ours(args: list[Tensor] = args, operators: list[Any] = operators, muon: bool = False) -> Tensor:
                how: dict[str, Any] = {"order": "operators", "operators": operators, "backend": options.backend}
                return lact_swiglu(*args, **how, muon=muon)[0]

            contenders = {
                "tttabpfn": ours,
                "published, eager": partial(baseline.over_chunks, args, chunk, baseline.published_step),
                "rewritten, eager": partial(baseline.over_chunks, args, chunk, baseline.chunk_step),
            }
            if compiled is not None:
                contenders["rewritten, torch.compile"] = partial(baseline.over_chunks, args, chunk, compiled)
            if options.muon:
                contenders["tttabpfn, with Muon"] = partial(ours, muon=True)
            wanted = contenders["published, eager"]()
            for name, call in contenders.items():
                if "Muon" not in name:
                    check(name, call(), wanted, AGREEMENT[dtype])
            yield rows_of(contenders, 18.0 * tokens * width**2, peak, options, labels)


@torch.no_grad()
def newton_schulz_rows(options: argparse.Namespace, dtype: torch.dtype, peak: Peak, kept: Rows) -> Iterator[list[Row]]:
    """Five steps on batches of square matrices: 30 * batch * d^3 operations."""
    triples, name_of_dtype = coefficients("schedule", 5), str(dtype).removeprefix("torch.")
    compiled = torch.compile(baseline.zeropower, dynamic=True) if options.compile else None
    for size in options.squares:
        for batch in options.batches:
            flops = 30.0 * batch * size**3
            labels = {"section": "newton_schulz", "size": size, "batch": batch}
            if flops > options.max_gflop * 1e9 or labels in kept:
                continue
            draw = torch.Generator().manual_seed(0)
            stack = torch.randn(batch, size, size, generator=draw).to(options.device, dtype)

            def backend(which: str, stack: Tensor = stack) -> Callable[[], Tensor]:
                return lambda: operations.newton_schulz(stack, "schedule", 5, name_of_dtype, backend=which)

            contenders: dict[str, Callable[[], Tensor]] = {
                "tttabpfn, torch": backend("torch"),
                "eager, one by one": lambda stack=stack: baseline.one_by_one(stack, triples),
                "batched (torch.bmm), eager": lambda stack=stack: baseline.zeropower(stack, triples),
            }
            if compiled is not None:
                contenders["batched, torch.compile"] = lambda stack=stack: compiled(stack, triples)
            if options.device == "cuda":
                contenders["tttabpfn, triton"] = backend("triton")
            wanted = reference.newton_schulz(stack.float())
            for name, call in contenders.items():
                check(name, call(), wanted, NEWTON_SCHULZ_AGREEMENT[dtype])
            yield rows_of(contenders, flops, peak, options, labels)


def as_tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else result


@torch.no_grad()
def kernel_rows(options: argparse.Namespace, dtype: torch.dtype, peak: Peak, kept: Rows) -> Iterator[list[Row]]:
    """The SwiGLU leaves alone: plain, in blocks, and in Triton on a GPU; with the bytes they have to move at least."""
    for width in options.hidden:
        w0, w1, w2, q, k, v, *rates = inputs(width, options.kernel_tokens, options.device, dtype)
        modules: dict[str, Any] = {"plain PyTorch": reference, "tttabpfn, torch": blocked}
        if options.device == "cuda":
            from tttabpfn.fast_weights.kernels import swiglu as kernels

            modules["tttabpfn, triton"] = kernels
        work = {"swiglu_gradients": (12.0, (w0, w1, w2, k, v, *rates)), "swiglu_apply": (6.0, (w0, w1, w2, q))}
        for operation, (products, tensors) in work.items():
            labels = {"section": "kernels", "operation": operation, "hidden": width, "tokens": options.kernel_tokens}
            if labels in kept:
                continue
            contenders = {name: partial(getattr(module, operation), *tensors) for name, module in modules.items()}
            for name, contender in contenders.items():
                for got, wanted in zip(as_tuple(contender()), as_tuple(contenders["plain PyTorch"]()), strict=True):
                    check(name, got, wanted, AGREEMENT[dtype])
            flops = products * options.kernel_tokens * width**2
            moved = (2 * options.kernel_tokens + 3 * width) * width * w0.element_size()
            yield rows_of(contenders, flops, peak, options, labels, min_bytes=moved)


def plot(rows: list[Row], path: str, title: str, share: str) -> None:
    """Utilisation against chunk size, one panel per hidden size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [entry for entry in rows if entry["section"] == "chunks"]
    widths = sorted({entry["hidden"] for entry in rows})
    figure, axes = plt.subplots(1, len(widths), figsize=(max(6.4, 4.6 * len(widths)), 4.2), sharey=True, squeeze=False)
    for axis, width in zip(axes[0], widths, strict=True):
        panel = [entry for entry in rows if entry["hidden"] == width]
        for name in dict.fromkeys(entry["implementation"] for entry in rows):
            line = [entry for entry in panel if entry["implementation"] == name]
            shares = [100 * entry[share] for entry in line]
            style = {"linewidth": 2.2} if name == "tttabpfn" else {"linewidth": 1.3, "linestyle": "--"}
            axis.plot([entry["chunk"] for entry in line], shares, marker="o", markersize=4, label=name, **style)
        axis.set_xscale("log", base=2)
        chunks = sorted({entry["chunk"] for entry in panel})
        axis.set_xticks(chunks, [f"{chunk:,}" for chunk in chunks], rotation=45)
        axis.set_xlabel("chunk size (tokens per update)")
        axis.set_title(f"hidden size {width}", fontsize=10)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("share of measured matmul peak (%)")
    axes[0][0].set_ylim(0, max(105, *(105 * entry[share] for entry in rows)))
    axes[0][-1].legend(fontsize=8, loc="lower right")
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def arguments() -> argparse.Namespace:
    out = parser(__doc__.splitlines()[0], data=False, plot=True)
    out.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    out.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: float32 on a CPU, bfloat16 on a GPU")
    out.add_argument("--backend", choices=["auto", "torch", "triton"], default="auto")
    out.add_argument("--sections", nargs="*", default=["chunks", "newton_schulz", "kernels"])
    out.add_argument("--hidden", nargs="*", type=int, help="widths of keys, values and hidden rows")
    out.add_argument("--chunks", nargs="*", type=int, default=CHUNKS)
    out.add_argument("--squares", nargs="*", type=int, default=SQUARES)
    out.add_argument("--batches", nargs="*", type=int, default=BATCHES)
    out.add_argument("--muon", action="store_true", help="a row with Muon per chunk size as well")
    out.add_argument("--tokens", type=int, default=16384, help="tokens per timed call, more where a chunk is larger")
    out.add_argument("--kernel-tokens", type=int, default=16384)
    out.add_argument("--max-gflop", type=float, help="skip Newton-Schulz batches above this (default 100 on a CPU)")
    out.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    out.add_argument("--resume", action="store_true", help="keep the rows of --out that were measured in the same way")
    out.add_argument("--repeats", type=int, default=30, help="most rounds per row")
    out.add_argument("--seconds", type=float, default=4.0, help="about how long the rounds of one row take")
    out.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="time torch.compile as well"
    )
    options = out.parse_args()
    options.hidden = options.hidden or HIDDEN[options.device]
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    options.max_gflop = options.max_gflop or (100.0 if options.device == "cpu" else float("inf"))
    return options


def main() -> None:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    peak = Peak(options.device, dtype)
    sections = {"chunks": chunk_rows, "newton_schulz": newton_schulz_rows, "kernels": kernel_rows}
    kept = Rows(options)
    for name in options.sections:
        for rows in sections[name](options, dtype, peak, kept):
            kept.add(rows)
    if options.plot and "chunks" in options.sections:
        threads = torch.get_num_threads()
        where = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, threads: {threads}"
        by_processor = options.device == "cpu" and threads == 1
        clock = "processor time" if by_processor else "wall clock"
        share = "share_of_peak_processor" if by_processor else "share_of_peak"
        plot(kept.rows, options.plot, f"LaCT update + apply per chunk, {options.dtype}, {where}, {clock}", share)


if __name__ == "__main__":
    main()
