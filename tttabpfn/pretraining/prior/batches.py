"""Batches of tables of one shape, drawn in this process or ahead of time in others."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tttabpfn.pretraining.config import TrainConfig
from tttabpfn.pretraining.prior.tasks import sample_task


class Shape(NamedTuple):
    """Shape of a batch: tables, rows of each, columns of each, context rows, and the largest number of classes."""

    n_tables: int
    n_rows: int
    n_columns: int
    n_train: int
    max_classes: int


@dataclass(frozen=True)
class Batch:
    """Tables of one shape.

    Parameters
    ----------
    X : ndarray of shape (n_rows, n_tables, n_columns), float32
        Columns; rows from 0 to `n_train` - 1 are the context.
    y : ndarray of shape (n_rows, n_tables), int64
        Class numbers, -100 for query rows without a class in the context.
    n_train : int
        Context rows.
    """

    X: NDArray[np.float32]
    y: NDArray[np.int64]
    n_train: int


def _log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    return int(np.clip(np.exp(rng.uniform(np.log(low), np.log(high + 1))), low, high))


def sample_shape(rng: np.random.Generator, config: TrainConfig, progress: float) -> Shape:
    """Draw the shape of a batch, or of each process's part of it, in the curriculum's phase at `progress`.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the draws.
    config : TrainConfig
        Curriculum and batch size.
    progress : float
        Share of the schedule that is over, in [0, 1].

    Returns
    -------
    Shape
    """
    phase = next(phase for phase in config.phases if progress < phase.until or phase.until == 1.0)
    n_rows = _log_uniform(rng, *phase.rows)
    n_columns = _log_uniform(rng, *phase.columns)
    n_train = int(np.clip(n_rows * rng.uniform(0.4, 0.85), 12, n_rows - 4))
    budget = config.schedule.cells / (n_rows * (n_columns + 4))
    fewest = 2 if config.processes == 1 else 1
    n_tables = int(np.clip(round(budget / config.processes), fewest, config.schedule.max_tables))
    return Shape(n_tables, n_rows, n_columns, n_train, phase.max_classes)


def sample_batch(config: TrainConfig, index: int, progress: float, part: int = 0) -> Batch:
    """Draw batch number `index`; it depends on the seed, the index, the part and the progress alone.

    Parameters
    ----------
    config : TrainConfig
        Prior, curriculum and seed.
    index : int
        Number of the batch.
    progress : float
        Share of the schedule that is over, in [0, 1].
    part : int
        Which process's part of the batch; all parts have the same shape.

    Returns
    -------
    Batch

    Examples
    --------
    >>> from tttabpfn.pretraining.config import load_config
    >>> batch = sample_batch(load_config("cpu"), index=3, progress=0.0)
    >>> batch.X.shape[:2] == batch.y.shape
    True
    """
    rng = np.random.default_rng([config.seed, index])
    shape = sample_shape(rng, config, progress)
    if part:
        rng = np.random.default_rng([config.seed, index, part])
    X = np.empty((shape.n_rows, shape.n_tables, shape.n_columns), dtype=np.float32)
    y = np.empty((shape.n_rows, shape.n_tables), dtype=np.int64)
    with np.errstate(all="ignore"):
        for table in range(shape.n_tables):
            X[:, table], y[:, table] = sample_task(
                rng, shape.n_rows, shape.n_columns, shape.n_train, config.prior, shape.max_classes
            )
    return Batch(X, y, shape.n_train)


def _work(config: TrainConfig, part: int, requests: Any, answers: Any) -> None:
    parent = os.getppid()
    answers.cancel_join_thread()  # else batches nobody reads keep this process alive after its parent was killed
    while os.getppid() == parent:
        try:
            request = requests.get(timeout=5.0)
        except queue.Empty:
            continue
        if request is None:
            return
        index, progress = request
        batch = sample_batch(config, index, progress, part)
        answers.put((batch.X, batch.y, batch.n_train))


class BatchStream:
    """Batches in order of their index, generated ahead of time by worker processes.

    Parameters
    ----------
    config : TrainConfig
        Prior, curriculum, seed and number of workers; with 0 workers batches are drawn on request.
    depth : int
        Batches that each worker is ahead.
    part : int
        Which process's part of every batch.
    """

    def __init__(self, config: TrainConfig, depth: int = 4, part: int = 0) -> None:
        self.config = config
        self.part = part
        self.depth = depth
        self._pending: deque[int] = deque()
        self._workers: list[Any] = []
        context = multiprocessing.get_context("spawn")
        for _ in range(config.workers):
            requests, answers = context.Queue(), context.Queue()
            process = context.Process(target=_work, args=(config, part, requests, answers), daemon=True)
            with _single_threaded():
                process.start()
            self._workers.append((process, requests, answers))

    def get(self, index: int, progress: float, last: int) -> Batch:
        """Return batch `index`; ask for the batches up to `last` at most that follow it.

        Parameters
        ----------
        index : int
            Number of the batch; one more than at the previous call.
        progress : float
            Share of the schedule that is over; batches asked for ahead of time use the share at the asking.
        last : int
            Number of the last batch of the run, as far as known.

        Returns
        -------
        Batch
        """
        if not self._workers:
            return sample_batch(self.config, index, progress, self.part)
        ahead = index + 1 if not self._pending else self._pending[-1] + 1
        if not self._pending:
            self._ask(index, progress)
        for following in range(ahead, min(index + self.depth * len(self._workers), last) + 1):
            self._ask(following, progress)
        if self._pending.popleft() != index:
            raise ValueError(f"batches must be asked for in order, got index {index}")
        process, _, answers = self._workers[index % len(self._workers)]
        while True:
            try:
                return Batch(*answers.get(timeout=10.0))
            except queue.Empty:
                if not process.is_alive():
                    raise RuntimeError("a process that generates tables has died") from None

    def _ask(self, index: int, progress: float) -> None:
        self._workers[index % len(self._workers)][1].put((index, progress))
        self._pending.append(index)

    def close(self) -> None:
        """Stop the workers."""
        for process, requests, _ in self._workers:
            requests.put(None)
            process.join(timeout=1.0)
            if process.is_alive():
                process.terminate()
        self._workers = []

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
    """Have a process started inside use one thread, without changing this process's numerics."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
