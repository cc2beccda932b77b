"""Base models, shared in the process, their private copies, and plain TabPFN fitted on context rows."""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import torch
from sklearn.base import clone
from tabpfn import TabPFNClassifier
from tabpfn.architectures.interface import EstimatorBatchBudget
from tabpfn.base import ModelSpecs
from torch import Tensor, nn

from tttabpfn.fast_weights.fingerprint import fingerprint
from tttabpfn.tabpfn_adapter.wrapped import checkpoint_paths, is_bundled

CPU_CELLS_PER_PASS = 65_536
"""Cells of members that share a forward pass on a CPU; beyond that they fall out of its caches."""
_BASES_KEPT = 4
_bases: OrderedDict[str, Base] = OrderedDict()
_bases_lock = threading.RLock()


@dataclass(frozen=True)
class Base:
    """A base model as TabPFN loaded it; shared within the process and never written to.

    Parameters
    ----------
    models : tuple of Module
        One network per checkpoint (usually one).
    configs : tuple
        Their architecture configurations.
    inference_config : InferenceConfig
        Preprocessing and ensembling settings, the user's overrides applied.
    content : str
        Fingerprint of weights and settings.
    device : torch.device
        Where adaptation runs.
    """

    models: tuple[Any, ...]
    configs: tuple[Any, ...]
    inference_config: Any
    content: str
    device: torch.device

    @property
    def max_classes(self) -> int:
        """Number of classes the base can tell apart."""
        return int(self.inference_config.MAX_NUMBER_OF_CLASSES)


def loaded_base(estimator: TabPFNClassifier) -> Base | None:
    """Return an estimator's base if it is in this process already; loads nothing.

    Parameters
    ----------
    estimator : TabPFNClassifier
        Unfitted.

    Returns
    -------
    Base or None
        As `load_base` would return it.
    """
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
    """
    identity = _base_identity(estimator)
    with _bases_lock:
        if identity is not None and identity in _bases:
            _bases.move_to_end(identity)
            return _bases[identity]
        base = _load(estimator)
        if identity is not None:
            _bases[identity] = base
            while len(_bases) > _BASES_KEPT:
                _bases.popitem(last=False)
        return base


def _base_identity(estimator: TabPFNClassifier) -> str | None:
    paths = checkpoint_paths(estimator)
    if not paths or not all(path.exists() for path in paths):
        return None
    files = [(str(path.resolve()), path.stat().st_mtime_ns, path.stat().st_size) for path in paths]
    config = estimator.inference_config
    settings = (
        str(estimator.device),
        str(estimator.inference_precision),
        repr(estimator.softmax_temperature),
        repr(sorted(config.items(), key=str)) if isinstance(config, dict) else repr(config),
    )
    return fingerprint(files, settings)


def _load(estimator: TabPFNClassifier) -> Base:
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
        inference_config = dataclasses.replace(inference_config, MAX_CPU_SAMPLES=inference_config.MAX_NUMBER_OF_SAMPLES)
    models = tuple(probe.models_)
    for model in models:
        model.eval()
    weights = [{name: tensor.detach() for name, tensor in model.state_dict().items()} for model in models]
    content = fingerprint(
        [{name: tensor.cpu() for name, tensor in state.items()} for state in weights],
        [repr(config) for config in probe.configs_],
        repr(inference_config),
    )
    return Base(models, tuple(probe.configs_), inference_config, content, torch.device(probe.devices_[0]))


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
        shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        twin = copy.deepcopy(model, shared)
        for name, parameter in list(twin.named_parameters()):
            owner = twin.get_submodule(name.rpartition(".")[0])
            leaf = name.rpartition(".")[2]
            if name in weights:
                value = weights[name].detach().to(parameter.device, parameter.dtype)
                owner._parameters[leaf] = nn.Parameter(value.clone() if trainable else value, requires_grad=trainable)
            else:
                owner._parameters[leaf] = nn.Parameter(parameter.detach(), requires_grad=False)
        copies.append(_within_cpu_caches(twin.eval()))
    return copies


def _within_cpu_caches(twin: nn.Module) -> nn.Module:
    """Let a private network on a CPU take only as many members and rows at once as its caches hold."""
    budget = getattr(twin, "_estimator_batch_budget", None)
    on_cpu = all(parameter.device.type == "cpu" for parameter in twin.parameters())
    if on_cpu and isinstance(budget, EstimatorBatchBudget) and budget.cells > CPU_CELLS_PER_PASS:
        twin._estimator_batch_budget = dataclasses.replace(budget, cells=CPU_CELLS_PER_PASS)
    return twin


def adaptable_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters that can be fast weights.

    Parameters
    ----------
    model : Module
        A base network.

    Returns
    -------
    dict of str to tuple of int
        Floating-point parameters that the network itself trains, in its order.
    """
    return {
        name: tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.is_floating_point()
    }


def fit_tabpfn(
    estimator: TabPFNClassifier,
    base: Base,
    X: Any,
    y: Any,
    *,
    models: Sequence[nn.Module] | None = None,
    fit_mode: str | None = None,
) -> TabPFNClassifier:
    """Fit a plain `TabPFNClassifier` on context rows, with the base's networks or with adapted ones.

    Parameters
    ----------
    estimator : TabPFNClassifier
        Settings; not changed.
    base : Base
        Its base.
    X, y : array-like of shape (n, n_features), (n,)
        Context rows and labels, as the user gave them.
    models : sequence of Module, optional
        Networks to predict with, by default the base's own.
    fit_mode : str, optional
        By default the estimator's. Any given one turns ``inference_precision="auto"`` into float32, on every device,
        and ``"fit_with_cache"`` keeps the context's keys and values as computed.

    Returns
    -------
    TabPFNClassifier
        Fitted.
    """
    inner = clone(estimator)
    inner.model_path = model_specs(base.models if models is None else models, base)
    # Both overrides are already applied in the base's settings, and TabPFN refuses to be told twice.
    inner.inference_config = None
    inner.softmax_temperature = "auto"
    if fit_mode is not None:
        inner.fit_mode = fit_mode
        if fit_mode == "fit_with_cache":
            inner.kv_cache_precision = cached_kv_precision(inner)
        if inner.inference_precision == "auto":
            # What "auto" means, autocast to half precision, loses three digits and differs from the precision in which
            # the steps are taken and the guard compares. On a CPU it is no faster here.
            inner.inference_precision = torch.float32
    return inner.fit(X, y)


def model_specs(networks: Sequence[nn.Module], base: Base) -> list[ModelSpecs]:
    """What TabPFN takes as `model_path` for networks in memory, one of each of the base's architectures."""
    return [
        ModelSpecs(network, config, base.inference_config)
        for network, config in zip(networks, base.configs, strict=True)
    ]


def cached_kv_precision(estimator: TabPFNClassifier) -> str:
    """Precision of the context's keys and values: the user's, or the computed one, which TabPFN would quantize."""
    return "auto" if estimator.kv_cache_precision is None else estimator.kv_cache_precision
