"""Folders that cannot be a cache's: a clear error at `fit`, later one warning and the memory; and who may read them."""

import os
import pickle
import stat
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from tttabpfn.cache import shared
from tttabpfn.cache.checks import folder_path
from tttabpfn.cache.file_lock import file_lock
from tttabpfn.cache.shared import CacheEntry, FastWeightCache, serving_cache

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links and rights of POSIX")


def loop(folder):
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop" / "cache"


def touched(folder):
    (folder / "file").touch()
    return folder / "file"


UNUSABLE = {
    "empty": (lambda folder: "", "an empty one"),
    "file": (touched, "file is a file"),
    "within_a_file": (lambda folder: touched(folder) / "a" / "b", "file is a file"),
    "null_byte": (lambda folder: str(folder / "a\0b"), "null byte"),
    "long_name": (lambda folder: folder / ("a" * 300), "[Tt]oo long"),
    "long_name_deep": (lambda folder: folder / "new" / ("a" * 300), "too long"),
    "long_path": (lambda folder: folder.joinpath(*["a" * 200] * 25), "[Tt]oo long"),
    "link_loop": (loop, "[Ll]oop|[Tt]oo many levels of symbolic links"),
    "no_home": (lambda folder: "~nobody-of-this-name/cache", "home"),
    "process": (lambda folder: "/proc/self/status/cache", "status is a file"),
}


@pytest.fixture(params=UNUSABLE.values(), ids=UNUSABLE)
def unusable(request, tmp_path):
    make, problem = request.param
    return make(tmp_path), problem


@pytest.fixture
def fresh_process(monkeypatch):
    """No caches known yet, and no path warned of."""
    monkeypatch.setattr(shared, "_shared", {})
    monkeypatch.setattr(shared, "_warned", set())


