"""The TTT algorithm: demonstrations in, fast weights and a report out."""

from tttabpfn.adaptation.adapt import adapt
from tttabpfn.adaptation.fast_model import predicting_models
from tttabpfn.adaptation.outcome import Adaptation
from tttabpfn.adaptation.session import Session
from tttabpfn.adaptation.settings import DEFAULT_STEP_SIZES, Recipe, Settings

__all__ = [
    "DEFAULT_STEP_SIZES",
    "Adaptation",
    "Recipe",
    "Session",
    "Settings",
    "adapt",
    "predicting_models",
]
