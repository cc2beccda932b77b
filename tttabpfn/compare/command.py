"""The command line: ``python -m tttabpfn compare`` and ``predict``."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tttabpfn.compare import options as given

if TYPE_CHECKING:
    from tttabpfn.compare.tables import Reading


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
    Reading iris
    2
    """
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    run = {"compare": _compare, "predict": _predict}[options.command]
    try:
        with _each_warning_once(options.debug):
            run(options)
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
        With the sub-commands ``compare`` and ``predict``.
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
    add("--target", metavar="COLUMN", help="the column to predict; needed for a file")
    add("--test-share", type=given.share, default=0.3, metavar="S", help="share to test (default: %(default)s)")
    add("--max-rows", type=given.whole(1), default=5000, metavar="N", help="sample larger tables (default: 5000)")
    add("--skip-frozen", action="store_true", help="leave out frozen TabPFN on all rows, the slowest part")
    add("--plot", metavar="FILE.png", help="draw the adaptation and the scores")
    predict = commands.add_parser(
        "predict",
        help="learn from one table and predict another",
        description="Learn from the rows of TRAIN, whose COLUMN is known, and predict it for the rows of NEW. FILE "
        "gets a row for each row of NEW, in order: the predicted label, and a probability for each class.",
    )
    add = predict.add_argument
    add("train", metavar="TRAIN", help="a CSV or Parquet file with the column to predict")
    add("new", metavar="NEW", help="a CSV or Parquet file with the other columns")
    add("--target", metavar="COLUMN", required=True, help="the column to predict")
    add("--out", metavar="FILE", required=True, help="a .csv, .csv.gz, .tsv or .parquet file to write")
    add("--max-rows", type=given.whole(1), metavar="N", help="learn from a sample of a larger TRAIN (default: all)")
    for command in (compare, predict):
        given.add_reading(command)
        given.add_model(command)
        given.add_common(command)
    return parser


def _versions() -> str:
    named = []
    for package in ("tttabpfn", "tabpfn", "torch", "scikit-learn"):
        try:
            named.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            named.append(f"{package} (not installed)")
    return ", ".join(named)


@contextmanager
def _each_warning_once(debug: bool) -> Iterator[None]:
    """Print each warning once and at the end, as a note; those that the command's own lines say better are left out."""
    if debug:
        yield
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    # A RuntimeWarning from a library below is about its arithmetic; from here it is about a folder or a file.
    said = {
        " ".join(str(warning.message).split())
        for warning in caught
        if issubclass(warning.category, UserWarning)
        or (
            issubclass(warning.category, RuntimeWarning) and Path(__file__).parents[1] in Path(warning.filename).parents
        )
    }
    ours = ("These columns look like free text", "context_size=None keeps")
    for message in sorted(said):
        if not message.startswith(ours):
            print(f"note: {message}", file=sys.stderr)


def _reading(options: argparse.Namespace) -> Reading:
    from tttabpfn.compare.tables import Reading

    return Reading(options.separator, tuple(options.drop), tuple(options.date))


def _compare(options: argparse.Namespace) -> None:
    # Said before the libraries load, which takes seconds.
    print(f"Reading {options.data}", flush=True)
    if options.plot is not None:
        from tttabpfn.compare.output import check_plot

        check_plot(Path(options.plot))
    from tttabpfn.compare.tables import load_table, split_table

    data = load_table(options.data, options.target, _reading(options))
    split, notes = split_table(data, options.test_share, options.seed, options.max_rows)
    print(f"Data: {data.describe()}")
    for note in (*data.notes, *notes):
        print(f"      {note}")
    sizes = f"{len(split.y_train):,} rows to fit, {len(split.y_test):,} rows to test"
    print(f"Split: {sizes} (stratified, seed {options.seed})", flush=True)

    from tttabpfn.compare.measure import compare
    from tttabpfn.compare.output import advise, save_plot, table

    estimator = _estimator(options, len(split.y_train))
    context, why = _context(estimator, split.X_train.shape, split.y_train)
    print(f"Context: {why}", flush=True)
    rows, report = compare(split, estimator, context < len(split.y_train), options.skip_frozen, quiet=options.quiet)
    print(f"\n{report}\n\n{table(rows)}")
    for line in advise(rows, split.y_test, report):
        print(line)
    if options.plot is not None:
        save_plot(Path(options.plot), rows, split.y_test, report, f"{data.name}: frozen TabPFN and test-time training")


def _predict(options: argparse.Namespace) -> None:
    print(f"Reading {options.train} and {options.new}", flush=True)
    from tttabpfn.compare.predict import check_out, load_new, predict_rows, sample, write
    from tttabpfn.compare.tables import load_table

    out = Path(options.out)
    check_out(out, [Path(options.train), Path(options.new)])
    reading = _reading(options)
    table, notes = sample(load_table(options.train, options.target, reading), options.max_rows, options.seed)
    new, more = load_new(options.new, table.X, options.target, reading)
    print(f"Data: {table.describe()}")
    for note in (*table.notes, *notes, *more):
        print(f"      {note}")
    print(f"New: {len(new):,} rows to predict", flush=True)

    estimator = _estimator(options, len(table.y))
    print(f"Context: {_context(estimator, table.X.shape, table.y)[1]}", flush=True)
    fitted, probabilities = predict_rows(estimator, table, new, quiet=options.quiet)
    write(out, options.target, fitted.classes_, probabilities)
    print(f"\n{fitted.adaptation_report()}\n\nWrote {len(new):,} rows to {out}")


def _context(estimator: Any, shape: tuple[int, int], y: Any) -> tuple[int, str]:
    """Rows kept as context, and a line that says so."""
    import numpy as np

    from tttabpfn.inputs.parameters import resolve_context_size

    size = resolve_context_size(estimator.context_size, *shape, len(np.unique(y)), None)
    if size.rows == shape[0]:
        asked = f" ({estimator.context_size:,} asked for)" if size.note else ""
        return size.rows, f"TTT keeps all {shape[0]:,} rows to fit{asked}"
    why = f" ({size.note})" if size.note and estimator.context_size is not None else " (change with --context-size)"
    return size.rows, f"TTT keeps {size.rows:,} of the {shape[0]:,} rows to fit, and learns from the others too{why}"


def _estimator(options: argparse.Namespace, n_rows: int) -> Any:
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
        inference_config={"TRANSFORM_DATES": True},
        random_state=options.seed,
    )
    names = ("n_steps", "step_size", "chunk_size", "update_rule", "fast_weights", "adaptation", "time_limit", "cache")
    asked = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.context_size is not None:
        asked["context_size"] = n_rows if options.context_size == "all" else options.context_size
    return TTTTabPFNClassifier(base, random_state=options.seed, **asked)
