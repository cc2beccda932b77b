"""The clock of an adaptation that was given a time limit."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Deadline:
    """When an adaptation has to come to its end.

    Parameters
    ----------
    seconds : float or None
        From now; None for never.

    Examples
    --------
    >>> Deadline(None).has_passed(), Deadline(0.0).has_passed()
    (False, True)
    """

    seconds: float | None
    started: float = field(default_factory=time.monotonic)

    def has_passed(self) -> bool:
        """Whether the time is over."""
        return self.seconds is not None and time.monotonic() - self.started >= self.seconds
