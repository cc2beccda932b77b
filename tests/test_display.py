"""The adaptation plot: every line shows the number that the report holds."""

import dataclasses
import sys

import matplotlib
import numpy as np
import pytest

from tttabpfn.display import AdaptationDisplay
from tttabpfn.report import AdaptationReport

ACCEPTED = AdaptationReport(
    adaptation="gradient",
    accepted=True,
    reason="0.6 is better than 0.7",
    n_steps=4,
    n_held_back=20,
    loss_frozen=0.7,
    loss_adapted=0.6,
    held_back_steps=(0, 2, 4, 6),
    held_back_losses=(0.7, 0.65, 0.6, 0.62),
)
REFUSED = AdaptationReport(
    adaptation="gradient",
    accepted=False,
    reason="no step was better than the frozen model",
    loss_frozen=0.7,
    loss_adapted=0.9,
    held_back_steps=(0, 2),
    held_back_losses=(0.7, 0.9),
)
NOTHING = AdaptationReport(adaptation="none", accepted=False, reason="n_steps is 0")


@pytest.fixture(autouse=True)
def headless(monkeypatch):
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


class Fitted:
    def __init__(self, report):
        self.report = report
        self.asked = 0

    def adaptation_report(self):
        self.asked += 1
        return self.report


# Seen to fail: with the marker at `held_back_steps[-1]` (6) instead of the chosen step, and with the last held-back
# loss in place of the first for the horizontal line.
def test_an_accepted_adaptation_shows_the_curve_the_frozen_loss_and_the_chosen_step():
    estimator = Fitted(ACCEPTED)
    display = AdaptationDisplay.from_estimator(estimator)
    assert estimator.asked == 1
    curve, frozen, chosen = display.lines_
    np.testing.assert_array_equal(curve.get_xydata(), [[0, 0.7], [2, 0.65], [4, 0.6], [6, 0.62]])
    assert list(frozen.get_ydata()) == [0.7, 0.7]
    np.testing.assert_array_equal(chosen.get_xydata(), [[4, 0.6]])
    assert [text.get_text() for text in display.ax_.get_legend().get_texts()] == [
        "Fitted, adapted",
        "Fitted, frozen",
        "chosen: 4 updates",
    ]
    assert display.ax_.get_title() == "Adaptation accepted: 0.7000 to 0.6000"
    assert display.ax_.get_xlabel() == "Updates"
    assert "nats" in display.ax_.get_ylabel()
    assert display.figure_ is display.ax_.figure
    display.figure_.canvas.draw()


# Seen to fail: with `loss_frozen` as the horizontal line, which would not belong to the curve.
def test_a_curve_of_few_members_keeps_its_own_frozen_loss_and_the_title_gives_the_verdict():
    report = dataclasses.replace(ACCEPTED, loss_frozen=0.66, loss_adapted=0.55)
    display = AdaptationDisplay.from_report(report)
    assert list(display.lines_[1].get_ydata()) == [0.7, 0.7]
    assert display.ax_.get_title() == "Adaptation accepted: 0.6600 to 0.5500 with all members"


def test_a_refused_adaptation_says_so_and_marks_the_frozen_model():
    display = AdaptationDisplay.from_report(REFUSED)
    np.testing.assert_array_equal(display.lines_[2].get_xydata(), [[0, 0.7]])
    assert display.ax_.get_title() == "Adaptation refused: the frozen model predicts"


def test_without_any_loss_the_plot_says_why():
    display = AdaptationDisplay.from_report(NOTHING)
    assert display.lines_ == []
    assert [text.get_text() for text in display.ax_.texts] == ["n_steps is 0"]
    assert display.ax_.get_title() == "No adaptation"
    display.figure_.canvas.draw()


def test_it_draws_where_and_as_it_is_told(headless):
    figure, axes = headless.subplots(1, 2)
    display = AdaptationDisplay.from_report(ACCEPTED, ax=axes[1], name="mine", color="black", linewidth=3)
    assert display.ax_ is axes[1]
    assert display.figure_ is figure
    assert not axes[0].lines
    assert (display.lines_[0].get_color(), display.lines_[0].get_linewidth()) == ("black", 3)
    again = display.plot(name="other")
    assert again is display
    assert display.figure_ is not figure
    assert display.lines_[0].get_label() == "other, adapted"
    assert len(headless.get_fignums()) == 2


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    estimator = Fitted(ACCEPTED)
    with pytest.raises(ImportError, match=r"tttabpfn\[plot\]"):
        AdaptationDisplay.from_estimator(estimator)
    assert estimator.asked == 0
