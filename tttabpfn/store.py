"""Adaptations as cache entries: keys that cover all a result depends on, and the way in and out."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from safetensors.torch import load, save
from tabpfn import TabPFNClassifier

from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.adaptation import Adaptation, Settings, adapted_by_gradient
from tttabpfn.fast_weights.cache import CacheEntry
from tttabpfn.fast_weights.fingerprint import fingerprint
from tttabpfn.report import AdaptationReport

_ALGORITHM = 6  # raise it whenever the same inputs would give other fast weights


def _versions() -> tuple[str, ...]:
    packages = ("tttabpfn", "tabpfn", "torch", "scikit-learn", "numpy", "pandas")
    return tuple(f"{package}=={version(package)}" for package in packages)


def _estimator_print(estimator: TabPFNClassifier) -> str:
    """What of the wrapped estimator shapes its predictions; the weights are covered by the base's content."""
    parameters = {
        name: repr(value) for name, value in estimator.get_params(deep=False).items() if name not in _NOT_IN_KEY
    }
    return fingerprint(parameters)


_NOT_IN_KEY = ("model_path", "show_progress_bar", "n_preprocessing_jobs", "n_jobs")


def entry_key(base: adapter.Base, estimator: TabPFNClassifier, settings: Settings, data: str) -> str:
    """Key of an adaptation.

    Parameters
    ----------
    base : Base
        Its weights' content is part of the key.
    estimator : TabPFNClassifier
        So are its parameters.
    settings : Settings
        Every parameter, the seed, the recipe.
    data : str
        Fingerprint of demonstrations, labels and context.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    return fingerprint(_ALGORITHM, _versions(), base.content, _estimator_print(estimator), settings, data)


def session_key(estimator: TabPFNClassifier, settings: Settings, data: str) -> str:
    """Key of what all step sizes and update rules share: preprocessing, split, frozen scores.

    Parameters
    ----------
    estimator : TabPFNClassifier
        The wrapped classifier.
    settings : Settings
        Only the seed, what is held back and how many members adapt matter.
    data : str
        Fingerprint of demonstrations, labels and context.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    recipe = settings.recipe
    shared = (settings.seed, recipe.held_back_share, recipe.max_held_back, recipe.most_members)
    base = adapter.load_base(estimator)
    return fingerprint("session", base.content, _estimator_print(estimator), shared, data)


def predictor_key(entry: CacheEntry, key: str, session: str, settings: Settings) -> str:
    """Key of what predicts after an adaptation: candidates of a search that end in the same model share it.

    Parameters
    ----------
    entry : CacheEntry
        The adaptation.
    key, session : str
        Its key, and that of its session.
    settings : Settings
        What was asked for.

    Returns
    -------
    str
        The session's key if the frozen model predicts, whatever step size was refused; one without the step size if
        just a memory was accepted that does not depend on it; else the entry's own.
    """
    if settings.is_frozen or adapted_by_gradient(entry.tensors):
        return key
    if not entry.tensors:
        return session
    return (
        fingerprint("predictor", session, replace(settings, step_size=None)) if settings.adaptation == "both" else key
    )


def to_entry(adaptation: Adaptation, creator: str) -> CacheEntry:
    """Turn an adaptation into what the cache keeps.

    Parameters
    ----------
    adaptation : Adaptation
        Fast weights and report.
    creator : str
        Token of the fit that caused it, to tell hits from misses.

    Returns
    -------
    CacheEntry
        With a JSON-ready header.
    """
    return CacheEntry(adaptation.tensors, {"report": adaptation.report.to_dict(), "creator": creator})


def frozen_entry(settings: Settings, context_size: int, n_demonstrations: int, creator: str) -> CacheEntry:
    """Entry of an estimator that was told not to adapt.

    Parameters
    ----------
    settings : Settings
        With no steps, or steps of size 0.
    context_size, n_demonstrations : int
        Rows.
    creator : str
        Token of the fit.

    Returns
    -------
    CacheEntry
        Without tensors.
    """
    reason = "n_steps is 0" if settings.n_steps == 0 else "step_size is 0"
    report = AdaptationReport(
        adaptation="none",
        accepted=False,
        reason=f"{reason}: the frozen model predicts",
        update_rule=settings.update_rule,
        context_size=context_size,
        n_demonstrations=n_demonstrations,
    )
    return to_entry(Adaptation({}, report), creator)


def report_of(entry: CacheEntry, reader: str) -> AdaptationReport:
    """Report of an entry as one reader sees it.

    Parameters
    ----------
    entry : CacheEntry
        From the cache.
    reader : str
        Token of the fit, or of the unpickled copy, that asks; it met a hit if another one made the entry.

    Returns
    -------
    AdaptationReport
        With `cache_hit` set.
    """
    report = AdaptationReport.from_dict(entry.header["report"])
    return replace(report, cache_hit=entry.header["creator"] != reader)


def pack(key: str, entry: CacheEntry) -> bytes:
    """Serialise an entry as safetensors bytes, for pickled estimators.

    Parameters
    ----------
    key : str
        Cache key.
    entry : CacheEntry
        Its entry.

    Returns
    -------
    bytes
        With a JSON header.
    """
    return save(dict(entry.tensors), metadata={"key": key, "header": json.dumps(entry.header)})


def unpack(packed: bytes) -> tuple[str, CacheEntry]:
    """Read what `pack` wrote.

    Parameters
    ----------
    packed : bytes
        Safetensors bytes.

    Returns
    -------
    key : str
    entry : CacheEntry
    """
    length = int.from_bytes(packed[:8], "little")
    metadata: dict[str, Any] = json.loads(packed[8 : 8 + length])["__metadata__"]
    return metadata["key"], CacheEntry(load(packed), json.loads(metadata["header"]))
