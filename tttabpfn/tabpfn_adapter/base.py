"""Base models, shared in the process, their private copies, and plain TabPFN fitted on context rows."""

from __future__ import annotations

import copy
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import torch
from sklearn.base import clone
from tabpfn import TabPFNClassifier, model_loading
from tabpfn.architectures.interface import EstimatorBatchBudget
from torch import Tensor, nn

from tttabpfn.cache.fingerprint import fingerprint
from tttabpfn.cache.lru import Lru
from tttabpfn.tabpfn_adapter.estimator import checkpoint_paths, is_bundled

CPU_CELLS_PER_PASS = 65_536
"""Cells of members that share a forward pass on a CPU; beyond that they fall out of its caches."""
_BASES_KEPT = 4
_bases: Lru[str, Base] = Lru(max_items=_BASES_KEPT)
_bases_lock = threading.RLock()
_held_over_fork: list[bool] = []
_FORK_WAIT = 60.0
"""Seconds that a fork waits at most for a base to be loaded by another thread."""
_LOADS = 3
"""Times that a checkpoint is loaded at most while others keep replacing it."""
_TICK_NS = 20_000_000
"""Nanoseconds, more than one tick of a local file system's clock."""


@dataclass(frozen=True)
class Base:
    """A base model as TabPFN loaded it; shared within the process and never written to, moved or cast.

    Parameters
    ----------
    models : tuple of Module
        One network per checkpoint (usually one), on `device`; in double precision if the estimator predicts in it,
        else as loaded, in which precision gradients are taken.
    configs : tuple
        Their architecture configurations.
    inference_config : InferenceConfig
        Preprocessing and ensembling settings, the user's overrides applied.
    content : str
        Fingerprint of weights and settings.
    device : torch.device
        Where adaptation runs.
    averages_logits : bool
        Whether members are ensembled by the mean of their logits, as codes of many classes ask for, whatever the
        wrapped estimator says.
    widened : dict of int to Base
        The same base for more classes than it was trained on, by their number.
    """

    models: tuple[Any, ...]
    configs: tuple[Any, ...]
    inference_config: Any
    content: str
    device: torch.device
    averages_logits: bool = False
    widened: dict[int, Base] = field(default_factory=dict, repr=False, compare=False)


_ANY_NUMBER = 1_000_000


def _before_fork() -> None:
    # A child must not find a network half built, nor TabPFN's own state while it builds one.
    _held_over_fork.append(_bases_lock.acquire(timeout=_FORK_WAIT))


def _after_fork_in_parent() -> None:
    if _held_over_fork.pop():
        _bases_lock.release()


def _after_fork_in_child() -> None:
    global _bases_lock
    _bases_lock = threading.RLock()
    _held_over_fork.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def widened_once(base: Base, n_classes: int, make: Callable[[], Base]) -> Base:
    """A base widened to a number of classes, made by the first who asks; fresh locks in a fork hold here, too."""
    with _bases_lock:
        if n_classes not in base.widened:
            base.widened[n_classes] = make()
        return base.widened[n_classes]


def loaded_base(estimator: TabPFNClassifier) -> Base | None:
    """An estimator's base if it is in this process already; loads nothing."""
    identity = _base_identity(estimator)
    with _bases_lock:
        return None if identity is None else _bases.get(identity)


def load_base(estimator: TabPFNClassifier) -> Base:
    """Load an estimator's base model, or hand out the one already in this process.

    Parameters
    ----------
    estimator : TabPFNClassifier
        Unfitted; not changed.

    Returns
    -------
    Base
        Shared: its modules must not be trained, moved or cast.

    Notes
    -----
    A checkpoint that was replaced is loaded anew: it is known by device, inode, size, and times of modification and of
    status change, taken before and after loading. Unseen stays only what leaves all of these as they are, such as a
    change within one tick of a file system whose clock ticks more slowly than every 20 ms. `Base.content`, and with it
    every key, is made from the weights that were loaded, whatever the file holds by now.
    """
    with _bases_lock:
        for attempt in range(_LOADS):
            identity = _base_identity(estimator, settled=True)
            kept = None if identity is None else _bases.get(identity)
            if kept is not None:
                return kept
            is_last = attempt == _LOADS - 1
            try:
                base = _load(estimator)
            except Exception:
                if is_last or identity == _base_identity(estimator):
                    raise
                continue
            if identity is None:
                return base
            if identity == _base_identity(estimator):
                _bases.put(identity, base)
                return base
        # Replaced during every load: its content is that of what was loaded, but no file stands for it.
        return base


def _base_identity(estimator: TabPFNClassifier, *, settled: bool = False) -> str | None:
    """Fingerprint of the checkpoint files' states and the settings they load with; None if there are no such files."""
    paths = checkpoint_paths(estimator)
    try:
        files = [(str(path.resolve()), _file_state(path, settled)) for path in paths]
    except FileNotFoundError:
        return None
    if not files:
        return None
    config = estimator.inference_config
    settings = (
        str(estimator.device),
        str(estimator.inference_precision),
        repr(estimator.softmax_temperature),
        repr(sorted(config.items(), key=str)) if isinstance(config, dict) else repr(config),
    )
    return fingerprint(files, settings)


