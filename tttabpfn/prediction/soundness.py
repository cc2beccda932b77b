"""Whether a cache entry is one that an adaptation could have left: header, names, shapes, and that they agree.

A checksum finds damage; this finds entries that are whole and yet not what the key says, such as those of another
program or with a part missing. What the numbers are is trusted, as a checkpoint's are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch

from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.adaptation import Settings
from tttabpfn.adaptation.outcome import (
    adapted_by_gradient,
    gradient_share,
    has_memory,
    memory_of,
    memory_tensors_of,
    network_weights,
    share_tensors,
    shares_in_words,
)
from tttabpfn.cache.entry import CacheEntry
from tttabpfn.memory.soundness import shape_of
from tttabpfn.report import AdaptationReport, PartReport


def is_sound(
    entry: CacheEntry, settings: Settings, base: adapter.Base, *, n_classes: int, n_rows: int, n_context: int
) -> bool:
    """Whether an entry can be the adaptation that is asked for.

    Parameters
    ----------
    entry : CacheEntry
        From a file, a pickle or another program.
    settings : Settings
        What the adaptation was asked to do.
    base : Base
        What it adapted.
    n_classes, n_rows, n_context : int
        Classes, demonstrations, and those kept as context.

    Returns
    -------
    bool
        False for a missing or unknown field or tensor, another shape or dtype, a number that is not finite, or a
        report that does not go with the tensors.
    """
    # A foreign entry can fail anywhere below, each time in another way; all of them mean that it is none of ours.
    try:
        report = _report_of(entry)
        return (
            report is not None
            and (report.n_demonstrations, report.context_size) == (n_rows, n_context)
            and _goes_with(report, entry, settings)
            and _networks_are_sound(entry, settings, base)
            and _memory_is_sound(entry, n_classes)
        )
    except Exception:
        return False


def _report_of(entry: CacheEntry) -> AdaptationReport | None:
    """The report in an entry's header; None if a field is missing, unknown or of another type."""
    header = entry.header
    if set(header) != {"report", "creator"} or not isinstance(header["creator"], str):
        return None
    values = header["report"]
    return AdaptationReport.from_dict(values) if _has_fields(values, AdaptationReport) else None


def _goes_with(report: AdaptationReport, entry: CacheEntry, settings: Settings) -> bool:
    tensors = entry.tensors
    asked = "none" if settings.is_frozen else settings.adaptation
    if (report.adaptation, report.update_rule) != (asked, settings.update_rule):
        return False
    if report.accepted != bool(tensors) or (report.accepted and report.fast_weight_bytes != entry.nbytes):
        return False
    by_gradient, by_memory = adapted_by_gradient(tensors), has_memory(tensors)
    if (by_gradient and asked == "memory") or (by_memory and asked == "gradient") or (tensors and asked == "none"):
        return False
    known = set(memory_tensors_of(tensors, prefixed=True))
    known |= {name for name in tensors if name.partition(":")[0].isdigit()}
    if by_gradient and by_memory:
        known |= set(share_tensors(0.0))
    return set(tensors) == known and _shares_are_told(report, entry)


def _shares_are_told(report: AdaptationReport, entry: CacheEntry) -> bool:
    """Whether the report tells the very shares that the tensors predict with."""
    memory = memory_of(entry.tensors)
    if memory is None:
        return not report.shares
    share = gradient_share(entry.tensors) if adapted_by_gradient(entry.tensors) else None
    told = shares_in_words(memory, share)
    if share is not None and not 0.0 <= share <= 1.0:
        return False
    return told.keys() == report.shares.keys() and all(
        math.isclose(told[name], report.shares[name], abs_tol=1e-9) for name in told
    )


def _networks_are_sound(entry: CacheEntry, settings: Settings, base: adapter.Base) -> bool:
    if not adapted_by_gradient(entry.tensors):
        return True
    for model, weights in zip(base.models, network_weights(entry.tensors, len(base.models)), strict=True):
        own = dict(model.named_parameters())
        if set(weights) != set(adapter.select_names(adapter.adaptable_names(model), settings.fast_weights)):
            return False
        for name, value in weights.items():
            if value.shape != own[name].shape or value.dtype != own[name].dtype or not torch.isfinite(value).all():
                return False
    return True


def _memory_is_sound(entry: CacheEntry, n_classes: int) -> bool:
    if has_memory(entry.tensors):
        shape_of(memory_tensors_of(entry.tensors), n_classes)
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _list_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(holds, value))


def _is_named_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) and _is_number(one) for name, one in value.items())


def _has_fields(values: Any, kind: Any) -> bool:
    """Whether values by name are those of a dataclass, none missing, unknown or of another type."""
    fields = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    return (
        isinstance(values, dict)
        and set(values) == set(fields)
        and all(_TYPES[annotation](values[name]) for name, annotation in fields.items())
    )


_TYPES: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "int": _is_count,
    "float": lambda value: _is_number(value) and math.isfinite(value),
    "float | None": lambda value: value is None or _is_number(value),
    "tuple[float, ...]": _list_of(_is_number),
    "tuple[int, ...]": _list_of(_is_count),
    "tuple[str, ...]": _list_of(lambda value: isinstance(value, str)),
    "dict[float, float]": lambda value: _is_named_numbers(value) and all(math.isfinite(float(name)) for name in value),
    "dict[str, float]": _is_named_numbers,
    "tuple[PartReport, ...]": _list_of(lambda value: _has_fields(value, PartReport)),
}
"""By a report's field's type: whether a value that went through JSON can be one."""
