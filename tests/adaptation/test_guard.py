"""The guard accepts only a gain that stands out from its noise, and says what it saw."""

import numpy as np
import pytest
from sklearn.metrics import log_loss

from tttabpfn.adaptation.guard import judge, row_losses, weigh

FROZEN = np.random.default_rng(0).uniform(0.3, 1.5, size=200)


# Seen to fail: with the unpaired standard error, which hides a steady gain behind the spread of the rows.
def test_a_small_steady_gain_is_accepted():
    verdict = judge(FROZEN, FROZEN - 0.01, evidence=1.0)
    assert verdict.accepted
    assert verdict.gain == pytest.approx(0.01)
    assert verdict.reason.startswith("better on the held-back rows")


def test_no_gain_and_a_loss_are_refused():
    for change in (0.0, 0.05):
        verdict = judge(FROZEN, FROZEN + change, evidence=1.0)
        assert not verdict.accepted
        assert verdict.reason.startswith("no gain on the held-back rows")


# Seen to fail: with `gain > 0` as the only condition.
def test_a_gain_within_its_noise_is_refused():
    change = np.random.default_rng(1).normal(size=200)
    change += 0.5 * change.std(ddof=1) / np.sqrt(200) - change.mean()
    verdict = judge(FROZEN, FROZEN - change, evidence=1.0)
    assert verdict.gain == pytest.approx(0.5 * verdict.standard_error)
    assert not verdict.accepted
    assert "does not stand out from its noise" in verdict.reason
    assert judge(FROZEN, FROZEN - change, evidence=0.4).accepted


def test_predictions_that_are_not_finite_are_refused():
    adapted = FROZEN - 0.1
    adapted[3] = np.nan
    verdict = judge(FROZEN, adapted, evidence=1.0)
    assert not verdict.accepted
    assert "not finite" in verdict.reason


def test_one_row_is_no_evidence():
    assert not judge(np.array([0.9]), np.array([0.1]), evidence=1.0).accepted


def test_row_losses_average_to_the_log_loss_of_scikit_learn():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), size=40).astype(np.float32)
    probabilities[0] = [1, 0, 0]
    labels = rng.integers(0, 3, size=40)
    labels[:4] = [1, 0, 1, 2]
    assert row_losses(probabilities, labels).mean() == pytest.approx(log_loss(labels, probabilities), rel=1e-5)


# Seen to fail: with any gain counting in full.
def test_a_mixture_counts_by_the_probability_of_its_gain():
    change = np.random.default_rng(1).normal(size=200)
    change -= change.mean()
    error = change.std(ddof=1) / np.sqrt(200)
    for gain, probability in ((-0.5, 0.3085), (0.0, 0.5), (1.0, 0.8413), (5.0, 1.0)):
        verdict, share = weigh(FROZEN, FROZEN - change - gain * error, min_trust=0.2)
        assert verdict.accepted
        assert share == pytest.approx(probability, abs=1e-4)
        assert verdict.reason.startswith(f"counts {share:.0%} of what predicts: log loss")
        assert verdict.gain == pytest.approx(gain * error, abs=1e-12)


def test_a_mixture_below_the_least_trust_does_not_count_at_all():
    change = np.random.default_rng(1).normal(size=200)
    change -= change.mean()
    worse = FROZEN - change + change.std(ddof=1) / np.sqrt(200)
    refused, share = weigh(FROZEN, worse, min_trust=0.2)
    assert (refused.accepted, share) == (False, 0.0)
    assert weigh(FROZEN, worse, min_trust=0.1)[1] == pytest.approx(0.1587, abs=1e-4)


def test_a_mixture_that_is_not_finite_does_not_count():
    mixed = FROZEN - 1.0
    mixed[3] = np.nan
    verdict, share = weigh(FROZEN, mixed, min_trust=0.2)
    assert (verdict.accepted, share) == (False, 0.0)
    assert "not finite" in verdict.reason
