"""The cache: least recently used first out, one computation per key among threads, entries shared and unharmed."""

import copy
import json
import multiprocessing
import os
import pickle
import sys
import threading
import time

import pytest
import torch
from sklearn.base import BaseEstimator, clone

from tttabpfn.cache.shared import CacheEntry, FastWeightCache, default_cache, resolve_cache


def entry_of(value, size=4):
    return CacheEntry({"weight": torch.full((size,), float(value))}, {"value": value})


def never():
    raise AssertionError("computed although the entry is there")


def in_threads(number, call):
    """Run `call(index)` in threads that start together; return what each returned or raised."""
    outcomes = [None] * number
    barrier = threading.Barrier(number)

    def run(index):
        barrier.wait()
        try:
            outcomes[index] = call(index)
        except Exception as error:
            outcomes[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    return outcomes


def test_an_entry_comes_back_as_it_was_put():
    cache = FastWeightCache()
    assert cache.get("0a") is None
    cache.put("0a", CacheEntry({"a": torch.eye(2), "b": torch.tensor(3)}, {"n": 1, "list": (1, None)}))
    found = cache.get("0a")
    assert torch.equal(found.tensors["a"], torch.eye(2))
    assert found.tensors["b"].dtype == torch.int64
    assert found.header == {"n": 1, "list": [1, None]}
    assert "0a" in cache
    assert "0b" not in cache
    assert "not a key" not in cache
    assert len(cache) == 1
    info = cache.info()
    assert (info.hits, info.misses, info.entries, info.bytes, info.directory) == (1, 1, 1, 24, None)


# Seen to fail: the first two with `tensor.detach()` handed on in `_copied`, without the copy; the third with
# `copy.deepcopy(header)` in place of the way through JSON.
def test_an_entry_shares_nothing_with_what_was_put():
    cache = FastWeightCache()
    weight = torch.zeros(1000, requires_grad=True)
    header = {"steps": [1]}
    cache.put("0a", CacheEntry({"weight": weight[:10]}, header))
    with torch.no_grad():
        weight.fill_(7)
    header["steps"].append(2)
    found = cache.get("0a")
    assert found.tensors["weight"].tolist() == [0.0] * 10
    assert not found.tensors["weight"].requires_grad
    assert found.header == {"steps": [1]}


# Seen to fail: with `tensor.detach()` handed on in `_copied`, the entry holds the whole storage of a view.
def test_memory_held_is_the_size_of_the_entry():
    cache = FastWeightCache()
    cache.put("0a", CacheEntry({"view": torch.zeros(100, 100)[:, :3], "tied": torch.zeros(5).expand(20, 5)}, {}))
    found = cache.get("0a")
    held = sum(tensor.untyped_storage().nbytes() for tensor in found.tensors.values())
    assert held == found.nbytes == cache.info().bytes == 4 * (300 + 100)


@pytest.mark.parametrize(
    "entry",
    [
        CacheEntry({"weight": torch.eye(2).to_sparse()}, {}),
        CacheEntry({"weight": torch.zeros(2, dtype=torch.complex64)}, {}),
        CacheEntry({"weight": [1.0]}, {}),
        CacheEntry({1: torch.zeros(1)}, {}),
        CacheEntry({"__metadata__": torch.zeros(1)}, {}),
        CacheEntry({}, {"value": torch.zeros(1)}),
        CacheEntry({}, [1]),
        {"weight": torch.zeros(1)},
    ],
    ids=["sparse", "complex", "list", "name", "reserved", "header", "no_dict", "no_entry"],
)
def test_what_no_file_can_hold_is_refused_in_memory_too(entry):
    cache = FastWeightCache()
    with pytest.raises(TypeError, match=r"^(header|tensors|entry)"):
        cache.put("0a", entry)
    assert len(cache) == 0


@pytest.mark.parametrize("key", ["", "0A", "xyz", "../0a", "0a.b", 10, None, b"0a"])
def test_a_key_is_lower_case_hex(key):
    cache = FastWeightCache()
    for call in (cache.get, lambda key: cache.put(key, entry_of(1)), lambda key: cache.get_or_compute(key, never)):
        with pytest.raises(ValueError, match="key must be lower-case hex digits, got"):
            call(key)
    with pytest.raises(ValueError, match="key must be lower-case hex digits, got"):
        cache.attachments.get_or_build(key, "name", never)


# Seen to fail: without `move_to_end` in `Lru.get`, 0a goes in place of 0b; without the subtraction in `Lru.pop`, the
# bytes grow without end.
def test_the_least_recently_used_entry_goes_first():
    cache = FastWeightCache(max_bytes=40)
    cache.put("0a", entry_of(1))
    cache.put("0b", entry_of(2))
    assert cache.get("0a") is not None
    cache.put("0c", entry_of(3))
    assert ("0a" in cache, "0b" in cache, "0c" in cache) == (True, False, True)
    assert cache.info().bytes == 32
    for value in range(100):
        cache.put("0c", entry_of(value))
    assert cache.info().bytes == 32


def test_an_entry_above_the_cap_is_handed_out_and_not_held():
    cache = FastWeightCache(max_bytes=40)
    cache.put("0a", entry_of(1))
    found, hit = cache.get_or_compute("0b", lambda: entry_of(2, size=100))
    assert (found.header, hit) == ({"value": 2}, False)
    assert ("0a" in cache, "0b" in cache, cache.info().bytes) == (True, False, 16)


# Seen to fail: with `contextlib.nullcontext` in place of `flight.lock` in `Flights.join`: eight computations.
# With a cap of 0 the waiting threads can only get the result from the flight itself.
@pytest.mark.parametrize("max_bytes", [0, 2**20])
def test_threads_that_ask_at_once_share_one_computation(max_bytes):
    cache = FastWeightCache(max_bytes=max_bytes)
    computed = []

    def compute():
        computed.append(threading.get_ident())
        time.sleep(0.3)
        return entry_of(1)

    outcomes = in_threads(8, lambda index: cache.get_or_compute("0a", compute))
    assert len(computed) == 1
    assert len({id(entry) for entry, _ in outcomes}) == 1
    assert sorted(hit for _, hit in outcomes) == [False] + [True] * 7
    assert (cache.info().hits, cache.info().misses) == (7, 1)


# Seen to fail: with `self.mutex` held around the `yield` in `Flights.join`, the barrier breaks after its timeout.
def test_computations_of_different_keys_run_side_by_side():
    cache = FastWeightCache()
    inside = threading.Barrier(2)

    def compute():
        inside.wait(20)
        return entry_of(1)

    outcomes = in_threads(2, lambda index: cache.get_or_compute(f"0{index}", compute))
    assert [hit for _, hit in outcomes] == [False, False]


# Seen to fail: without `finally` in `Flights.join`, the user count stays up and the flight is never dropped.
@pytest.mark.parametrize("on_disk", [False, True])
def test_an_exception_reaches_the_caller_and_changes_nothing(on_disk, tmp_path):
    cache = FastWeightCache(tmp_path / "cache" if on_disk else None)

    def compute():
        raise KeyError("no such layer")

    outcomes = in_threads(4, lambda index: cache.get_or_compute("0a", compute))
    assert all(isinstance(outcome, KeyError) for outcome in outcomes)
    assert len(cache) == 0
    assert not cache._flights._flights
    assert not (tmp_path / "cache").exists()
    with pytest.raises(TypeError, match="entry must be a CacheEntry, got int"):
        cache.get_or_compute("0a", lambda: 1)
    assert cache.get_or_compute("0a", lambda: entry_of(1))[1] is False
    with pytest.raises(ZeroDivisionError):
        cache.attachments.get_or_build("0a", "name", lambda: 1 / 0)
    assert cache.attachments.get_or_build("0a", "name", lambda: "built") == "built"


# Seen to fail: as above, with `nullcontext` in place of the flight's lock.
def test_an_attachment_is_built_once():
    cache = FastWeightCache()
    built = []

    def build():
        built.append(1)
        time.sleep(0.2)
        return object()

    outcomes = in_threads(8, lambda index: cache.attachments.get_or_build("0a", "model", build))
    assert len(built) == 1
    assert len({id(outcome) for outcome in outcomes}) == 1
    assert cache.attachments.get_or_build("0a", "other", lambda: None) is None
    assert cache.attachments.get_or_build("0a", "other", never) is None


# Seen to fail: with `weigh` doing nothing.
def test_an_attachment_that_grows_makes_others_go():
    cache = FastWeightCache(max_bytes=100)
    for key in ("0a", "0b"):
        cache.attachments.get_or_build(key, "model", lambda: "built", nbytes=lambda _: 10)
    cache.attachments.resize("0b", "model", 95)
    assert cache.attachments.get("0a", "model") is None
    assert cache.attachments.get("0b", "model") == "built"
    cache.attachments.resize("0c", "model", 1000)  # never attached: nothing to weigh
    assert cache.attachments.get("0b", "model") == "built"
    cache.attachments.resize("0b", "model", 101)
    assert cache.attachments.get("0b", "model") is None


# Seen to fail: without the loop in `_hold` (evicted) or in `_store` (replaced).
def test_attachments_go_with_their_entry():
    cache = FastWeightCache(max_bytes=40)
    cache.put("0a", entry_of(1))
    assert cache.attachments.get_or_build("0a", "model", lambda: "first") == "first"
    cache.put("0a", entry_of(2))
    assert cache.attachments.get_or_build("0a", "model", lambda: "second") == "second"
    cache.put("0b", entry_of(1))
    cache.put("0c", entry_of(1))
    assert cache.attachments.get_or_build("0a", "model", lambda: "third") == "third"
    cache.clear()
    assert len(cache) == 0
    assert cache.attachments.get_or_build("0a", "model", lambda: "fourth") == "fourth"


def test_attachments_are_capped_by_number_and_bytes():
    cache = FastWeightCache(max_bytes=100, max_attachments=2)
    for name in "abc":
        cache.attachments.get_or_build("0a", name, name.lower)
    assert cache.attachments.get_or_build("0a", "c", never) == "c"
    assert cache.attachments.get_or_build("0a", "b", never) == "b"
    assert cache.attachments.get_or_build("0a", "a", lambda: "again") == "again"
    assert cache.attachments.get_or_build("0a", "large", lambda: "first", lambda value: 90) == "first"
    assert cache.attachments.get_or_build("0a", "huge", lambda: "first", lambda value: 101) == "first"
    assert cache.attachments.get_or_build("0a", "huge", lambda: "second", lambda value: 11) == "second"
    assert cache.attachments.get_or_build("0a", "large", lambda: "second") == "second"


# Seen to fail: without the loop over `namesakes`, all three stay.
def test_attachments_of_one_name_can_be_capped_apart():
    cache = FastWeightCache()
    cache.attachments.get_or_build("0a", "model", lambda: "kept")
    for key in ("0a", "0b", "0c"):
        cache.attachments.get_or_build(key, "session", key.upper, max_count=1)
    assert cache.attachments.get_or_build("0a", "model", never) == "kept"
    assert cache.attachments.get_or_build("0c", "session", never, max_count=1) == "0C"
    assert cache.attachments.get_or_build("0a", "session", lambda: "again", max_count=1) == "again"
    assert cache.attachments.get_or_build("0c", "session", lambda: "again", max_count=2) == "again"
    assert cache.attachments.get_or_build("0a", "session", never, max_count=2) == "again"


# Seen to fail: without `__deepcopy__`, the copy is rebuilt as its pickle is, as another cache.
def test_copies_and_clones_share_the_cache():
    class Holder(BaseEstimator):
        def __init__(self, cache=None):
            self.cache = cache

    cache = FastWeightCache()
    assert copy.copy(cache) is cache
    assert copy.deepcopy({"cache": [cache]})["cache"][0] is cache
    assert clone(Holder(cache)).cache is cache
    assert bool(cache) is True


def test_a_pickle_keeps_directory_and_caps_and_no_entries(tmp_path):
    cache = FastWeightCache(tmp_path / "a", max_bytes=10**6, max_disk_bytes=10**7, max_attachments=3, lock_timeout=5.0)
    cache.put("0a", entry_of(1, size=1000))
    data = pickle.dumps(cache)
    assert len(data) < 1000
    loaded = pickle.loads(data)
    caps = ("directory", "max_bytes", "max_disk_bytes", "max_attachments", "lock_timeout")
    assert [getattr(loaded, name) for name in caps] == [getattr(cache, name) for name in caps]
    assert loaded is not cache
    assert len(loaded) == 0
    assert loaded.get("0a").header == {"value": 1}
    private = FastWeightCache(max_bytes=5)
    assert pickle.loads(pickle.dumps(private)).max_bytes == 5


def test_resolve_cache_gives_one_cache_per_directory(tmp_path, monkeypatch):
    assert resolve_cache(None) is default_cache()
    cache = FastWeightCache()
    assert resolve_cache(cache) is cache
    (tmp_path / "a").mkdir()
    shared = resolve_cache(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    assert resolve_cache("a") is shared
    assert resolve_cache(str(tmp_path / "b" / ".." / "a")) is shared
    assert resolve_cache("b") is not shared
    assert sorted(os.listdir(tmp_path)) == ["a"]


@pytest.mark.parametrize("cache", [True, 3, b"folder", {"directory": "a"}, FastWeightCache])
def test_resolve_cache_names_the_parameter(cache):
    with pytest.raises(TypeError, match="cache must be None, a path or a FastWeightCache, got"):
        resolve_cache(cache)


def test_a_directory_must_not_be_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cache must be a folder, got '.*file': .*file is a file"):
        resolve_cache(tmp_path / "file")
    with pytest.raises(ValueError, match="directory must be a path to a folder, got an empty one"):
        FastWeightCache("")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_bytes", -1), ("max_bytes", 1.5), ("max_bytes", True), ("max_bytes", None), ("max_disk_bytes", -1),
        ("max_attachments", "8"), ("lock_timeout", -1.0), ("lock_timeout", float("nan")), ("lock_timeout", None),
    ],
)  # fmt: skip
def test_bad_caps_are_named(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be .* >= 0, got {value!r}"):
        FastWeightCache(**{name: value})


def _ask_in_child(cache, results):
    results.put(cache.get_or_compute("0a", lambda: entry_of(2))[0].header["value"])
    results.put(cache.get_or_compute("0b", lambda: entry_of(3))[0].header["value"])


# Seen to fail: without `renew` in `_after_fork_in_child`, the child waits for a thread that it does not have.
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_fork_during_a_computation_leaves_the_child_free():
    cache = FastWeightCache()
    cache.put("0b", entry_of(7))
    forked, computing = threading.Event(), threading.Event()

    def compute():
        computing.set()
        forked.wait(30)
        return entry_of(1)

    thread = threading.Thread(target=cache.get_or_compute, args=("0a", compute))
    thread.start()
    assert computing.wait(30)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=_ask_in_child, args=(cache, results))
    child.start()
    forked.set()
    thread.join(30)
    child.join(30)
    stuck = child.is_alive()
    if stuck:
        child.kill()
    assert not stuck
    assert (results.get(), results.get()) == (2, 7)
    assert cache.get("0a").header == {"value": 1}


def test_repr_and_info_are_plain(tmp_path):
    cache = FastWeightCache(tmp_path, max_bytes=10)
    assert repr(FastWeightCache(max_bytes=10)) == "FastWeightCache(max_bytes=10)"
    assert repr(cache) == f"FastWeightCache({str(tmp_path.resolve())!r}, max_bytes=10)"
    assert json.loads(json.dumps(vars(cache.info())))["directory"] == str(tmp_path.resolve())