# Seen to fail: without `check_cache` in `fit`, the error comes at predict; without the checks in `absolute_path` and
# `folder_problem`, it is a raw one or none.
def test_fit_names_the_parameter_and_makes_nothing(classifier, table, tmp_path, unusable):
    path, problem = unusable
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=rf"(?s)^cache must be a (path to a )?folder, got .*({problem})"):
        classifier(cache=path).fit(table[0], table[1])
    with pytest.raises(ValueError, match=rf"(?s)^directory must be .*({problem})"):
        FastWeightCache(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_fit_looks_at_the_folder_of_a_given_cache_too(classifier, table, tmp_path):
    cache = FastWeightCache(tmp_path / "cache")
    (tmp_path / "cache").touch()
    with pytest.raises(ValueError, match=r"cache must be a folder, got .*cache is a file"):
        classifier(cache=cache).fit(table[0], table[1])


# Seen to fail: with `resolve_cache` in `__setstate__` and `_lookup`.
def test_an_estimator_whose_folder_cannot_be_used_here_loads_with_one_warning(
    classifier, table, unusable, fresh_process
):
    X, y, X_new, _ = table
    fitted = classifier(cache=None).fit(X, y)
    wanted = fitted.predict_proba(X_new)
    data = pickle.dumps(fitted)
    state = fitted.__getstate__()
    shared._shared.clear()
    state["cache"] = str(unusable[0])
    loaded = type(fitted)()
    with pytest.warns(RuntimeWarning, match=r"cache: the folder .* cannot be used and .* in memory only") as caught:
        loaded.__setstate__(state)
    assert len(caught) == 1
    np.testing.assert_array_equal(loaded.predict_proba(X_new), wanted)
    assert loaded.adaptation_report().cache_hit
    pickle.dumps(loaded)
    assert pickle.loads(data).predict_proba(X_new).shape == wanted.shape


# Seen to fail: with `put` in place of `adopt` in `__setstate__`.
def test_loading_alone_makes_no_folder_and_the_first_prediction_does_not_adapt(
    classifier, table, tmp_path, fresh_process
):
    X, y, X_new, _ = table
    fitted = classifier(cache=str(tmp_path / "a" / "cache")).fit(X, y)
    wanted = fitted.predict_proba(X_new)
    data = pickle.dumps(fitted)
    (tmp_path / "a").rename(tmp_path / "b")
    shared._shared.clear()
    loaded = pickle.loads(data)
    assert not (tmp_path / "a").exists()
    np.testing.assert_array_equal(loaded.predict_proba(X_new), wanted)
    assert loaded.adaptation_report().cache_hit


def test_a_pickled_cache_whose_folder_cannot_be_used_here_is_one_in_memory(tmp_path):
    data = pickle.dumps(FastWeightCache(tmp_path / "cache", max_bytes=123))
    (tmp_path / "cache").touch()
    with pytest.warns(RuntimeWarning, match="cannot be used here .* in memory only.*cache is a file") as caught:
        loaded = pickle.loads(data)
    assert len(caught) == 1
    assert (loaded.directory, loaded.max_bytes) == (None, 123)


# Seen to fail: with `resolve_cache` in `_lookup`, which raises at the second estimator's prediction.
def test_a_folder_that_goes_bad_after_fit_warns_once_and_memory_goes_on(classifier, table, tmp_path, fresh_process):
    X, y, X_new, _ = table
    folder = tmp_path / "cache"
    first, second = (classifier(cache=str(folder), step_size=size).fit(X, y) for size in (1e-3, 2e-3))
    wanted = [classifier(step_size=size).fit(X, y).predict_proba(X_new) for size in (1e-3, 2e-3)]
    np.testing.assert_array_equal(first.predict_proba(X_new), wanted[0])
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    folder.touch()
    np.testing.assert_array_equal(first.predict_proba(X_new), wanted[0])
    with pytest.warns(RuntimeWarning, match="in memory only") as caught:
        np.testing.assert_array_equal(second.predict_proba(X_new), wanted[1])
    assert len(caught) == 1
    for fitted, expected in zip((first, second), wanted, strict=True):
        np.testing.assert_array_equal(fitted.predict_proba(X_new), expected)


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from tttabpfn.cache.checks import folder_problem
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for path in sys.argv[1:]:
    print(folder_problem(Path(path)))
"""


# Seen to fail: without `os.access` in `folder_problem`.
def test_a_folder_without_the_rights_is_named():
    with tempfile.TemporaryDirectory() as name:
        outer = Path(name).resolve()
        closed, read_only = outer / "closed", outer / "read_only"
        (read_only / "there").mkdir(parents=True)
        closed.mkdir()
        outer.chmod(0o755)
        closed.chmod(0o600)
        read_only.chmod(0o555)
        paths = [closed, closed / "cache", read_only / "cache", read_only, read_only / "there"]
        command = [sys.executable, "-c", UNPRIVILEGED, *map(str, paths)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        closed.chmod(0o700)
        read_only.chmod(0o755)
        assert run.returncode == 0, run.stderr
        entered = f"{closed} cannot be entered"
        # A folder that can only be read serves what it holds; a warning comes when something is to be written.
        assert run.stdout.splitlines() == [entered, entered, f"nothing can be made in {read_only}", "None", "None"]


# Seen to fail: with `mkdir(parents=True)`, which leaves all of them to the umask.
def test_new_folders_are_their_owners_alone(tmp_path):
    old = os.umask(0)
    try:
        (tmp_path / "given").mkdir(mode=0o755)
        FastWeightCache(tmp_path / "given" / "new" / "cache").put("0a", CacheEntry({"w": torch.zeros(1)}, {}))
    finally:
        os.umask(old)
    rights = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "given", *(tmp_path / "given").rglob("*/"))]
    assert rights == [0o755, 0o700, 0o700]


# Seen to fail: without O_NOFOLLOW: the linked file is made, or locked and left open to whoever set the link.
@pytest.mark.parametrize("target", ["missing", "there"])
def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path, target):
    elsewhere = tmp_path / "elsewhere"
    if target == "there":
        elsewhere.write_text("mine")
    (tmp_path / "cache").mkdir()
    link = tmp_path / "cache" / ".0a.lock"
    link.symlink_to(elsewhere)
    with file_lock(link, 0.0) as held:
        assert not held
    found, hit = FastWeightCache(tmp_path / "cache").get_or_compute("0a", lambda: CacheEntry({}, {"value": 1}))
    assert (found.header, hit) == ({"value": 1}, False)
    assert link.is_symlink()
    assert elsewhere.exists() == (target == "there")
    assert target == "missing" or elsewhere.read_text() == "mine"


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_lock_file_that_is_no_plain_file_is_done_without(tmp_path, kind):
    path = tmp_path / "lock"
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    with file_lock(path, 1e9) as held:
        assert not held


def test_a_usable_path_warns_of_nothing(tmp_path, fresh_process):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache = serving_cache(tmp_path / "new")
    assert cache is shared.resolve_cache(str(tmp_path / "new"))
    assert folder_path("cache", tmp_path / "new") == tmp_path.resolve() / "new"
    assert not (tmp_path / "new").exists()
