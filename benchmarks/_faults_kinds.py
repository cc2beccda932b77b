"""Kinds of faults for `faults`: each puts something in the way, asks for an answer, and says how that compares."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import random
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _faults_damage import DAMAGE, put_something, signed_anew
from sklearn.datasets import make_classification
from tabpfn import TabPFNClassifier
from tabpfn.architectures import ARCHITECTURES
from tabpfn.checkpoint import save_as_safetensors
from tabpfn.constants import ModelVersion
from tabpfn.inference_config import InferenceConfig

from tttabpfn import FastWeightCache, TTTTabPFNClassifier
from tttabpfn.cache import files
from tttabpfn.cache.entry import CacheEntry

CHILD_PATIENCE = 30.0
"""Seconds after which a forked child that does not end counts as a hang."""
ADAPTATIONS = ("gradient", "memory", "both")
SIZES = {
    "embed_dim": 16, "dist_embed_num_blocks": 1, "dist_embed_num_heads": 2, "dist_embed_num_inducing_points": 4,
    "feat_agg_num_blocks": 1, "feat_agg_num_heads": 2, "feat_agg_num_cls_tokens": 2, "nlayers": 1, "icl_num_heads": 2,
    "decoder_head_dim": 8, "decoder_num_heads": 2, "softmax_scaling_mlp_hidden_dim": 8,
}  # fmt: skip


def save_base(path: Path, seed: int) -> None:
    """Save a small random base; two of them have the same size."""
    module = ARCHITECTURES["tabpfn_v3"]
    config, _ = module.parse_config({"max_num_classes": 10, "num_buckets": 100, **SIZES})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = module.get_architecture(config)
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
    checkpoint = {
        "state_dict": model.state_dict(),
        "config": dataclasses.asdict(config),
        "architecture_name": "tabpfn_v3",
        "inference_config": dataclasses.asdict(InferenceConfig.get_default("multiclass", ModelVersion.V2_5)),
    }
    save_as_safetensors(checkpoint, path)
    os.utime(path, ns=(10**18, 10**18))


class Bench:
    """Two bases, one table, and what every kind of adaptation answers and keeps without a fault."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, 0
        X, y = make_classification(44, 4, n_informative=3, n_redundant=0, random_state=0)
        self.fit_rows, self.new_rows = (X[:36], y[:36]), X[36:]
        self.bases = [folder / str(seed) / "tiny-v3.safetensors" for seed in (0, 1)]
        for seed, path in enumerate(self.bases):
            path.parent.mkdir()
            save_base(path, seed)
        self.answers: dict[tuple[str, int], np.ndarray] = {}
        self.entries: dict[str, tuple[str, CacheEntry, bytes]] = {}
        for adaptation in ADAPTATIONS:
            for number, path in enumerate(self.bases):
                fitted = self.fitted(adaptation, FastWeightCache(), path)
                self.answers[adaptation, number] = fitted.predict_proba(self.new_rows)
                if number == 0:
                    lookup = fitted._lookup()
                    key, entry = lookup.keys.adaptation, lookup.entry()
                    self.entries[adaptation] = key, entry, files.encode(key, entry)

    def fitted(self, adaptation: str, cache: Any, base: Path | None = None, step: float = 1e-2) -> TTTTabPFNClassifier:
        path = str(self.bases[0] if base is None else base)
        estimator = TabPFNClassifier(model_path=path, n_estimators=1, device="cpu", random_state=0)
        settings = {"n_steps": 1, "step_size": step, "guard": False, "context_size": 20, "chunk_size": 16}
        model = TTTTabPFNClassifier(estimator, adaptation=adaptation, cache=cache, random_state=0, **settings)
        return model.fit(*self.fit_rows)

    def outcome(self, adaptation: str, fitted: TTTTabPFNClassifier, bases: tuple[int, ...] = (0,)) -> str:
        """Predict, and compare bit for bit."""
        found = fitted.predict_proba(self.new_rows)
        if not any(np.array_equal(found, self.answers[adaptation, base]) for base in bases):
            return "wrong"
        return "right" if fitted.adaptation_report().cache_hit else "miss"

    def with_file(self, adaptation: str, place: Path, content: bytes | None) -> str:
        """What a new cache answers whose folder holds these bytes (None: what lies there) as the entry's file."""
        if content is not None:
            (place / f"{self.entries[adaptation][0]}.safetensors").write_bytes(content)
        found = self.outcome(adaptation, self.fitted(adaptation, FastWeightCache(place)))
        self.asked += 1
        if self.asked % 4 == 0:
            # Whatever lay there has been replaced, or could not be: who comes next must be right too.
            again = self.outcome(adaptation, self.fitted(adaptation, FastWeightCache(place)))
            return worst([found, again])
        return found


