"""The TTT algorithm: demonstrations in, fast weights and a report out."""

from tttabpfn.adaptation.outcome import Adaptation
from tttabpfn.adaptation.session import Session, adapted_by_gradient, predicting_models
from tttabpfn.adaptation.settings import DEFAULT_STEP_SIZES, Recipe, Settings

__all__ = [
    "DEFAULT_STEP_SIZES",
    "Adaptation",
    "Recipe",
    "Session",
    "Settings",
    "adapted_by_gradient",
    "predicting_models",
]
