"""The command line: ``python -m tttabpfn compare``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tttabpfn.compare.tables import TrainTest

DEFAULT_SHARE = 0.2
"""Share of the rows to fit that TTT keeps as context unless told otherwise."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        What follows the program's name; None: what the process was started with.

    Returns
    -------
    int
        0, or 2 if something the user gave cannot be used.

    Examples
    --------
    >>> main(["compare", "iris", "--target", "species"])
    2
    """
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    try:
        _compare(options)
    except (ValueError, TypeError, ImportError, OSError, MemoryError) as error:
        # What a user can get wrong; a trace would hide the one line that helps.
        if options.debug:
            raise
        print(f"tttabpfn: error: {error}", file=sys.stderr)
        return 2
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands.

    Returns
    -------
    ArgumentParser
        With one sub-command, ``compare``.
    """
    parser = argparse.ArgumentParser(prog="tttabpfn", description="Test-time training for TabPFN.")
    parser.add_argument("--version", action="version", version=_versions())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    compare = commands.add_parser(
        "compare",
        help="run frozen TabPFN and test-time training side by side",
        description="Fit frozen TabPFN and test-time training (TTT) on one part of a table and score both on the rest.",
    )
    add = compare.add_argument
    add(
        "data",
        nargs="?",
        default="breast_cancer",
        metavar="DATA",
        help="a CSV or Parquet file, or breast_cancer (default), wine, iris or digits",
    )
    add("--target", metavar="COL", help="the column to predict; needed for a file")
    add(
        "--context-size",
        type=_context_size,
        metavar="N",
        help="rows TTT keeps as context: a number, a share such as 0.2, or 'all' "
        "(default: a fifth of the rows to fit, two of each class at least)",
    )
    add("--test-share", type=_share, default=0.3, metavar="S", help="share of the rows to test (default: %(default)s)")
    add("--max-rows", type=_positive, default=5000, metavar="N", help="sample larger tables (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the split and the models (default: %(default)s)")
    add("--estimators", type=_positive, default=4, metavar="N", help="ensemble members (default: %(default)s)")
    add("--model", metavar="FILE", help="a TabPFN checkpoint (default: the bundled one)")
    add("--device", default="auto", help="cpu, cuda, ... (default: %(default)s)")
    add("--plot", metavar="FILE.png", help="draw the adaptation and the scores")
    add("--n-steps", type=int, metavar="N", help="updates at most")
    add("--step-size", type=float, metavar="X", help="step size (default: chosen on held-back rows)")
    add("--chunk-size", type=int, metavar="N", help="query rows per update")
    add("--update-rule", metavar="RULE", help="sgd, momentum, muon or adamw")
    add("--fast-weights", metavar="PART", help="what is adapted: in_context, all, mlp, attention or last_quarter")
    add("--adaptation", metavar="KIND", help="gradient, memory or both")
    add("--cache", metavar="DIR", help="keep adapted fast weights in this folder")
    add("--quiet", action="store_true", help="no progress bars")
    add("--debug", action="store_true", help="show the trace of an error")
    return parser


def _versions() -> str:
    named = []
    for package in ("tttabpfn", "tabpfn", "torch", "scikit-learn"):
        try:
            named.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            named.append(f"{package} (not installed)")
    return ", ".join(named)


def _context_size(text: str) -> int | float | str:
    if text == "all":
        return text
    try:
        size = int(text) if text.isdigit() else float(text)
    except ValueError:
        size = -1
    if (isinstance(size, int) and size > 0) or (isinstance(size, float) and 0 < size < 1):
        return size
    raise argparse.ArgumentTypeError(f"must be a number of rows, a share between 0 and 1, or 'all', got {text!r}")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got {text!r}")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 1, got {text!r}")
    return share


def _compare(options: argparse.Namespace) -> None:
    from tqdm.auto import tqdm

    from tttabpfn.compare.measure import compare
    from tttabpfn.compare.output import check_plot, describe, save_plot, table
    from tttabpfn.compare.tables import load_table, split_table

    if options.plot is not None:
        check_plot(Path(options.plot))
    data = load_table(options.data, options.target)
    split, notes = split_table(data, options.test_share, options.seed, options.max_rows)
    context_size, why = _resolve_context(options.context_size, split)
    print(f"Data: {data.describe()}")
    for note in (*data.notes, *notes):
        print(f"      {note}")
    sizes = f"{len(split.y_train):,} rows to fit, {len(split.y_test):,} rows to test"
    print(f"Split: {sizes} (stratified, seed {options.seed})")
    print(f"Context: {why}", flush=True)

    estimator = _estimator(options, context_size)
    with tqdm(total=5, desc="compare", file=sys.stderr, disable=options.quiet, leave=False) as bar:

        def progress(stage: str) -> None:
            bar.set_description(stage)
            bar.update()

        rows, report = compare(split, estimator, progress)
    print(f"\n{describe(report)}\n\n{table(rows)}")
    if options.plot is not None:
        save_plot(Path(options.plot), rows, report, f"{data.name}: frozen TabPFN and test-time training")


def _resolve_context(asked: int | float | str | None, split: TrainTest) -> tuple[int | float | None, str]:
    import numpy as np

    n = len(split.y_train)
    if asked == "all":
        return None, f"TTT keeps all {n:,} rows to fit"
    if asked is not None and not isinstance(asked, str):
        kept = asked if isinstance(asked, int) else round(asked * n)
        if kept > n:
            raise ValueError(f"--context-size must be at most the {n:,} rows to fit, got {asked}")
        return asked, f"TTT keeps {kept:,} of the {n:,} rows to fit, and trains on the others"
    size = min(n, max(round(DEFAULT_SHARE * n), 2 * len(np.unique(split.y_train))))
    why = f"TTT keeps {size:,} of the {n:,} rows to fit, and trains on the others (a fifth; change with --context-size)"
    return size, why


def _estimator(options: argparse.Namespace, context_size: int | float | None) -> Any:
    from tabpfn import TabPFNClassifier

    from tttabpfn.checkpoints import bundled_model_path
    from tttabpfn.classifier import TTTTabPFNClassifier

    if options.model is not None and not Path(options.model).is_file():
        raise ValueError(f"--model must be a checkpoint file; there is no file {options.model}")
    base = TabPFNClassifier(
        n_estimators=options.estimators,
        model_path=options.model or bundled_model_path(),
        device=options.device,
        ignore_pretraining_limits=True,
        random_state=options.seed,
    )
    names = ("n_steps", "step_size", "chunk_size", "update_rule", "fast_weights", "adaptation", "cache")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return TTTTabPFNClassifier(
        base, context_size=context_size, random_state=options.seed, verbose=0 if options.quiet else 1, **given
    )
