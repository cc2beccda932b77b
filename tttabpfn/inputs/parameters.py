"""Checks of the estimator's parameters that need no weights; messages name what is allowed and what came."""

from __future__ import annotations

import numbers
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tttabpfn.cache.shared import FastWeightCache
from tttabpfn.choices import ADAPTATIONS, MAX_STEP_SIZE
from tttabpfn.fast_weights.dispatch import BACKENDS
from tttabpfn.fast_weights.rules import RULES

MAX_INT = 2**31 - 1


def check_parameters(parameters: dict[str, Any], selections: Sequence[str]) -> None:
    """Check the estimator's parameters one by one.

    Parameters
    ----------
    parameters : dict
        As `get_params(deep=False)` returns them.
    selections : sequence of str
        Names that `fast_weights` may have.

    Raises
    ------
    TypeError
        If a parameter has a wrong type.
    ValueError
        If its value is out of range.
    """
    step_size = parameters["step_size"]
    if not (isinstance(step_size, str) and step_size == "auto"):
        _number(
            "step_size", step_size, f'a float from 0 to {MAX_STEP_SIZE:g} or "auto"', minimum=0, maximum=MAX_STEP_SIZE
        )
    _integer("n_steps", parameters["n_steps"], 0)
    _integer("chunk_size", parameters["chunk_size"], 1)
    _one_of("update_rule", parameters["update_rule"], RULES)
    _one_of("adaptation", parameters["adaptation"], ADAPTATIONS)
    _one_of("backend", parameters["backend"], BACKENDS)
    if not isinstance(parameters["guard"], bool | np.bool_):
        raise TypeError(f"guard must be True or False, got {parameters['guard']!r}.")
    _integer("verbose", int(parameters["verbose"]) if _is_bool(parameters["verbose"]) else parameters["verbose"], 0)
    if parameters["time_limit"] is not None:
        _number("time_limit", parameters["time_limit"], "None or a number of seconds >= 0", minimum=0)
    _check_context_size(parameters["context_size"])
    _check_selection(parameters["fast_weights"], selections)
    _check_cache(parameters["cache"])
    _check_random_state(parameters["random_state"])


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def _number(name: str, value: Any, allowed: str, *, minimum: float, maximum: float = sys.float_info.max) -> None:
    if _is_bool(value) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be {allowed}, got {value!r} of type {type(value).__name__}.")
    number: Any = value
    # Compared before it is made a float: 10**400 has none.
    if not minimum <= number <= maximum:
        raise ValueError(f"{name} must be {allowed}, got {value!r}.")


def _integer(name: str, value: Any, minimum: int) -> None:
    if _is_bool(value) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an int >= {minimum}, got {value!r} of type {type(value).__name__}.")
    number: Any = value
    if number < minimum:
        raise ValueError(f"{name} must be an int >= {minimum}, got {value!r}.")
    if number > MAX_INT:
        raise ValueError(f"{name} must be an int <= {MAX_INT}, got {value!r}.")


def _one_of(name: str, value: Any, allowed: Collection[str]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")


def _check_context_size(value: Any) -> None:
    allowed = "None (all rows), an int >= 1 (rows) or a float in (0, 1) (share of the rows)"
    if value is None:
        return
    if _is_bool(value) or not isinstance(value, numbers.Real):
        raise TypeError(f"context_size must be {allowed}, got {value!r} of type {type(value).__name__}.")
    fits = int(value) >= 1 if isinstance(value, numbers.Integral) else 0 < float(value) < 1
    if not fits:
        raise ValueError(f"context_size must be {allowed}, got {value!r}.")


def _check_selection(value: Any, selections: Sequence[str]) -> None:
    allowed = f"{', '.join(map(repr, selections))} or a non-empty list of glob patterns on parameter names"
    if isinstance(value, str):
        if value not in selections:
            raise ValueError(f"fast_weights must be {allowed}, got {value!r}.")
        return
    if not isinstance(value, list | tuple) or not value or not all(isinstance(item, str) for item in value):
        raise ValueError(f"fast_weights must be {allowed}, got {value!r}.")


def _check_cache(value: Any) -> None:
    if value is not None and not isinstance(value, str | Path | FastWeightCache):
        raise TypeError(
            f"cache must be None (in memory), a path (also on disk) or a FastWeightCache, got {type(value).__name__}."
        )


def _check_random_state(value: Any) -> None:
    if value is None or isinstance(value, np.random.RandomState | np.random.Generator):
        return
    if _is_bool(value) or not isinstance(value, numbers.Integral) or value < 0:
        raise ValueError(f"random_state must be None, an int >= 0 or a NumPy random generator, got {value!r}.")


def resolve_seed(random_state: Any) -> int:
    """One seed for the whole estimator, drawn at `fit`; the process's global generators are left alone.

    Parameters
    ----------
    random_state : None, int, RandomState or Generator
        None draws from the operating system.

    Returns
    -------
    int
        Root of the seed tree.
    """
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31 - 1))
    return int(random_state)


