"""More classes than a base was trained on: classes share labels, by another code for every ensemble member.

A network tells classes apart by ten labels, say. Widened, it sees class ``c`` as label ``c mod 10``. TabPFN shuffles
the classes of every ensemble member in another way, so each member puts other classes together: an error-correcting
code, which the mean of the members' logits decodes. A forward pass costs what it cost with ten classes.

A network of TabPFN v3 and later reads its prediction from the context rows that a query attends to, whatever their
number of classes: of the label it needs the embedding alone, and within a group of classes the attention decides. One
of an earlier generation has one output a label: classes of a group get equal shares of it, and other members decide.
"""

from __future__ import annotations

import copy
import dataclasses
from functools import cache
from typing import Any

import torch
from tabpfn import TabPFNClassifier
from tabpfn.architectures import tabpfn_v3, tabpfn_v3_5
from torch import Tensor, nn

from tttabpfn.cache.fingerprint import fingerprint
from tttabpfn.tabpfn_adapter.base import Base, load_base, widened_once

TEMPERATURE = 0.5
"""Factor on the softmax temperature: the mean of the members' logits is flatter than their sum, which codes ask for.
Chosen among .25, .35, .5 and 1 on `letterrecognition`, `texture` and `movement_libras`."""
_Decoders = tabpfn_v3.ManyClassDecoder | tabpfn_v3_5.ManyClassDecoder


def code_note(n_classes: int, declared: dict[str, Any]) -> str:
    """What the report says of more classes than the base was trained on; empty if there are no more."""
    limit = declared.get("MAX_NUMBER_OF_CLASSES")
    if limit is None or n_classes <= limit:
        return ""
    return f"{n_classes} classes share the base's {limit} labels, by another code for each ensemble member"


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
        Shared, as that of `load_base`. Widened, it shares every tensor but label embeddings with the base.
    """
    base = load_base(estimator)
    if n_classes <= min(base.inference_config.MAX_NUMBER_OF_CLASSES, *map(_max_labels, base.models)):
        return base
    return widened_once(
        base, n_classes, lambda: _widened(base, n_classes, keeps_temperature=_own_temperature(estimator))
    )


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
    """A network that shares its tensors with `model` and takes any labels below `n_classes`."""
    n_labels = _max_labels(model)
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin: Any = copy.deepcopy(model, shared)
    if _decoder(model) is None:
        twin.__class__ = _grouping(model.__class__)
        twin.label_of_class = torch.arange(n_classes) % n_labels
        return twin
    for encoder in (twin.col_y_encoder, twin.icl_y_encoder):
        chosen: Any = encoder["multiclass"] if isinstance(encoder, nn.ModuleDict) else encoder
        embedding = chosen.embedding
        known = embedding.weight.detach()
        rows = known[torch.arange(n_classes, device=known.device) % n_labels].clone()
        embedding.weight = nn.Parameter(rows, requires_grad=embedding.weight.requires_grad)
        embedding.num_embeddings = n_classes
    for module in (twin, _decoder(twin)):
        for name in ("max_num_classes", "n_out"):
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, n_classes)
    return twin


def _decoder(model: Any) -> Any:
    """The part of a network that reads a prediction from context rows; None if it has none."""
    return next((module for module in model.modules() if isinstance(module, _Decoders)), None)


def _max_labels(model: Any) -> int:
    """Labels that a network knows."""
    decoder = _decoder(model)
    return int(model.n_out if decoder is None else decoder.max_num_classes)


@cache
def _grouping(network: Any) -> Any:
    """A class of networks that see classes as their groups' labels, and share a group's output among its classes."""

    class Grouping(network):
        label_of_class: Tensor

        def forward(self, x: Any, y: Any, *, task_type: str | None = None, **options: Any) -> Any:
            n_labels = int(self.label_of_class.max()) + 1
            labels = {name: value % n_labels for name, value in y.items()} if isinstance(y, dict) else y % n_labels
            output = super().forward(x, labels, task_type=task_type, **options)
            return self._shared_out(output)

        def _shared_out(self, output: Any) -> Any:
            if isinstance(output, tuple):  # with the keys and values of the context
                return self._shared_out(output[0]), *output[1:]
            if isinstance(output, dict):
                return {**output, "standard": self._shared_out(output["standard"])}
            labels = self.label_of_class.to(output.device)
            return output[..., labels] - torch.bincount(labels).to(output).log()[labels]

    return Grouping