def damaged_file(bench: Bench, rng: random.Random, place: Path) -> tuple[str, str]:
    adaptation, kind = rng.choice(ADAPTATIONS), rng.choice(sorted(DAMAGE))
    return kind, bench.with_file(adaptation, place, DAMAGE[kind](rng, bench.entries[adaptation][2]))


def exchanged_file(bench: Bench, rng: random.Random, place: Path) -> tuple[str, str]:
    adaptation, other = rng.sample(ADAPTATIONS, 2)
    return f"{other} for {adaptation}", bench.with_file(adaptation, place, bench.entries[other][2])


def signed_file(bench: Bench, rng: random.Random, place: Path) -> tuple[str, str]:
    adaptation, other = rng.sample(ADAPTATIONS, 2)
    key, entry, _ = bench.entries[adaptation]
    changed = signed_anew(rng, entry, bench.entries[other][1])
    return adaptation, bench.with_file(adaptation, place, files.encode(key, changed))


def odd_file(bench: Bench, rng: random.Random, place: Path) -> tuple[str, str]:
    adaptation = rng.choice(ADAPTATIONS)
    key, _, data = bench.entries[adaptation]
    name = rng.choice([f"{key}.safetensors", f".{key}.lock"])
    kind = put_something(rng, place / name, data)
    return f"{kind} as {'lock' if name.startswith('.') else 'entry'}", bench.with_file(adaptation, place, None)


def damaged_pickle(bench: Bench, rng: random.Random, place: Path) -> tuple[str, str]:
    """Fast weights within a pickle, damaged or signed anew; the pickle around them is trusted."""
    adaptation, other = rng.sample(ADAPTATIONS, 2)
    key, entry, data = bench.entries[adaptation]
    kind = rng.choice([*sorted(DAMAGE), "signed anew"])
    if kind == "signed anew":
        packed = files.encode(key, signed_anew(rng, entry, bench.entries[other][1]))
    else:
        packed = DAMAGE[kind](rng, data)
    original = bench.fitted(adaptation, FastWeightCache())
    state = {**original.__getstate__(), "_packed_fast_weights": packed}
    loaded = TTTTabPFNClassifier()
    loaded.__setstate__(pickle.loads(pickle.dumps(state)))
    return kind, bench.outcome(adaptation, loaded)


def cut_pickle(bench: Bench, rng: random.Random, place: Path) -> tuple[str, str]:
    adaptation = rng.choice(ADAPTATIONS)
    data = pickle.dumps(bench.fitted(adaptation, FastWeightCache()).adapt())
    try:
        return "cut off", bench.outcome(adaptation, pickle.loads(data[: rng.randrange(len(data))]))
    except (EOFError, pickle.UnpicklingError):
        return "cut off", "refused"


def moved_pickle(bench: Bench, rng: random.Random, place: Path) -> tuple[str, str]:
    """A pickle whose cache's path is of no use where it is loaded."""
    adaptation = rng.choice(ADAPTATIONS)
    (place / "file").touch()
    (place / "loop").symlink_to(place / "loop")
    paths = {"empty": "", "a file": place / "file", "a loop": place / "loop", "null": "a\0b", "long": "a" * 5000,
             "not there": place / "new"}  # fmt: skip
    kind = rng.choice(sorted(paths))
    state = bench.fitted(adaptation, FastWeightCache()).adapt().__getstate__()
    state["cache"] = str(paths[kind])
    loaded = TTTTabPFNClassifier()
    loaded.__setstate__(pickle.loads(pickle.dumps(state)))
    if (place / "new").exists():
        return kind, "wrong"
    return kind, bench.outcome(adaptation, loaded)


def in_child(call: Callable[[], str]) -> int:
    """Fork, and leave the child with what its call says."""
    child = os.fork()
    if child == 0:
        status = 4
        with contextlib.suppress(BaseException):
            status = {"right": 0, "miss": 0, "wrong": 3}[call()]
        os._exit(status)
    return child


def status_of(child: int) -> str:
    """What a child left with; one that does not end counts as a hang."""
    end = time.monotonic() + CHILD_PATIENCE
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            return {0: "right", 3: "wrong", -signal.SIGKILL: "killed"}.get(code, "error")
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hang"


