"""The only file that knows TabPFN's internals: base models, demonstration tensors, logits in one axis order.

Letters: M ensemble members, N demonstrations, n context rows, Q query rows, C prepared columns, K classes.
Logits are ``[M, Q, K]`` everywhere outside this file, classes in the order of ``classes_``.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from sklearn.base import clone
from tabpfn import TabPFNClassifier
from tabpfn.base import ModelSpecs
from tabpfn.constants import PROBABILITY_EPSILON_ROUND_ZERO, SKLEARN_16_DECIMAL_PRECISION
from tabpfn.inference_config import cpu_sample_limit
from tabpfn.model_loading import resolve_model_path, resolve_model_version
from tabpfn.preprocessing.clean import clean_data_transform
from tabpfn.preprocessing.datamodel import FeatureModality
from tabpfn.utils import infer_devices, infer_random_state
from tabpfn.validation import check_input_shape_matches, ensure_compatible_predict_input_sklearn
from torch import Tensor, nn

from tttabpfn import checkpoints
from tttabpfn.fast_weights.fingerprint import fingerprint

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


def default_estimator() -> TabPFNClassifier:
    """Return the `TabPFNClassifier` that is adapted when the user gives none: the bundled checkpoint, offline.

    Returns
    -------
    TabPFNClassifier
        Unfitted.
    """
    path = str(checkpoints.bundled_model_path())
    return TabPFNClassifier(model_path=path, inference_config={"TRANSFORM_DATES": True})


def declared_limits(estimator: TabPFNClassifier) -> dict[str, Any]:
    """Inference settings declared in the checkpoint's header, read without loading any weights.

    Parameters
    ----------
    estimator : TabPFNClassifier
        Unfitted.

    Returns
    -------
    dict
        Settings by name; empty where they are not known before loading (a `.ckpt`, a model still to be downloaded).

    Raises
    ------
    FileNotFoundError
        If a checkpoint path was given that does not exist.
    ValueError
        If a safetensors checkpoint is damaged.
    """
    declared: dict[str, Any] = {}
    for path in checkpoint_paths(estimator):
        if not path.exists():
            if _is_official_name(path):
                continue  # TabPFN knows where to get it, which the user asked for by this name
            raise FileNotFoundError(f"estimator.model_path: no checkpoint at {str(path)!r}.")
        if path.suffix == ".safetensors":
            try:
                with safe_open(str(path), framework="pt") as file:
                    header = file.metadata() or {}
                declared.update(json.loads(header.get("inference_config", "{}")))
            except (SafetensorError, ValueError, OSError) as error:
                raise ValueError(
                    f"estimator.model_path: {str(path)!r} is not a readable checkpoint: {error}"
                ) from error
    declared.update(estimator.inference_config if isinstance(estimator.inference_config, dict) else {})
    return declared


def checkpoint_paths(estimator: TabPFNClassifier) -> list[Path]:
    """Paths of the checkpoints an estimator names; empty for models given in memory.

    Parameters
    ----------
    estimator : TabPFNClassifier
        Unfitted.

    Returns
    -------
    list of Path
        Existing or not.
    """
    given = estimator.model_path
    if isinstance(given, ModelSpecs) or (isinstance(given, list) and given and isinstance(given[0], ModelSpecs)):
        return []
    if isinstance(given, str | Path) and str(given) != "auto":
        return [Path(given)]
    if isinstance(given, list):
        return [Path(item) for item in given]
    paths, *_ = resolve_model_path(model_path=None, which="classifier")
    return [Path(path) for path in paths]


def _is_official_name(path: Path) -> bool:
    return path.name.startswith("tabpfn-v")


def max_context_rows(estimator: TabPFNClassifier, declared: dict[str, Any]) -> int | None:
    """Most context rows that the wrapped estimator takes without being told to ignore its limits.

    Parameters
    ----------
    estimator : TabPFNClassifier
        Unfitted.
    declared : dict
        What `declared_limits` returned.

    Returns
    -------
    int or None
        None where it is not known before the weights load.
    """
    most = declared.get("MAX_NUMBER_OF_SAMPLES")
    on_cpu = all(device.type == "cpu" for device in infer_devices(estimator.device))
    if most is None or not on_cpu or _is_bundled(estimator):
        return most
    paths = checkpoint_paths(estimator)
    limits = [cpu_sample_limit(resolve_model_version(path)) for path in paths]
    return min([int(most), *limits])


def check_estimator_settings(estimator: TabPFNClassifier) -> None:
    """Refuse settings of the wrapped estimator that adaptation cannot honour.

    Parameters
    ----------
    estimator : TabPFNClassifier
        Unfitted.

    Raises
    ------
    ValueError
        Names the setting, what is allowed and what came.
    """
    if estimator.fit_mode == "batched":
        raise ValueError(
            'estimator.fit_mode must be "fit_preprocessors", "low_memory" or "fit_with_cache", got "batched".'
        )
    if estimator.differentiable_input:
        raise ValueError("estimator.differentiable_input must be False, got True.")


def with_settled_seed(estimator: TabPFNClassifier, fallback: int) -> TabPFNClassifier:
    """Return a clone whose `random_state` is an int, so that preparing, scoring and predicting draw the same ensemble.

    Parameters
    ----------
    estimator : TabPFNClassifier
        Unfitted; not changed.
    fallback : int
        Seed where the estimator's is None.

    Returns
    -------
    TabPFNClassifier
        For a random generator: with the seed that its own `fit` would draw.
    """
    settled = clone(estimator)
    if settled.random_state is None:
        settled.random_state = fallback
    elif not isinstance(settled.random_state, int | np.integer):
        settled.random_state, _ = infer_random_state(settled.random_state)
    return settled


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
    if _is_bundled(estimator):
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


def _is_bundled(estimator: TabPFNClassifier) -> bool:
    paths = checkpoint_paths(estimator)
    return len(paths) == 1 and paths[0].resolve().parent == Path(checkpoints.__file__).resolve().parent


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
        copies.append(twin.eval())
    return copies


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
        By default the estimator's. ``"fit_with_cache"`` keeps the context's keys and values in full precision.

    Returns
    -------
    TabPFNClassifier
        Fitted.
    """
    networks = base.models if models is None else models
    specs = [
        ModelSpecs(network, config, base.inference_config)
        for network, config in zip(networks, base.configs, strict=True)
    ]
    inner = clone(estimator)
    inner.model_path = specs
    # Both overrides are already applied in the base's settings, and TabPFN refuses to be told twice.
    inner.inference_config = None
    inner.softmax_temperature = "auto"
    if fit_mode is not None:
        inner.fit_mode = fit_mode
        if fit_mode == "fit_with_cache" and inner.kv_cache_precision is None:
            inner.kv_cache_precision = "auto"
        if inner.inference_precision == "auto" and base.device.type == "cpu":
            # What "auto" means on a CPU, bfloat16 autocast, is no faster here, loses three digits, and differs from
            # the precision in which the guard compares.
            inner.inference_precision = torch.float32
    return inner.fit(X, y)


