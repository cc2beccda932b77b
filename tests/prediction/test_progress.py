"""One bar over the whole of a first prediction: it moves on, tells the time left, and leaves nothing behind."""

import pytest

from tttabpfn.prediction import progress
from tttabpfn.prediction.progress import AdaptationProgress, StagedBar, current_bar

from ..helpers import gradient_settings


def test_a_bar_never_says_that_a_stage_is_over_before_it_is(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    with StagedBar({"one": 1.0, "two": 3.0}, disable=True) as bar:
        seen = [bar.done]
        for clock[0] in (1.0, 5.0, 100.0):
            seen.append(bar.done)
        assert seen == sorted(seen)
        assert seen[0] == 0 < seen[-1] < 0.25
        bar.begin("two")
        assert bar.done == 0.25
        bar.tell(0.5)
        clock[0] = 1000.0
        assert bar.done == 0.625
        bar.tell(0.5, until=0.7)
        clock[0] = 1e6
        assert 0.77 < bar.done < 0.775
    assert current_bar() is None


def test_what_an_adaptation_tells_only_goes_on():
    settings = gradient_settings(step_size=None, n_steps=32)
    sizes = settings.candidate_step_sizes
    with StagedBar(progress.COSTS, disable=True) as bar:
        tell = AdaptationProgress(bar, settings)
        tell("memory", 0, 0)
        seen = [bar.done]
        for size in sizes:
            for step in range(1, 9):
                tell(f"step size {size:g}", step, 32)
                seen.append(bar.done)
        for step in range(9, 33):
            tell("adapting", step, 32)
            seen.append(bar.done)
        tell.begin("predicting")
        seen.append(bar.done)
    assert seen == sorted(seen)
    assert seen[-1] > 0.9


# Seen to fail: with a bar of the gradient steps alone, at 100 % before the memory was read and the context run.
@pytest.mark.parametrize("adaptation", ["gradient", "memory", "both"])
def test_the_class_shows_every_stage_once_and_cleans_up(classifier, table, capsys, adaptation):
    X, y, X_new, _ = table
    fitted = classifier(verbose=1, adaptation=adaptation, guard=True, step_size="auto").fit(X, y)
    fitted.predict_proba(X_new)
    errors = capsys.readouterr().err
    assert "preparing" in errors
    assert ("memory" in errors) == (adaptation != "gradient")
    assert "predicting" in errors
    assert "left" in errors
    assert errors.rpartition("\r")[2].strip() == ""
    fitted.predict_proba(X_new)
    fitted.adaptation_report()
    assert capsys.readouterr().err == ""


def test_no_thread_stays(classifier, table):
    import threading

    X, y, X_new, _ = table
    classifier(verbose=1).fit(X, y).predict_proba(X_new)
    assert "tttabpfn-bar" not in {thread.name for thread in threading.enumerate()}
