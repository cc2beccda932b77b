"""What the library costs beside plain TabPFN: seconds with zero steps, import time, and memory per adapted model.

Seconds: fit plus predict of `TTTTabPFNClassifier(n_steps=0)` and of the `TabPFNClassifier` it wraps, in turns, on the
same rows; in one warm process with an empty cache every time, and in fresh processes that load the weights. Import: in
fresh processes, what `tttabpfn` and its classifier add once `tabpfn` and its classifier are there. Memory: bytes of all
tensor storages alive after each of several adaptations in one cache, against a frozen TabPFN with the same fit mode and
the same precision of keys and values: float32, as adapted models predict on a CPU. TabPFN's own "auto" holds them in
bfloat16 there, half as large; that they are larger is no part of `alive_over_fast_weights`, whose denominator is all
that was adapted: network weights and the memory's matrices.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import parser, summary, write
from _running import base_checkpoint, file_digest, use_threads
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from tabpfn import TabPFNClassifier

from tttabpfn import FastWeightCache, TTTTabPFNClassifier

DATA = {"wine": load_wine, "breast_cancer": load_breast_cancer, "digits_1000": load_digits}
IMPORTS = """
import json, time
def clocks():
    return time.perf_counter(), time.process_time()
start = clocks()
from tabpfn import TabPFNClassifier
base = clocks()
import tttabpfn
package = clocks()
tttabpfn.TTTTabPFNClassifier
end = clocks()
print(json.dumps([[b - a for a, b in zip(*pair)] for pair in ((start, base), (base, package), (base, end))]))
"""
COLD = """
import json, sys
sys.path.insert(0, sys.argv[4])
import torch
torch.set_num_threads(int(sys.argv[3]))
import overhead
data = overhead.rows("breast_cancer")
print(json.dumps(overhead.fit_predict(overhead.build(sys.argv[1], sys.argv[2]), *data)[1].tolist()))
"""


def rows(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Half of a toy set to fit and half to predict, at most 1,000 rows together, in one fixed shuffled order."""
    X, y = DATA[name](return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))[:1000]
    half = len(order) // 2
    return X[order[:half]], y[order[:half]], X[order[half:]]


def build(model: str, checkpoint: str) -> Any:
    """Plain TabPFN, or the library's classifier around it with zero steps and an empty cache."""
    base = TabPFNClassifier(model_path=checkpoint, device="cpu", random_state=0)
    if model == "tabpfn":
        return base
    return TTTTabPFNClassifier(base, n_steps=0, random_state=0, cache=FastWeightCache())


def clocks() -> np.ndarray:
    """Wall-clock seconds and the processor seconds of this process."""
    return np.array([time.perf_counter(), time.process_time()])


