"""Test-time training for TabPFN, with chunked and cached fast weights."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tttabpfn.cache.shared import FastWeightCache
    from tttabpfn.checkpoints import bundled_model_path
    from tttabpfn.classifier import TTTTabPFNClassifier
    from tttabpfn.display import AdaptationDisplay
    from tttabpfn.report import AdaptationReport

__version__ = version("tttabpfn")

_HOMES = {
    "AdaptationDisplay": "tttabpfn.display",
    "AdaptationReport": "tttabpfn.report",
    "FastWeightCache": "tttabpfn.cache.shared",
    "TTTTabPFNClassifier": "tttabpfn.classifier",
    "bundled_model_path": "tttabpfn.checkpoints",
}

__all__ = [
    "AdaptationDisplay",
    "AdaptationReport",
    "FastWeightCache",
    "TTTTabPFNClassifier",
    "bundled_model_path",
]


def __getattr__(name: str) -> Any:
    # Names load on first use, so that importing the package costs nothing beyond what is used of it.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