@dataclass(frozen=True)
class _Member:
    """One ensemble member's view of all demonstrations."""

    rows: Tensor
    labels: Tensor
    class_order: Tensor
    schema: Any
    torch_preprocessor: Any
    model_index: int


@dataclass(frozen=True)
class Demonstrations:
    """All demonstrations as the base's input tensors, once per ensemble member.

    Preprocessing is fitted on the context rows, as it will be at predict, and applied to every demonstration; an
    episode then only picks rows.

    Parameters
    ----------
    members : tuple
        One view per ensemble member.
    labels : Tensor of shape (N,)
        Class codes in the order of ``classes_``.
    n_classes : int
        Number of classes.
    temperature : float
        Softmax temperature of the predictions.
    """

    members: tuple[_Member, ...]
    labels: Tensor
    n_classes: int
    temperature: float

    @property
    def n_members(self) -> int:
        """Number of ensemble members."""
        return len(self.members)

    @property
    def nbytes(self) -> int:
        """Size of all members' rows in bytes."""
        return sum(member.rows.numel() * member.rows.element_size() for member in self.members)

    @property
    def columns(self) -> int:
        """Widest member's number of prepared columns."""
        return max(member.rows.shape[1] for member in self.members)


def prepare_demonstrations(inner: TabPFNClassifier, base: Base, X: Any, labels: np.ndarray) -> Demonstrations:
    """Run every demonstration through a fitted TabPFN's own preprocessing.

    Parameters
    ----------
    inner : TabPFNClassifier
        Fitted on the context rows with ``fit_mode="fit_preprocessors"``.
    base : Base
        Its base.
    X : array-like of shape (N, n_features)
        All demonstrations as the user gave them.
    labels : ndarray of shape (N,), int
        Their class codes in the order of ``inner.classes_``.

    Returns
    -------
    Demonstrations
        On the base's device.
    """
    encoded = _encode(inner, X)
    dtype = inner.forced_inference_dtype_ if inner.forced_inference_dtype_ == torch.float64 else torch.float32
    codes = torch.as_tensor(labels, dtype=torch.long, device=base.device)
    members = []
    for member in inner.executor_.ensemble_members:
        permutation = member.config.class_permutation
        order = np.arange(inner.n_classes_) if permutation is None else np.asarray(permutation)
        order_t = torch.as_tensor(order, dtype=torch.long, device=base.device)
        members.append(
            _Member(
                rows=torch.as_tensor(member.transform_X_test(encoded), dtype=dtype, device=base.device),
                labels=order_t[codes].to(dtype),
                class_order=order_t,
                schema=member.feature_schema,
                torch_preprocessor=member.gpu_preprocessor,
                model_index=member.config._model_index,
            )
        )
    return Demonstrations(tuple(members), codes, int(inner.n_classes_), float(inner.softmax_temperature_))