def _file_state(path: Path, settled: bool) -> tuple[int, ...]:
    """What changes with a file's content, a new file of the same size and modification time included.

    A file system's clock ticks: two changes within one tick leave the same times. A `settled` state is that of a file
    which has not changed during the last tick, so that every later change shows.
    """
    state = path.stat()
    for _ in range(_LOADS if settled else 0):
        if abs(time.time_ns() - state.st_ctime_ns) > _TICK_NS:
            break
        time.sleep(_TICK_NS / 1e9)
        state = path.stat()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _load(estimator: TabPFNClassifier) -> Base:
    # TabPFN keeps what it read last, and takes a file of the same size and modification time for the same.
    model_loading._load_checkpoint_cached.cache_clear()
    model_loading.clear_built_model_cache()
    probe = clone(estimator)
    # Networks are built with random weights before the checkpoint's are read in: the user's generator is put back.
    try:
        with torch.random.fork_rng(devices=[]):
            inference_config = probe.get_inference_config()
    except (UnpicklingError, EOFError, BadZipFile) as error:
        named = ", ".join(repr(str(path)) for path in checkpoint_paths(estimator))
        raise ValueError(f"estimator.model_path: {named} is damaged or holds more than weights: {error}") from error
    if is_bundled(estimator):
        # The general CPU limit is set for far larger networks than the bundled one.
        # TabPFN gives each ensemble member a part of wide tables, but warns of them or refuses them all the same.
        inference_config = dataclasses.replace(
            inference_config,
            MAX_CPU_SAMPLES=inference_config.MAX_NUMBER_OF_SAMPLES,
            MAX_NUMBER_OF_FEATURES=_ANY_NUMBER,
        )
    if os.environ.get("TABPFN_MODEL_CACHE_SIZE"):
        # TabPFN then hands the same networks to its own classifiers, which cast and move them.
        probe.models_ = copy.deepcopy(probe.models_)
    device = torch.device(probe.devices_[0])
    models = tuple(_on_device(model, device, estimator.inference_precision) for model in probe.models_)
    content = fingerprint(
        [{name: tensor.detach().cpu() for name, tensor in model.state_dict().items()} for model in probe.models_],
        [repr(config) for config in probe.configs_],
        repr(inference_config),
    )
    return Base(models, tuple(probe.configs_), inference_config, content, device)


def _on_device(model: nn.Module, device: torch.device, precision: torch.dtype | str) -> nn.Module:
    """A loaded network where it is to run; in double precision as a copy, since the user may hold the original."""
    model = model.eval().to(device)
    return copy.deepcopy(model).double() if precision == torch.float64 else model


def castable_copies(models: Sequence[nn.Module]) -> list[nn.Module]:
    """Copies of the networks that share every tensor with the originals, for TabPFN to move and cast as it likes.

    TabPFN casts the networks that it predicts with in place; in these copies that puts other tensors in the place of
    the shared ones, which stay as they are. What requires gradients still does: attention on a CPU goes by that.
    """
    return [
        _with_own_parameters(model, lambda name, own: nn.Parameter(own.detach(), own.requires_grad)) for model in models
    ]


def private_copies(
    models: Sequence[nn.Module], fast: Sequence[Mapping[str, Tensor]], *, trainable: bool = True
) -> list[nn.Module]:
    """Copies of the networks that have fast weights of their own and share every other tensor with the originals.

    Parameters
    ----------
    models : sequence of Module
        Base networks; neither they nor their tensors are written to.
    fast : sequence of dict of str to Tensor
        For each network, its fast weights by parameter name.
    trainable : bool, default=True
        Copy the fast weights and let them require gradients. False: use the given tensors themselves, read-only.

    Returns
    -------
    list of Module
        In evaluation mode.
    """
    copies = []
    for model, weights in zip(models, fast, strict=True):

        def parameter_of(name: str, own: nn.Parameter, weights: Mapping[str, Tensor] = weights) -> nn.Parameter:
            if name not in weights:
                return nn.Parameter(own.detach(), requires_grad=False)
            value = weights[name].detach().to(own.device, own.dtype)
            return nn.Parameter(value.clone() if trainable else value, requires_grad=trainable)

        copies.append(_within_cpu_caches(_with_own_parameters(model, parameter_of)))
    return copies


def _with_own_parameters(model: nn.Module, make: Callable[[str, nn.Parameter], nn.Parameter]) -> nn.Module:
    """A copy in evaluation mode that shares buffers, and has parameters made from the original's names and own."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    for name, parameter in list(twin.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        twin.get_submodule(owner)._parameters[leaf] = make(name, parameter)
    return twin.eval()


def _within_cpu_caches(twin: nn.Module) -> nn.Module:
    """Let a private network on a CPU take only as many members and rows at once as its caches hold."""
    budget = getattr(twin, "_estimator_batch_budget", None)
    on_cpu = all(parameter.device.type == "cpu" for parameter in twin.parameters())
    if on_cpu and isinstance(budget, EstimatorBatchBudget) and budget.cells > CPU_CELLS_PER_PASS:
        twin._estimator_batch_budget = dataclasses.replace(budget, cells=CPU_CELLS_PER_PASS)
    return twin


def adaptable_names(model: nn.Module) -> list[str]:
    """Names of the parameters that can be fast weights: those in floating point that a base network itself trains."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.is_floating_point()
    ]


def model_bytes(model: nn.Module) -> int:
    """Size of a network's parameters in bytes."""
    return sum(parameter.nbytes for parameter in model.parameters())