def killed_writer(bench: Bench, rng: random.Random, place: Path) -> tuple[str, str]:
    """A process is killed at any moment of adapting and writing, another one comes after it or runs beside it."""
    adaptation, beside = rng.choice(ADAPTATIONS), rng.random() < 0.5
    fitted = bench.fitted(adaptation, FastWeightCache(place))
    child = in_child(lambda: bench.outcome(adaptation, fitted))
    time.sleep(rng.uniform(0.0, 0.25))
    other = in_child(lambda: bench.with_file(adaptation, place, None)) if beside else None
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    ends = [status_of(child), "right" if other is None else status_of(other), bench.with_file(adaptation, place, None)]
    return "beside" if beside else "after", worst([end for end in ends if end != "killed"])


def forked(bench: Bench, rng: random.Random, place: Path) -> tuple[str, str]:
    """A process is forked at any moment of another thread's adaptation, and predicts by itself."""
    adaptation, cache = rng.choice(ADAPTATIONS), FastWeightCache(place if rng.random() < 0.5 else None)
    first, second = bench.fitted(adaptation, cache, step=3e-3), bench.fitted(adaptation, cache)
    thread = threading.Thread(target=first.adapt)
    thread.start()
    time.sleep(rng.uniform(0.0, 0.2))
    child = in_child(lambda: bench.outcome(adaptation, second))
    end = status_of(child)
    thread.join()
    return "thread", worst([end, bench.outcome(adaptation, second)])


def full_disk(bench: Bench, rng: random.Random, place: Path) -> tuple[str, str]:
    """Files end after some bytes: the answer is right, and nothing half written stays under an entry's name."""
    adaptation = rng.choice(ADAPTATIONS)
    key, _, data = bench.entries[adaptation]
    limit = rng.randrange(len(data) + 1)

    def run() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return bench.outcome(adaptation, bench.fitted(adaptation, FastWeightCache(place)))

    end = status_of(in_child(run))
    if limit < len(data) and (place / f"{key}.safetensors").exists():
        end = "wrong"
    return "limit", worst([end, bench.with_file(adaptation, place, None)])


def replaced_base(bench: Bench, rng: random.Random, place: Path) -> tuple[str, str]:
    """The checkpoint is replaced at any moment by one of the same size and time: an answer is one of the two bases'."""
    adaptation, used = rng.choice(ADAPTATIONS), place / bench.bases[0].name
    shutil.copy2(bench.bases[0], used)
    cache = FastWeightCache(place / "cache")
    how, pause = rng.choice(["replaced", "overwritten"]), rng.uniform(0.0, 0.2)

    def replace() -> None:
        time.sleep(pause)
        if how == "replaced":
            shutil.copy2(bench.bases[1], place / "next")
            os.replace(place / "next", used)
        else:
            shutil.copy2(bench.bases[1], used)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        first = bench.outcome(adaptation, bench.fitted(adaptation, cache, used), (0, 1))
    except Exception:
        # A file that is being overwritten may be no checkpoint for a moment; a later call must be right.
        first = "right" if how == "overwritten" else "error"
    thread.join()
    second = bench.outcome(adaptation, bench.fitted(adaptation, cache, used), (1,))
    kept = bench.outcome(adaptation, bench.fitted(adaptation, FastWeightCache(place / "cache")), (0,))
    return how, worst([first, second, kept])


def interrupted(bench: Bench, rng: random.Random, place: Path) -> tuple[str, str]:
    """Ctrl-C at any moment: the next call is right."""
    adaptation, cache = rng.choice(ADAPTATIONS), FastWeightCache(place)
    fitted = bench.fitted(adaptation, cache)
    with contextlib.suppress(KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.001, 0.2))
        try:
            bench.outcome(adaptation, fitted)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    first = bench.outcome(adaptation, fitted)
    return "interrupt", worst([first, bench.with_file(adaptation, place, None)])


ORDER = ("hang", "wrong", "error", "refused", "miss", "right")


def worst(outcomes: list[str]) -> str:
    """The first of several outcomes in the order of how bad they are."""
    return min(outcomes, key=ORDER.index)


KINDS = {
    damaged_file: 30, exchanged_file: 3, signed_file: 15, odd_file: 10, damaged_pickle: 15, cut_pickle: 2,
    moved_pickle: 3, killed_writer: 6, forked: 4, full_disk: 4, replaced_base: 4, interrupted: 4,
}  # fmt: skip
"""Faults and their weights."""
