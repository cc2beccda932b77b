"""Options of the command line: values refused before anything loads, and groups of options that commands share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

from tttabpfn.choices import ADAPTATIONS, MAX_STEP_SIZE, SELECTIONS
from tttabpfn.fast_weights.rules import RULES

SEPARATORS = {"auto": None, "tab": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a file is read."""
    add = parser.add_argument_group("reading").add_argument
    add("--drop", metavar="COLUMN", action="append", default=[], help="leave this column out; may be given again")
    add(
        "--date",
        metavar="COLUMN",
        action="append",
        default=[],
        help="read this column as dates; may be given again (columns of ISO dates, such as 2026-01-31, are found)",
    )
    add(
        "--separator",
        metavar="CHAR",
        type=separator,
        help=f"between the cells of a CSV file: one character, or {_listed(SEPARATORS)} (default: found by looking)",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options of the model and its adaptation."""
    add = parser.add_argument_group("model").add_argument
    add(
        "--context-size",
        type=context_size,
        metavar="N",
        help="rows kept as context at predict: a number, a share such as 0.2, or all "
        "(default: all while that is cheap, else 1,000, or 500 in wide tables)",
    )
    add("--seed", type=whole(0), default=0, metavar="N", help="seed of splits and models (default: %(default)s)")
    add("--estimators", type=whole(1), default=4, metavar="N", help="ensemble members (default: %(default)s)")
    add("--model", metavar="FILE", help="a TabPFN checkpoint (default: the bundled one)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: %(default)s: a GPU if there is one)")
    add("--adaptation", choices=ADAPTATIONS, help=f"what is adapted: {_explained(ADAPTATIONS)} (default: both)")
    add("--n-steps", type=whole(0), metavar="N", help="gradient steps at most (default: 32); 0 is plain TabPFN")
    add("--step-size", type=step_size, metavar="X", help="size of a step (default: auto, chosen on held-back rows)")
    add("--chunk-size", type=whole(1), metavar="N", help="query rows in one step at most (default: 512)")
    rules = {name: rule.summary for name, rule in RULES.items()}
    add("--update-rule", choices=RULES, help=f"how gradients become steps: {_explained(rules)} (default: muon)")
    add(
        "--fast-weights",
        choices=SELECTIONS,
        help=f"which weights gradient steps train: {_explained(SELECTIONS)} (default: in_context)",
    )
    add("--time-limit", type=seconds, metavar="SECONDS", help="stop adapting then and keep the best so far")
    add("--cache", metavar="DIR", help="keep adapted weights in this folder, and use what lies there")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command."""
    add = parser.add_argument_group("output").add_argument
    add("--quiet", action="store_true", help="no progress bar")
    add("--debug", action="store_true", help="show the trace of an error, and every warning")


def _listed(names: object) -> str:
    *most, last = [str(name) for name in names]  # type: ignore[attr-defined]
    return f"{', '.join(most)} or {last}"


def _explained(choices: dict[str, str]) -> str:
    return "; ".join(f"{name}, {meaning}" for name, meaning in choices.items()).replace("%", "%%")


def context_size(text: str) -> int | float | str:
    """Return a number of rows, a share of them, or "all"."""
    if text == "all":
        return text
    try:
        size = int(text) if text.isdigit() else float(text)
    except ValueError:
        size = -1
    if (isinstance(size, int) and size > 0) or (isinstance(size, float) and 0 < size < 1):
        return size
    raise argparse.ArgumentTypeError(f"must be a number of rows, a share between 0 and 1, or 'all', got {text!r}")


def whole(minimum: int) -> Callable[[str], int]:
    """Return a reader of whole numbers from `minimum`."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"must be a whole number of {minimum} or more, got {text!r}")
        return int(text)

    return read


def share(text: str) -> float:
    """Return a number between 0 and 1."""
    number = _number(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 1, got {text!r}")
    return number


def seconds(text: str) -> float:
    """Return a number of seconds."""
    number = _number(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, got {text!r}")
    return number


def step_size(text: str) -> float | str:
    """Return a step size, or "auto"."""
    number = _number(text)
    if text != "auto" and not 0 <= number <= MAX_STEP_SIZE:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to {MAX_STEP_SIZE:g}, or 'auto', got {text!r}")
    return text if text == "auto" else number


def separator(text: str) -> str | None:
    """Return the character between cells; None: look for it."""
    if text in SEPARATORS:
        return SEPARATORS[text]
    if len(text) != 1 or text.isalnum() or text in "\"'\n\r.-+":
        raise argparse.ArgumentTypeError(f"must be one character, or {_listed(SEPARATORS)}, got {text!r}")
    return text


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
