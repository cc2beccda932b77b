"""A fork while another thread is at work: the child is free and right, and the parent's file locks end with it."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tttabpfn import FastWeightCache
from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.adaptation import memory
from tttabpfn.adaptation.gradient import GradientAdaptation
from tttabpfn.cache.file_lock import file_lock
from tttabpfn.cache.predictions import SharedPredictions
from tttabpfn.tabpfn_adapter import base as bases
from tttabpfn.tabpfn_adapter import row_embeddings

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning"),
]


def in_child(call):
    """What `call()` returns in a forked child, which has 60 seconds."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=lambda: results.put(call()))
    child.start()
    child.join(60)
    stuck = child.is_alive()
    if stuck:
        child.kill()
        child.join()
    assert not stuck
    assert child.exitcode == 0
    return results.get()


def held_up(monkeypatch, owner, name):
    """Hold up the first call of a method or function until the event `go` is set; `at_work` says that it has begun."""
    at_work, go, real = threading.Event(), threading.Event(), getattr(owner, name)

    def slow(*args, **kwargs):
        if not at_work.is_set():
            at_work.set()
            assert go.wait(120)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, slow)
    return at_work, go


# Seen to fail: without `renew_in_children` in `Session`, the child waits for ever for the session's lock; without
# `_start` in `adapting`, "embedding" embeds no rows: the child's networks keep the row stage that was replaced.
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (GradientAdaptation, "run"),
        (memory.MemoryWriter, "run"),
        (row_embeddings, "_digest"),
        (row_embeddings, "multiclass"),
    ],
    ids=["gradient", "memory", "embedding", "within_a_row_stage"],
)
def test_a_fork_during_an_adaptation_leaves_the_child_free_and_right(classifier, table, monkeypatch, owner, name):
    X, y, X_new, _ = table
    cache = FastWeightCache()
    parameters = {"adaptation": "both", "guard": True, "cache": cache}
    wanted = classifier(**{**parameters, "cache": FastWeightCache()}, step_size=3e-3).fit(X, y).predict_proba(X_new)
    first, second = (classifier(**parameters, step_size=size).fit(X, y) for size in (1e-3, 3e-3))
    first._lookup().session()
    at_work, go = held_up(monkeypatch, owner, name)
    thread = threading.Thread(target=first.adapt)
    thread.start()
    try:
        assert at_work.wait(60)
        found = in_child(lambda: second.predict_proba(X_new))
    finally:
        go.set()
        thread.join(60)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(second.predict_proba(X_new), wanted)


# Seen to fail: without a new lock in `_after_fork_in_child`: the child waits for ever.
@pytest.mark.parametrize("wait", [60.0, 0.1])
def test_a_fork_while_a_base_loads_leaves_the_child_free(tiny_tabpfn, monkeypatch, wait):
    estimator = tiny_tabpfn("v3.5", softmax_temperature=0.1 + wait)
    at_work, go = held_up(monkeypatch, bases, "_load")
    monkeypatch.setattr(bases, "_FORK_WAIT", wait)
    thread = threading.Thread(target=adapter.load_base, args=(estimator,))
    thread.start()
    try:
        assert at_work.wait(60)
        threading.Timer(0.5, go.set).start()
        started = time.monotonic()
        content = in_child(lambda: adapter.load_base(estimator).content)
        assert time.monotonic() - started < 60
    finally:
        go.set()
        thread.join(60)
    assert content == adapter.load_base(estimator).content


# Seen to fail: with a plain `threading.Lock`.
def test_a_fork_while_shared_predictions_are_written_leaves_the_child_free():
    shared, rows = SharedPredictions(), np.zeros((2, 1))
    held, go = threading.Event(), threading.Event()

    def hold():
        with shared._flights.mutex:
            held.set()
            go.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    threading.Timer(0.3, go.set).start()
    assert in_child(lambda: shared.get("a", rows, lambda: np.ones((2, 2))).sum()) == 4.0
    thread.join(60)


OWNER = """
import os, sys, time
import torch
from tttabpfn.cache.shared import CacheEntry, FastWeightCache

def compute():
    if os.fork() == 0:
        os.closerange(0, 3)
        time.sleep(120)
        os._exit(0)
    print("forked", flush=True)
    time.sleep(120)

FastWeightCache(sys.argv[1]).get_or_compute("0a", compute)
"""


# Seen to fail: without the closing in `_after_fork_in_child`, this waits for the whole timeout.
def test_a_lock_whose_owner_was_killed_is_free_while_its_child_lives(tmp_path):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert owner.stdout.readline() == b"forked\n"
        with file_lock(tmp_path / ".0a.lock", 0.2) as held:
            assert not held
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait(30)
        started = time.monotonic()
        with file_lock(tmp_path / ".0a.lock", 60.0) as held:
            assert held
        assert time.monotonic() - started < 10
    finally:
        os.killpg(owner.pid, signal.SIGKILL)
        owner.stdout.close()
        owner.wait(30)


# Seen to fail: with `held.descriptor` left as it is in `_after_fork_in_child`.
def test_a_child_that_leaves_the_block_does_not_free_the_lock_of_its_parent(tmp_path):
    path, child = tmp_path / "lock", None
    try:
        with file_lock(path, 0.0) as held:
            assert held
            child = os.fork()
            if child:
                assert os.waitpid(child, 0)[1] == 0
                with file_lock(path, 0.0) as second:
                    assert not second
    finally:
        if child == 0:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    assert not path.exists()
