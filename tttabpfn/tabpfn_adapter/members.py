"""Some members of an ensemble in place of all: which, and a classifier that predicts with them alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from tabpfn import TabPFNClassifier
from tabpfn.base import resolved_n_estimators
from tabpfn.preprocessing.ensemble import DEFAULT_N_ESTIMATORS

from tttabpfn.tabpfn_adapter.refitted import can_be_refitted, twin_of


def members_to_adapt(fitted: TabPFNClassifier, most: int) -> list[int]:
    """Members of an ensemble to adapt: all that were asked for, fewer where their number was left open.

    Parameters
    ----------
    fitted : TabPFNClassifier
        Fitted with ``fit_mode="fit_preprocessors"``.
    most : int
        Members where ``n_estimators="auto"`` came to TabPFN's usual number.

    Returns
    -------
    list of int
        Their positions, rising. All of them where a wide table takes more than usual to cover its columns, or where
        temperature and thresholds were tuned on all; else each checkpoint and each preprocessing in turn.
    """
    everyone = list(range(len(fitted.executor_.ensemble_members)))
    left_open = resolved_n_estimators(fitted) == "auto" and len(everyone) == DEFAULT_N_ESTIMATORS
    if not left_open or not can_be_refitted(fitted) or len(fitted.models_) > most:
        return everyone
    kinds: dict[tuple[int, str], list[int]] = {}
    for position, member in enumerate(fitted.executor_.ensemble_members):
        config = member.config
        kinds.setdefault((config._model_index, repr(config.preprocess_config)), []).append(position)
    rounds = max(map(len, kinds.values()))
    by_turns = [kind[turn] for turn in range(rounds) for kind in kinds.values() if turn < len(kind)]
    return sorted(by_turns[:most])


def with_members(fitted: TabPFNClassifier, members: Sequence[int]) -> TabPFNClassifier:
    """A fitted classifier that has some members of another one.

    Parameters
    ----------
    fitted : TabPFNClassifier
        Fitted with ``fit_mode="fit_preprocessors"``; not changed.
    members : sequence of int
        Positions of the members to have.

    Returns
    -------
    TabPFNClassifier
        It shares the fitted preprocessing and the networks.
    """
    twin = twin_of(fitted)
    twin.n_estimators_ = len(members)
    twin.executor_ = copy.copy(fitted.executor_)
    twin.executor_.ensemble_members = [fitted.executor_.ensemble_members[position] for position in members]
    return twin