def fit_predict(model: Any, X: np.ndarray, y: np.ndarray, X_test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class probabilities, and what they took on both clocks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Running on CPU", UserWarning)
        start = clocks()
        answer = model.fit(X, y).predict_proba(X_test)
        return answer, clocks() - start


def compared(plain: list[np.ndarray], ours: list[np.ndarray]) -> dict[str, Any]:
    """Seconds of both, and ratios of neighbours, which a busy machine hits alike."""
    tabpfn, tttabpfn = np.array(plain), np.array(ours)
    found = {}
    for place, clock in enumerate(("wall", "processor")):
        found |= {
            f"tabpfn_{clock}_seconds": summary(tabpfn[:, place].tolist()),
            f"tttabpfn_{clock}_seconds": summary(tttabpfn[:, place].tolist()),
            f"{clock}_ratio": summary((tttabpfn[:, place] / tabpfn[:, place]).tolist()),
        }
    return found


def warm_seconds(name: str, checkpoint: str, repeats: int) -> dict[str, Any]:
    """Both in turns, each time with new objects and an empty cache, after one untimed turn."""
    data = rows(name)
    taken: dict[str, list[np.ndarray]] = {"tabpfn": [], "tttabpfn": []}
    same = []
    for repeat in range(repeats + 1):
        answers = []
        for model in ("tabpfn", "tttabpfn") if repeat % 2 else ("tttabpfn", "tabpfn"):
            answer, seconds = fit_predict(build(model, checkpoint), *data)
            answers.append(answer)
            taken[model].append(seconds)
        same.append(bool(np.array_equal(*answers)))
    found = compared(taken["tabpfn"][1:], taken["tttabpfn"][1:])
    return {"measured": "fit_predict_warm", "data": name, **found, "same_bits": all(same)}


def cold_seconds(checkpoint: str, repeats: int, threads: int) -> dict[str, Any]:
    """The first fit plus predict of a process, loading of the weights included."""
    taken: dict[str, list[np.ndarray]] = {"tabpfn": [], "tttabpfn": []}
    here = str(Path(__file__).resolve().parent)
    for _ in range(repeats):
        for model, found in taken.items():
            found.append(np.array(_in_new_process(COLD, model, checkpoint, str(threads), here)))
    found = compared(taken["tabpfn"], taken["tttabpfn"])
    return {"measured": "fit_predict_cold", "data": "breast_cancer", **found}


def import_seconds(repeats: int) -> dict[str, Any]:
    """Seconds that importing adds to importing tabpfn."""
    # Of shape (processes, what is imported, clock); the first process may find no compiled files.
    taken = np.array([_in_new_process(IMPORTS) for _ in range(repeats + 1)])[1:]
    what = ("tabpfn", "import_tttabpfn_adds", "import_classifier_adds")
    return {"measured": "import"} | {
        f"{name}_{clock}_seconds": summary(taken[:, place, column].tolist())
        for place, name in enumerate(what)
        for column, clock in enumerate(("wall", "processor"))
    }


def _in_new_process(script: str, *arguments: str) -> Any:
    run = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def tensor_bytes() -> int:
    """Bytes of all tensor storages that are alive, each counted once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.layout == torch.strided:
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())


def memory(checkpoint: str, models: int, fast_weights: str) -> dict[str, Any]:
    """Bytes that each further adapted model keeps alive, beyond a frozen TabPFN with cached keys and values.

    Of the frozen one, keys and values are counted in float32, like those of the adapted models, and as TabPFN holds
    them by default.
    """
    X, y, X_test = rows("wine")
    cache = FastWeightCache()
    base = TabPFNClassifier(model_path=checkpoint, device="cpu", random_state=0, n_estimators=2)
    keys_and_values = _frozen_bytes(base, models, inference_precision=torch.float32)
    adapted, alive = [], []
    for model in range(models):
        fitted = TTTTabPFNClassifier(
            base, n_steps=2, step_size=1e-4, guard=False, fast_weights=fast_weights, random_state=0, cache=cache
        ).fit(X[model:], y[model:])
        fitted.predict_proba(X_test)
        adapted.append(fitted)
        alive.append(tensor_bytes())
    size = adapted[-1].adaptation_report().fast_weight_bytes
    entries = cache.info().bytes / models
    growth = float(np.median(np.diff(alive)))
    return {
        "measured": "memory",
        "fast_weights": fast_weights,
        "fast_weight_bytes": size,
        "cache_entry_bytes": entries,
        "alive_per_model_bytes": growth,
        "frozen_keys_and_values_bytes": keys_and_values,
        "frozen_keys_and_values_bytes_auto": _frozen_bytes(base, models, inference_precision="auto"),
        "entry_over_fast_weights": entries / size,
        "alive_over_fast_weights": (growth - keys_and_values) / size,
    }


def _frozen_bytes(base: TabPFNClassifier, models: int, **settings: Any) -> float:
    """Bytes that each further frozen TabPFN with cached keys and values keeps alive beside its weights."""
    X, y, X_test = rows("wine")
    settings |= {"fit_mode": "fit_with_cache", "kv_cache_precision": "auto"}
    frozen, held = [], []
    for model in range(models):
        fitted = TabPFNClassifier(**{**base.get_params(), **settings})
        fitted.fit(X[model:], y[model:]).predict_proba(X_test)
        frozen.append(fitted)
        # Every plain classifier loads weights of its own; ours share one base. Both are left out of the comparison.
        held.append(tensor_bytes() - sum(_model_bytes(found) for found in frozen))
    return float(np.median(np.diff(held)))


def _model_bytes(fitted: TabPFNClassifier) -> int:
    return sum(tensor.untyped_storage().nbytes() for model in fitted.models_ for tensor in model.state_dict().values())


def options() -> argparse.Namespace:
    """The command line."""
    arguments = parser(__doc__ or "", data=False)
    arguments.add_argument("--checkpoint", metavar="FILE", help="base weights; default: the checkpoint in the package")
    arguments.add_argument("--repeats", type=int, default=7, help="timed pairs in a warm process")
    arguments.add_argument("--processes", type=int, default=5, help="fresh processes per figure")
    arguments.add_argument("--models", type=int, default=4, help="adapted models held at once")
    arguments.add_argument("--threads", type=int, default=2)
    return arguments.parse_args()


def main() -> None:
    """Measure and write."""
    given = options()
    use_threads(given)
    checkpoint = base_checkpoint(given)
    parts = [partial(warm_seconds, name, checkpoint, given.repeats) for name in DATA]
    parts += [
        partial(cold_seconds, checkpoint, given.processes, given.threads),
        partial(import_seconds, given.processes),
    ]
    parts += [partial(memory, checkpoint, given.models, part) for part in ("all", "in_context", "mlp")]
    found = []
    for part in parts:
        found.append(part())
        show(found[-1])
    settings = {name: value for name, value in vars(given).items() if name not in ("out", "checkpoint")}
    settings |= {"checkpoint": Path(checkpoint).name, "checkpoint_sha256": file_digest(checkpoint)}
    write(given.out, "overhead", settings, found)


def show(row: dict[str, Any]) -> None:
    """Print a row's medians."""
    what = " ".join(str(row[name]) for name in ("measured", "data", "fast_weights") if name in row)
    medians = {name: value["median"] if isinstance(value, dict) else value for name, value in row.items()}
    figures = (f"{name} {value:.4g}" for name, value in medians.items() if not isinstance(value, str))
    print(f"{what}: {'  '.join(figures)}", flush=True)


if __name__ == "__main__":
    main()
