"""Checks of what callers hand to a cache."""

from __future__ import annotations

import operator
import os
from pathlib import Path
from typing import SupportsIndex


def is_key(key: str) -> bool:
    """Return whether a string can be a key: lower-case hex digits, at least one."""
    return bool(key) and set(key) <= set("0123456789abcdef")


def check_key(key: str) -> str:
    """Return `key`; raise ValueError if it cannot be one."""
    if not isinstance(key, str) or not is_key(key):
        raise ValueError(f"key must be lower-case hex digits, got {key!r}")
    return key


def check_count(name: str, value: SupportsIndex) -> int:
    """Return `value` as an int; raise ValueError if it is not an int >= 0."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < 0 or isinstance(value, bool):
        raise ValueError(f"{name} must be an int >= 0, got {value!r}")
    return number


def seconds(name: str, value: float) -> float:
    """Return `value` as a float; raise ValueError if it is not a number >= 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"{name} must be a number of seconds >= 0, got {value!r}")
    return float(value)


def folder_path(name: str, directory: str | os.PathLike[str]) -> Path:
    """Return the absolute path that a folder parameter stands for.

    Parameters
    ----------
    name : str
        The parameter, for messages.
    directory : str or os.PathLike
        The folder, which need not exist.

    Returns
    -------
    Path
        Absolute, without links.

    Raises
    ------
    TypeError, ValueError
        If it is no path, an empty one, or that of a file.
    """
    path = os.fspath(directory) if isinstance(directory, os.PathLike) else directory
    if not isinstance(path, str):
        raise TypeError(f"{name} must be None, a path or a FastWeightCache, got {type(directory).__name__}")
    if not path:
        raise ValueError(f"{name} must be a path to a folder, got an empty one")
    resolved = Path(path).expanduser().resolve()
    if resolved.exists() and not resolved.is_dir():
        raise ValueError(f"{name} must be a folder, got a file: {path}")
    return resolved
