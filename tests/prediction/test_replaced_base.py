"""A checkpoint replaced behind an estimator's back: what a key says is what was loaded, and new files are seen."""

import os
import shutil
import threading

import numpy as np
import pytest
from tabpfn import TabPFNClassifier

from tttabpfn import FastWeightCache
from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.adaptation.gradient import GradientAdaptation
from tttabpfn.tabpfn_adapter import base as bases

from ..helpers import key_of
from ..tiny_models import save_tiny_checkpoint


@pytest.fixture
def checkpoints(tmp_path):
    """Two checkpoints of one architecture, of the same size and modification time, and the path that is used."""
    found = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        found.append(save_tiny_checkpoint("v3", folder, seed=seed))
        os.utime(found[-1], ns=(10**18, 10**18))
    assert found[0].stat().st_size == found[1].stat().st_size
    (tmp_path / "used").mkdir()
    # TabPFN's limits go by a checkpoint's name too.
    return *found, tmp_path / "used" / found[0].name


def put_in_place(source, path):
    """Replace a file by a copy of another one, with its times."""
    shutil.copy2(source, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def overwrite(source, path):
    """Write another file's content into a file, and set its times."""
    with open(path, "r+b") as stream:
        stream.write(source.read_bytes())
    shutil.copystat(source, path)


def answers(classifier, path, table, cache, **parameters):
    estimator = TabPFNClassifier(model_path=str(path), n_estimators=2, device="cpu", random_state=0)
    fitted = classifier(estimator=estimator, cache=cache, **parameters).fit(table[0], table[1])
    return fitted, fitted.predict_proba(table[2])


# Seen to fail: with modification time and size alone in `_file_state`; without `cache_clear` in `_load`.
@pytest.mark.parametrize("replace", [put_in_place, overwrite])
@pytest.mark.parametrize("parameters", [{}, {"n_steps": 0}], ids=["adapted", "frozen"])
def test_a_replaced_base_of_the_same_size_and_time_is_seen(classifier, table, checkpoints, replace, parameters):
    first, second, used = checkpoints
    wanted = [answers(classifier, path, table, FastWeightCache(), **parameters)[1] for path in (first, second)]
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-3
    shutil.copy2(first, used)
    cache = FastWeightCache()
    np.testing.assert_array_equal(answers(classifier, used, table, cache, **parameters)[1], wanted[0])
    for source, answer in ((second, wanted[1]), (first, wanted[0])):
        replace(source, used)
        np.testing.assert_array_equal(answers(classifier, used, table, cache, **parameters)[1], answer)


# Seen to fail: with `load_base` in `Session` in place of the lookup's base: kept under the first base's key, the second
# base's answer is off by .09.
@pytest.mark.parametrize("adaptation", ["gradient", "memory", "both"])
def test_a_base_replaced_while_an_adaptation_runs_is_not_kept_under_the_old_key(
    classifier, table, checkpoints, adaptation, monkeypatch, tmp_path
):
    first, second, used = checkpoints
    wanted = answers(classifier, first, table, FastWeightCache(), adaptation=adaptation)[1]
    shutil.copy2(first, used)
    real = adapter.load_base

    def load_then_replace(estimator):
        found = real(estimator)
        put_in_place(second, used)
        os.utime(used)
        return found

    cache = FastWeightCache(tmp_path / "cache")
    with monkeypatch.context() as patched:
        patched.setattr(adapter, "load_base", load_then_replace)
        fitted, found = answers(classifier, used, table, cache, adaptation=adaptation)
    np.testing.assert_array_equal(found, wanted)
    put_in_place(first, used)
    np.testing.assert_array_equal(fitted.predict_proba(table[2]), wanted)
    other = FastWeightCache(tmp_path / "cache")
    again, found = answers(classifier, first, table, other, adaptation=adaptation)
    np.testing.assert_array_equal(found, wanted)
    assert again.adaptation_report().cache_hit


# Seen to fail: with `load_base` in `build_predictor`: the first base's fast weights predict in the second base.
def test_a_thread_that_replaces_the_base_meanwhile_changes_no_answer(classifier, table, checkpoints, monkeypatch):
    first, second, used = checkpoints
    wanted = answers(classifier, first, table, FastWeightCache())[1]
    shutil.copy2(first, used)
    adapting, replaced = threading.Event(), threading.Event()
    real = GradientAdaptation.run

    def run(self):
        adapting.set()
        assert replaced.wait(30)
        return real(self)

    monkeypatch.setattr(GradientAdaptation, "run", run)

    def replace():
        assert adapting.wait(30)
        put_in_place(second, used)
        os.utime(used)
        replaced.set()

    thread = threading.Thread(target=replace)
    thread.start()
    found = answers(classifier, used, table, FastWeightCache())[1]
    thread.join(30)
    np.testing.assert_array_equal(found, wanted)


# Seen to fail: without the comparison after `_load`, the second base stands under the first file's state.
@pytest.mark.parametrize("times", [1, 10])
def test_a_base_replaced_while_it_loads_is_loaded_again(tiny_tabpfn, checkpoints, monkeypatch, times):
    first, second, used = checkpoints
    contents = [
        adapter.load_base(TabPFNClassifier(model_path=str(path), device="cpu")).content for path in (first, second)
    ]
    shutil.copy2(first, used)
    real, loads = bases._load, []

    def load(estimator):
        found = real(estimator)
        loads.append(found.content)
        if len(loads) <= times:
            put_in_place((second, first)[(len(loads) + 1) % 2], used)
        return found

    monkeypatch.setattr(bases, "_load", load)
    estimator = TabPFNClassifier(model_path=str(used), device="cpu")
    found = adapter.load_base(estimator)
    assert found.content == loads[-1]
    assert loads == ([contents[0], contents[1]] if times == 1 else [contents[0], contents[1], contents[0]])
    kept = adapter.loaded_base(estimator)
    assert kept is (found if times == 1 else None)


# Seen to fail: with the loop over attempts left out.
def test_a_file_half_written_while_it_loads_is_loaded_again(checkpoints, monkeypatch):
    first, second, used = checkpoints
    shutil.copy2(first, used)
    real, loads = bases._load, []

    def load(estimator):
        loads.append(1)
        if len(loads) == 1:
            used.write_bytes(first.read_bytes()[:1000])
            try:
                return real(estimator)
            finally:
                put_in_place(second, used)
        return real(estimator)

    monkeypatch.setattr(bases, "_load", load)
    estimator = TabPFNClassifier(model_path=str(used), device="cpu")
    assert (
        adapter.load_base(estimator).content
        == adapter.load_base(TabPFNClassifier(model_path=str(second), device="cpu")).content
    )
    used.write_bytes(first.read_bytes()[:1000])
    loads.append(1)
    with pytest.raises(Exception, match=r"."):
        adapter.load_base(estimator)


# Seen to fail: with a loop without bound in `_file_state`.
def test_a_file_that_never_settles_is_not_waited_for(checkpoints, monkeypatch):
    first, _, _ = checkpoints
    monkeypatch.setattr(bases, "_TICK_NS", 10**18)
    monkeypatch.setattr(bases.time, "sleep", lambda seconds: None)
    assert adapter.load_base(TabPFNClassifier(model_path=str(first), device="cpu")).models


def test_the_key_is_that_of_the_content_wherever_it_lies(classifier, table, checkpoints):
    first, second, used = checkpoints
    shutil.copy2(first, used)
    keys = [key_of(answers(classifier, path, table, FastWeightCache())[0]) for path in (first, second, used)]
    assert keys[0] == keys[2] != keys[1]
