"""Checks of what callers hand to a cache."""

from __future__ import annotations

import operator
import os
import reprlib
import stat
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
        If it is no path, or one that cannot be a folder of this process: empty, with a null byte, too long, a loop of
        links, a file, a folder that cannot be entered, or one that cannot be made. Nothing is made.
    """
    path = absolute_path(name, directory)
    problem = folder_problem(path)
    if problem is not None:
        raise ValueError(f"{name} must be a folder, got {_REPR.repr(str(directory))}: {problem}")
    return path


def absolute_path(name: str, directory: str | os.PathLike[str]) -> Path:
    """Return what `folder_path` does, whatever lies there; raise TypeError or ValueError for what is no path at all."""
    path = os.fspath(directory) if isinstance(directory, os.PathLike) else directory
    if not isinstance(path, str):
        raise TypeError(f"{name} must be None, a path or a FastWeightCache, got {type(directory).__name__}")
    if not path:
        raise ValueError(f"{name} must be a path to a folder, got an empty one")
    try:
        return Path(path).expanduser().resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a path to a folder, got {_REPR.repr(path)}: {error}") from error


def folder_problem(path: Path) -> str | None:
    """Return why an absolute path cannot be a folder of this process; None if it can be, or can be made."""
    for place in (path, *path.parents):
        try:
            is_folder = stat.S_ISDIR(os.stat(place).st_mode)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        except (OSError, ValueError) as error:
            return getattr(error, "strerror", None) or str(error)
        if not is_folder:
            return f"{place} is a file"
        if not os.access(place, os.X_OK):
            return f"{place} cannot be entered"
        if place != path and not os.access(place, os.W_OK):
            return f"nothing can be made in {place}"
        return _length_problem(path, place)
    return "there is no such place"


def _length_problem(path: Path, place: Path) -> str | None:
    """Why the missing part of a path, below a place that is there, cannot be made."""
    limits = []
    for limit in ("PC_NAME_MAX", "PC_PATH_MAX"):
        try:
            limits.append(os.pathconf(place, limit))
        except (AttributeError, OSError, ValueError):
            return None
    names = [len(os.fsencode(name)) for name in path.parts[len(place.parts) :]]
    is_too_long = max(names, default=0) > limits[0] or len(os.fsencode(path)) + _ROOM > limits[1]
    return "it is too long" if is_too_long else None


_REPR = reprlib.Repr()
_REPR.maxstring = 200
_ROOM = 128
"""Bytes that the path of a file in a folder is longer than the folder's."""
