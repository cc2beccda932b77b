"""Adaptations as cache entries: keys that cover all a result depends on, and the way in and out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version

from tabpfn import TabPFNClassifier

from tttabpfn.adaptation import Adaptation, Settings
from tttabpfn.adaptation.outcome import adapted_by_gradient
from tttabpfn.cache.entry import CacheEntry
from tttabpfn.cache.fingerprint import fingerprint
from tttabpfn.report import AdaptationReport

_ALGORITHM = 8  # raise it whenever the same inputs would give other fast weights
_NOT_IN_KEY = ("model_path", "show_progress_bar", "n_preprocessing_jobs", "n_jobs")


@cache
def versions() -> tuple[str, ...]:
    """Packages whose version a result may depend on; read once per process, since reading takes milliseconds."""
    packages = ("tttabpfn", "tabpfn", "torch", "scikit-learn", "numpy", "pandas")
    return tuple(f"{package}=={version(package)}" for package in packages)


def estimator_print(estimator: TabPFNClassifier) -> str:
    """Fingerprint of the parameters that change predictions; the weights are covered by the base's content."""
    parameters = estimator.get_params(deep=False)
    return fingerprint({name: repr(value) for name, value in parameters.items() if name not in _NOT_IN_KEY})


@dataclass(frozen=True)
class Request:
    """Prints of what a fit asks for, made once; with the base's content they give the keys.

    Parameters
    ----------
    adaptation : str
        Of the wrapped estimator's parameters, every setting, and the demonstrations with labels and context.
    session : str
        The same with no more of the settings than all step sizes and update rules share.
    predictor : str
        The same as `adaptation` without the step size.
    """

    adaptation: str
    session: str
    predictor: str

    @classmethod
    def of(cls, estimator: TabPFNClassifier, settings: Settings, data_print: str) -> Request:
        """Make the prints.

        Parameters
        ----------
        estimator : TabPFNClassifier
            The wrapped classifier, its seed settled.
        settings : Settings
            Every parameter, the seed, the recipe.
        data_print : str
            Fingerprint of demonstrations, labels and context.

        Returns
        -------
        Request
        """
        wrapped, recipe = estimator_print(estimator), settings.recipe
        members = (recipe.max_members, recipe.many_rows_members)
        drawn = (recipe.held_back_share, recipe.max_held_back, *members, recipe.memory.max_rows)
        shared = (settings.seed, *drawn)
        return cls(
            adaptation=fingerprint(wrapped, settings, data_print),
            session=fingerprint(wrapped, shared, data_print),
            predictor=fingerprint(wrapped, replace(settings, step_size=None), data_print),
        )

    def keys(self, base_content: str) -> Keys:
        """Keys on a base, given the fingerprint of its weights and settings."""
        made = (
            fingerprint(name, _ALGORITHM, versions(), base_content, asked)
            for name, asked in (
                ("adaptation", self.adaptation),
                ("session", self.session),
                ("predictor", self.predictor),
            )
        )
        return Keys(*made)


@dataclass(frozen=True)
class Keys:
    """Where one call finds what it needs; 64 hexadecimal digits each.

    Parameters
    ----------
    adaptation : str
        Of the entry: fast weights and report.
    session : str
        Of what all step sizes and update rules share: preprocessing, split, frozen scores.
    step_free : str
        Of what predicts with a memory that no step size had a part in.
    """

    adaptation: str
    session: str
    step_free: str

    def predictor(self, entry: CacheEntry, settings: Settings) -> str:
        """Key of what predicts after an adaptation: candidates of a search that end in the same model share it.

        The session's key if the frozen model predicts, whatever step size was refused; one without the step size if
        just a memory was accepted that does not depend on it; else the entry's own.
        """
        if settings.is_frozen or adapted_by_gradient(entry.tensors):
            return self.adaptation
        if not entry.tensors:
            return self.session
        return self.step_free if settings.adaptation == "both" else self.adaptation


def to_entry(adaptation: Adaptation, creator: str) -> CacheEntry:
    """What the cache keeps of an adaptation; the creator's token tells hits from misses."""
    return CacheEntry(adaptation.tensors, {"report": adaptation.report.to_dict(), "creator": creator})


def frozen_entry(settings: Settings, context_size: int, n_demonstrations: int, creator: str) -> CacheEntry:
    """Entry of an estimator that was told not to adapt: zero steps, or steps of size zero."""
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
    """An entry's report as one reader (fit or unpickled copy) sees it: it met a hit if another one made the entry."""
    report = AdaptationReport.from_dict(entry.header["report"])
    return replace(report, cache_hit=entry.header["creator"] != reader)