MIN_SHARE_ROWS, MIN_ROWS_PER_CLASS = 64, 8
"""Rows that a share of the rows comes to at least, in all and per class: with fewer TabPFN knows too little.
Of 104 and 107 rows, a tenth as context lost .2 nats."""
CHEAP_CELLS, CHEAP_ROWS = 64_000, (500, 1000)
"""Cells of a context that is still cheap on a CPU, and the rows that this comes to at least and at most."""


class ContextSize(NamedTuple):
    """Rows kept as context at predict, and in words what was done to get there."""

    rows: int
    note: str = ""


def resolve_context_size(
    context_size: Any, n_rows: int, n_columns: int, n_classes: int, max_rows: int | None
) -> ContextSize:
    """Rows kept as context at predict.

    Parameters
    ----------
    context_size : None, int or float
        The parameter. None keeps all rows while that is cheap; a share keeps no fewer than a table can bear.
    n_rows, n_columns, n_classes : int
        Of the demonstrations.
    max_rows : int or None
        What the base takes, where known; `None` as context size keeps no more than this, any other must not.

    Returns
    -------
    ContextSize
        Between `n_classes` and `n_rows` rows, with a note if there are fewer than all or more than asked for.

    Raises
    ------
    ValueError
        If there would be fewer context rows than classes, or more than the base takes.

    Examples
    --------
    >>> resolve_context_size(0.2, 100, 5, 2, None)
    ContextSize(rows=64, note='context_size=0.2 was raised from 20 to 64 of 100 rows')
    >>> resolve_context_size(None, 100_000, 100, 2, None).rows
    640
    """
    if context_size is None:
        cheap = min(max(CHEAP_CELLS // max(1, n_columns), CHEAP_ROWS[0]), CHEAP_ROWS[1])
        size = min(n_rows, cheap) if max_rows is None else min(n_rows, cheap, max_rows)
        note = "" if size == n_rows else f"context_size=None keeps {size} of {n_rows} rows as context"
        return ContextSize(size, note)
    size = int(context_size) if isinstance(context_size, numbers.Integral) else round(float(context_size) * n_rows)
    if size < n_classes:
        raise ValueError(
            f"context_size={context_size!r} keeps {size} of {n_rows} rows, fewer than the {n_classes} classes; "
            "the context needs a row of each."
        )
    asked, size = size, min(size, n_rows)
    if max_rows is not None and size > max_rows:
        raise ValueError(
            f"context_size={context_size!r} keeps {size} of {n_rows} rows, but the base model takes at most {max_rows} "
            "here; set fewer, None (as many as it takes) or estimator__ignore_pretraining_limits=True."
        )
    bearable = min(max(MIN_SHARE_ROWS, MIN_ROWS_PER_CLASS * n_classes), n_rows, max_rows or n_rows)
    if not isinstance(context_size, numbers.Integral) and size < bearable:
        return ContextSize(
            bearable, f"context_size={context_size!r} was raised from {size} to {bearable} of {n_rows} rows"
        )
    return ContextSize(
        size, f"context_size={context_size!r} keeps all {n_rows} rows as context" if asked > n_rows else ""
    )
