"""What the machine has and how fast it is: bytes of memory, and multiplications a second, measured in milliseconds."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_SIZES = 1024, 128, 256
_ROUNDS = 20


def memory_bytes(device: torch.device) -> int | None:
    """Memory that a process may have on a device: a GPU's, or the machine's, or less where its group is limited.

    Parameters
    ----------
    device : torch.device

    Returns
    -------
    int or None
        None where the system does not tell.

    Examples
    --------
    >>> found = memory_bytes(torch.device("cpu"))
    >>> found is None or found > 2**28
    True
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    found = [limit for path in _LIMITS if (limit := _number_in(Path(path))) is not None]
    with suppress(AttributeError, OSError, ValueError):  # not a POSIX system, or one that does not know these names
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min((size for size in found if size > 0), default=None)


def _number_in(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such group, or no limit
        return None


@cache
def multiplications_per_second(device: torch.device) -> float:
    """Multiplications and additions a second in a product of small matrices, the best of a few tries; kept.

    Parameters
    ----------
    device : torch.device

    Returns
    -------
    float
        As many threads as torch has now take part. A busy machine seems slower, an idle moment is enough for the truth.
    """
    rows, inner, columns = _SIZES
    left, right = torch.ones(rows, inner, device=device), torch.ones(inner, columns, device=device)
    seconds = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        (left @ right)[0, 0].item()
        seconds.append(time.perf_counter() - started)
    return 2.0 * rows * inner * columns / min(seconds)