def _encode(inner: TabPFNClassifier, X: Any) -> np.ndarray:
    """Follow TabPFN's predict path up to the ensemble members."""
    check_input_shape_matches(X, estimator=inner)
    X = inner.text_transformer_.transform(inner.date_transformer_.transform(X))
    X = ensure_compatible_predict_input_sklearn(X, inner)
    return clean_data_transform(
        X,
        cat_indices=inner.inferred_feature_schema_.indices_for(FeatureModality.CATEGORICAL),
        ord_encoder=getattr(inner, "ordinal_encoder_", None),
        passthrough_inf=inner.inference_config_.PASSTHROUGH_INF,
    )


def member_logits(
    models: Sequence[nn.Module],
    demonstrations: Demonstrations,
    context: Tensor,
    query: Tensor,
    members: Sequence[int] | None = None,
    *,
    embeddings: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Logits of query rows given context rows.

    Parameters
    ----------
    models : sequence of Module
        The base's networks or private copies of them; gradients flow where they are enabled.
    demonstrations : Demonstrations
        Rows of all members.
    context, query : Tensor of shape (n,), (Q,), int64
        Positions of the demonstrations that play the context and the queries.
    members : sequence of int, optional
        Ensemble members to run, by default all.
    embeddings : bool, default=False
        Also return the query rows' embeddings, of shape (M, Q, E).

    Returns
    -------
    Tensor of shape (M, Q, K)
        Raw logits (before the softmax temperature), classes in the order of ``classes_``.
    """
    chosen = list(range(demonstrations.n_members)) if members is None else list(members)
    logits: dict[int, Tensor] = {}
    embedded: dict[int, Tensor] = {}
    rows = torch.cat([context, query])
    for group in _groups(models, demonstrations, chosen):
        prepared = [_member_input(demonstrations.members[m], rows, len(context)) for m in group]
        if len({tuple(x.shape) for x, _ in prepared}) > 1:
            batches = [([m], [item]) for m, item in zip(group, prepared, strict=True)]
        else:
            batches = [(group, prepared)]
        for positions, items in batches:
            model = models[demonstrations.members[positions[0]].model_index]
            x = torch.cat([x for x, _ in items], dim=1)
            y = torch.stack([demonstrations.members[m].labels[context] for m in positions], dim=1)
            output = model(
                x,
                y if len(positions) > 1 else y[:, 0],
                only_return_standard_out=not embeddings,
                categorical_inds=[categorical for _, categorical in items],
                performance_options=_gradient_options(model),
                **({"task_type": "multiclass"} if _takes_task_type(model) else {}),
            )
            standard = output["standard"] if embeddings else output
            for position, m in enumerate(positions):
                logits[m] = standard[:, position].float()[:, demonstrations.members[m].class_order]
                if embeddings:
                    embedded[m] = output["test_embeddings"][:, position].float()
    stacked = torch.stack([logits[m] for m in chosen])
    if embeddings:
        return stacked, torch.stack([embedded[m] for m in chosen])
    return stacked


def predict_with_embeddings(inner: TabPFNClassifier, X: Any) -> tuple[Tensor, Tensor]:
    """Raw logits and embeddings of rows to predict, from a fitted TabPFN.

    Parameters
    ----------
    inner : TabPFNClassifier
        Fitted, in any fit mode that predicts plain rows.
    X : array-like of shape (Q, n_features)
        Rows as the user gave them.

    Returns
    -------
    logits : Tensor of shape (M, Q, K)
        Raw logits (before the softmax temperature), classes in the order of ``classes_``.
    embeddings : Tensor of shape (M, Q, E)
        The rows' embeddings given the context.
    """
    if inner.fit_mode == "fit_preprocessors":
        inner.executor_.use_torch_inference_mode(use_inference=True)
    outputs = inner.executor_.iter_outputs(
        _encode(inner, X), autocast=inner.use_autocast_, task_type="multiclass", only_return_standard_out=False
    )
    logits, embeddings = [], []
    for output, config in outputs:
        standard, embedded = (_without_batch(output[name]).float() for name in ("standard", "test_embeddings"))
        order = np.arange(inner.n_classes_) if config.class_permutation is None else config.class_permutation
        logits.append(standard[:, torch.as_tensor(np.asarray(order), device=standard.device)])
        embeddings.append(embedded)
    return torch.stack(logits), torch.stack(embeddings)


def _without_batch(output: Tensor) -> Tensor:
    return output.squeeze(1) if output.ndim == 3 else output


def probabilities(inner: TabPFNClassifier, logits: Tensor) -> np.ndarray:
    """Turn raw logits into class probabilities as a fitted TabPFN does.

    Parameters
    ----------
    inner : TabPFNClassifier
        Fitted; its temperature, averaging, balancing, tuned thresholds and rounding apply.
    logits : Tensor of shape (M, Q, K)
        Raw logits of all members, classes in the order of ``classes_``.

    Returns
    -------
    ndarray of shape (Q, K)
    """
    found = inner._maybe_reweight_probas(inner.logits_to_probabilities(logits).float().cpu().numpy())
    if inner.inference_config_.USE_SKLEARN_16_DECIMAL_PRECISION:
        found = np.around(found, decimals=SKLEARN_16_DECIMAL_PRECISION)
        found = np.where(found < PROBABILITY_EPSILON_ROUND_ZERO, 0.0, found)
    return found / found.sum(axis=1, keepdims=True)


def _groups(models: Sequence[Any], demonstrations: Demonstrations, chosen: list[int]) -> list[list[int]]:
    """Members that may share a forward pass: same network, same shape, on a network that batches members."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for m in chosen:
        member = demonstrations.members[m]
        batches = models[member.model_index].estimator_batch_budget.rows > 0
        key = (member.model_index, tuple(member.rows.shape)) if batches else ("alone", m)
        groups.setdefault(key, []).append(m)
    return list(groups.values())


def _member_input(member: _Member, rows: Tensor, n_context: int) -> tuple[Tensor, list[int]]:
    x = member.rows[rows].unsqueeze(1)
    schema = member.schema
    if member.torch_preprocessor is not None:
        result = member.torch_preprocessor(x, feature_schema=schema, num_train_rows=n_context, use_fitted_cache=False)
        x, schema = result.x.to(member.rows.dtype), result.feature_schema
    return x, schema.indices_for(FeatureModality.CATEGORICAL)


def _gradient_options(model: Any) -> Any:
    """The whole table in one pass: chunked inference would only add overhead at TTT's sizes."""
    return dataclasses.replace(model.get_default_performance_options(), use_chunkwise_inference=False)


def _takes_task_type(model: Any) -> bool:
    return "task_type" in model.forward.__code__.co_varnames
