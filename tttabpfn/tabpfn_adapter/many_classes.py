"""More classes than a base was trained on: classes share label embeddings, by another code for every ensemble member.

A network of the newer generations (v3 and later) tells a class's rows by a label embedding, one of ten say, but reads
its prediction from the context rows that a query attends to, whatever their number of classes. Widened, it gives class
``c`` the embedding ``c mod 10``. TabPFN shuffles the classes of every ensemble member in another way, so each member
puts other classes together: an error-correcting code. Within a group the attention alone decides; between the members
the mean of their logits does. A forward pass costs what it cost with ten classes.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tabpfn import TabPFNClassifier
from tabpfn.architectures import tabpfn_v3, tabpfn_v3_5
from tabpfn.base import ModelSpecs
from torch import nn

from tttabpfn.cache.fingerprint import fingerprint
from tttabpfn.tabpfn_adapter.base import Base, load_base
from tttabpfn.tabpfn_adapter.estimator import checkpoint_paths

TEMPERATURE = 0.5
"""Factor on the softmax temperature: the mean of the members' logits is flatter than their sum, which codes ask for.
Chosen among .25, .35, .5 and 1 on `letterrecognition`, `texture` and `movement_libras`."""
_RETRIEVING = {"tabpfn_v3", "tabpfn_v3_5"}
_Decoders = tabpfn_v3.ManyClassDecoder | tabpfn_v3_5.ManyClassDecoder


def max_classes(estimator: TabPFNClassifier, declared: dict[str, Any]) -> int | None:
    """Classes that an estimator's base can tell apart, codes included; None: any number, or not known before it loads.

    Parameters
    ----------
    estimator : TabPFNClassifier
        Unfitted; nothing of it is loaded.
    declared : dict
        What `declared_limits` returned.

    Returns
    -------
    int or None
    """
    limit = declared.get("MAX_NUMBER_OF_CLASSES")
    return None if limit is None or all(_retrieving(estimator)) else int(limit)


def code_note(n_classes: int, declared: dict[str, Any]) -> str:
    """What the report says of more classes than the base was trained on; empty if there are no more."""
    limit = declared.get("MAX_NUMBER_OF_CLASSES")
    if limit is None or n_classes <= limit:
        return ""
    return f"{n_classes} classes share the base's {limit} label embeddings, by another code for each ensemble member"


def _retrieving(estimator: TabPFNClassifier) -> list[bool]:
    """For every network of an estimator, whether it reads its prediction from context rows."""
    given = estimator.model_path if isinstance(estimator.model_path, list) else [estimator.model_path]
    in_memory = [_decoder(specs.model) is not None for specs in given if isinstance(specs, ModelSpecs)]
    return in_memory or [_architecture(path) in _RETRIEVING for path in checkpoint_paths(estimator)]


def _architecture(path: Any) -> str:
    """Architecture that a checkpoint's header names; empty where there is none to read."""
    if path.suffix != ".safetensors" or not path.exists():
        return ""
    try:
        with safe_open(str(path), framework="pt") as file:
            return str(json.loads((file.metadata() or {}).get("architecture_name", '""')))
    except (SafetensorError, ValueError, OSError):
        return ""


def load_base_for(estimator: TabPFNClassifier, n_classes: int) -> Base:
    """An estimator's base for a number of classes: as it is if it takes them, else widened.

    Parameters
    ----------
    estimator : TabPFNClassifier
        Unfitted; not changed.
    n_classes : int
        Classes to tell apart.

    Returns
    -------
    Base
        Shared, as that of `load_base`. Widened, it shares every tensor but the label embeddings with the base.

    Raises
    ------
    ValueError
        If a network can not be widened.
    """
    base = load_base(estimator)
    own = [int(getattr(_decoder(model) or model, "max_num_classes", n_classes)) for model in base.models]
    if n_classes <= min(base.inference_config.MAX_NUMBER_OF_CLASSES, *own):
        return base
    with base.lock:
        if n_classes not in base.widened:
            base.widened[n_classes] = _widened(base, n_classes, keeps_temperature=_own_temperature(estimator))
        return base.widened[n_classes]


def _own_temperature(estimator: TabPFNClassifier) -> bool:
    return estimator.softmax_temperature != "auto"


def _widened(base: Base, n_classes: int, *, keeps_temperature: bool) -> Base:
    config = base.inference_config
    factor = 1.0 if keeps_temperature else TEMPERATURE
    return dataclasses.replace(
        base,
        models=tuple(_widened_network(model, n_classes) for model in base.models),
        inference_config=dataclasses.replace(
            config,
            MAX_NUMBER_OF_CLASSES=n_classes,
            # Rotated, the same classes would meet in every member; unshuffled, all members would be the same code.
            CLASS_SHIFT_METHOD="shuffle",
            SOFTMAX_TEMPERATURE=config.SOFTMAX_TEMPERATURE * factor,
        ),
        content=fingerprint("widened", base.content, n_classes, factor),
        averages_logits=True,
        widened={},
    )


def _widened_network(model: Any, n_classes: int) -> nn.Module:
    """A network that shares all tensors with `model` but its label embeddings, whose rows repeat."""
    decoder = _decoder(model)
    if decoder is None:
        raise ValueError(
            f"y holds {n_classes} classes, but the base model ({type(model).__module__.rpartition('.')[2]}) can tell "
            "fewer apart and does not read its prediction from context rows, so that it cannot be widened; use a base "
            "of TabPFN v3 or later, or wrap the estimator in sklearn.multiclass.OneVsRestClassifier."
        )
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin: Any = copy.deepcopy(model, shared)
    for encoder in (twin.col_y_encoder, twin.icl_y_encoder):
        embedding = (encoder["multiclass"] if isinstance(encoder, nn.ModuleDict) else encoder).embedding
        known = embedding.weight.detach()
        rows = known[torch.arange(n_classes, device=known.device) % len(known)].clone()
        embedding.weight = nn.Parameter(rows, requires_grad=embedding.weight.requires_grad)
        embedding.num_embeddings = n_classes
    for module in (twin, _decoder(twin)):
        for name in ("max_num_classes", "n_out"):
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, n_classes)
    return twin


def _decoder(model: Any) -> nn.Module | None:
    return next((module for module in model.modules() if isinstance(module, _Decoders)), None)
