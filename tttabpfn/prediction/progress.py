"""One bar over a whole job: stages of unlike cost, an estimate of the time left, and nothing left standing."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

from tttabpfn.adaptation.settings import Settings

SECONDS_BETWEEN_LOOKS = 0.5
GUESS = 4.0
"""Seconds that a whole job is taken to last where nothing better is known."""
COSTS = {"preparing": 0.5, "memory": 10.0, "step sizes": 6.0, "gradient steps": 6.0, "predicting": 2.0}
"""Relative costs of the stages of a first prediction."""
_current: ContextVar[StagedBar | None] = ContextVar("tttabpfn_bar", default=None)


class StagedBar:
    """A bar on standard error over stages whose relative costs are known in advance.

    A stage that tells how far it is moves the bar by that. One that cannot lets the bar creep towards the stage's end
    at the pace of all before, so that it neither stands still nor says too early that all is done.

    Parameters
    ----------
    costs : mapping of str to float
        Relative cost of each stage, in order.
    disable : bool, default=False
        Show nothing.
    guess : float, optional
        Seconds that the whole job is taken to last until a stage of it has shown how fast this machine is.

    Examples
    --------
    >>> with StagedBar({"load": 1.0, "train": 3.0}, disable=True) as bar:
    ...     bar.begin("train")
    ...     bar.tell(0.5)
    ...     bar.done
    0.625
    """

    def __init__(self, costs: Mapping[str, float], *, disable: bool = False, guess: float = GUESS) -> None:
        self._guess = guess
        total, start = sum(costs.values()), 0.0
        self._spans: dict[str, tuple[float, float]] = {}
        for name, cost in costs.items():
            self._spans[name] = start, start + cost / total
            start += cost / total
        self._disable = disable
        self.stage = next(iter(costs))
        self._from, self._to = self._spans[self.stage]
        self._since = self._started = time.perf_counter()
        self._bar: Any = None
        self._stop = threading.Event()
        self._ticker: threading.Thread | None = None

    @property
    def done(self) -> float:
        """Share of the job that is done, as far as is known."""
        if self._to <= self._from:
            return self._from
        before = self._since - self._started
        pace = before / self._from if self._from and before else self._guess
        waited = (time.perf_counter() - self._since) / (pace * (self._to - self._from))
        return self._from + waited / (waited + 0.6) * (self._to - self._from)

    def begin(self, stage: str) -> None:
        """Say that a stage begins, and that those before it are over."""
        if stage != self.stage:
            self.stage = stage
            self._move(*self._spans[stage], show=True)

    def tell(self, share: float, until: float | None = None) -> None:
        """Say what share of the stage is done; and, where nothing will be told before it, the share to creep to."""
        start, end = self._spans[self.stage]
        self._move(start + share * (end - start), start + (share if until is None else until) * (end - start))

    def _move(self, start: float, end: float, *, show: bool = False) -> None:
        self._from, self._to, self._since = start, end, time.perf_counter()
        if show or self._ticker is not None:
            self._show()

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.set_description(self.stage, refresh=False)
            self._bar.n = max(self._bar.n, round(100 * min(self.done, 1.0), 1))
            self._bar.refresh()

    def _tick(self) -> None:
        while not self._stop.wait(SECONDS_BETWEEN_LOOKS):
            self._show()

    def __enter__(self) -> StagedBar:
        self._token = _current.set(self)
        if not self._disable:
            form = "{desc}{percentage:3.0f}%|{bar}| {elapsed} passed, about {remaining} left"
            self._bar = tqdm(total=100, desc=self.stage, bar_format=form, file=sys.stderr, leave=False)
            # A file or a pipe gets a line a stage; a person who watches sees it move.
            if sys.stderr.isatty() or type(self._bar).__module__ != "tqdm.asyncio":
                self._ticker = threading.Thread(target=self._tick, daemon=True, name="tttabpfn-bar")
                self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.reset(self._token)
        self._stop.set()
        if self._ticker is not None:
            self._ticker.join()
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def current_bar() -> StagedBar | None:
    """The bar that stands in this context, if there is one."""
    return _current.get()


class AdaptationProgress:
    """Turns what an adaptation tells into one share of an adaptation.

    Parameters
    ----------
    bar : StagedBar
        Where it is shown.
    settings : Settings
        What the adaptation was asked to do.
    stage : str, optional
        The stage of the bar that all of it is; None: the bar has the stages of `COSTS`.
    """

    def __init__(self, bar: StagedBar, settings: Settings, stage: str | None = None) -> None:
        self._bar, self._settings, self._stage = bar, settings, stage
        self._tried: list[str] = []
        self._starts: dict[str, tuple[float, float]] = {}
        total, start = sum(COSTS.values()), 0.0
        for name, cost in COSTS.items():
            self._starts[name] = start / total, cost / total
            start += cost

    def __call__(self, what: str, done: int, total: int) -> None:
        """Take what an adaptation tells: what it does, how many steps of it are done, and of how many."""
        share = done / max(1, total)
        if what.startswith("step size"):
            if what not in self._tried:
                self._tried.append(what)
            candidates = len(self._settings.candidate_step_sizes)
            trial = share / max(self._settings.recipe.trial_share, 1e-9)
            what, share = "step sizes", (len(self._tried) - 1 + min(trial, 1.0)) / candidates
        elif what == "adapting":
            what = "gradient steps"
        self._tell(what, share if total else None)

    def begin(self, what: str) -> None:
        """Say that one of the stages of `COSTS` begins, which tells no more."""
        self._tell(what, None)

    def _tell(self, what: str, share: float | None) -> None:
        if self._stage is None:
            self._bar.begin(what)
            if share is not None:
                self._bar.tell(share)
            return
        start, cost = self._starts[what]
        if share is None:
            self._bar.tell(start, until=start + cost)
        else:
            self._bar.tell(start + share * cost)


@contextmanager
def adaptation_progress(
    verbose: int, settings: Settings, seconds: float = GUESS
) -> Iterator[AdaptationProgress | None]:
    """Show a first prediction as a stage of the bar that stands already, or on one of its own if `verbose` is set.

    `seconds` is what it is expected to take.
    """
    outer = _current.get()
    if outer is not None:
        yield AdaptationProgress(outer, settings, stage=outer.stage)
    elif verbose:
        with StagedBar(COSTS, guess=seconds) as bar:
            yield AdaptationProgress(bar, settings)
    else:
        yield None
