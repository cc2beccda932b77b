"""The cache on disk: whole files or none, one computation among processes, damage is a miss."""

import errno
import json
import os
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch

from tttabpfn.cache import files
from tttabpfn.cache.file_lock import file_lock
from tttabpfn.cache.shared import CacheEntry, FastWeightCache


def entry_of(value, size=64):
    return CacheEntry({"weight": torch.full((size,), float(value)), "bias": torch.ones(3)}, {"value": value})


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "deep" / "cache"


def test_the_folder_is_made_at_the_first_write(folder):
    cache = FastWeightCache(folder)
    assert cache.get("0a") is None
    assert "0a" not in cache
    assert cache.info().disk_entries == 0
    assert not folder.exists()
    cache.put("0a", entry_of(1))
    assert os.listdir(folder) == ["0a.safetensors"]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool]
)
def test_another_cache_reads_the_same_bits(folder, dtype):
    tensors = {"weight": (torch.randn(3, 5, generator=torch.Generator().manual_seed(0)) * 3).to(dtype),
               "scalar": torch.ones((), dtype=dtype), "empty": torch.zeros((0, 2), dtype=dtype)}  # fmt: skip
    header = {"report": {"loss": 0.1 + 0.2, "nan": float("nan"), "text": "\ud800é"}, "steps": [1, 2]}
    first = FastWeightCache(folder)
    first.put("0a", CacheEntry(tensors, header))
    found = FastWeightCache(folder).get("0a")
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == dtype
        assert torch.equal(found.tensors[name], tensor)
    assert json.dumps(found.header) == json.dumps(first.get("0a").header) == json.dumps(header)


def test_a_file_is_plain_safetensors_with_a_header(folder):
    FastWeightCache(folder).put("0a", entry_of(1))
    with safetensors.safe_open(folder / "0a.safetensors", framework="np") as file:
        assert sorted(file.keys()) == ["bias", "weight"]
        metadata = file.metadata()
    assert sorted(metadata) == ["format", "header", "key", "sha256"]
    assert json.loads(metadata["header"]) == {"value": 1}


def rewritten(data, **changes):
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    metadata = {name: value for name, value in {**metadata, **changes}.items() if value is not None}
    return safetensors.torch.save(safetensors.torch.load(data), metadata)


def flipped(position):
    def damage(data):
        changed = bytearray(data)
        changed[position] ^= 1
        return bytes(changed)

    return damage


DAMAGE = {
    "empty": lambda data: b"",
    "one_byte": lambda data: data[:1],
    "cut_header": lambda data: data[:20],
    "cut_tensor": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "zeros": lambda data: bytes(len(data)),
    "tail_of_zeros": lambda data: data[:-40] + bytes(40),
    "text": lambda data: b"not a safetensors file at all",
    "pickle": lambda data: b"\x80\x04]\x94.",
    "huge_length": lambda data: b"\xff" * 8 + data[8:],
    "deep_json": lambda data: (100_000).to_bytes(8, "little") + b"[" * 100_000,
    "last_bit": flipped(-1),
    "middle_bit": flipped(-200),
    "other_key": lambda data: rewritten(data, key="0b"),
    "other_format": lambda data: rewritten(data, format="tttabpfn fast weights 0"),
    "other_header": lambda data: rewritten(data, header=json.dumps({"value": 2})),
    "no_checksum": lambda data: rewritten(data, sha256=None),
    "foreign": lambda data: safetensors.torch.save({"weight": torch.zeros(3)}),
    "foreign_metadata": lambda data: safetensors.torch.save({"weight": torch.zeros(3)}, {"format": "pt"}),
    "other_entry": lambda data: files.encode("0b", entry_of(2)),
}


# Seen to fail: "last_bit", "middle_bit", "tail_of_zeros", "other_header" and "no_checksum" without the comparison of
# checksums; "other_key" without that of keys, "other_format" without that of formats.
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_or_foreign_file_is_a_miss_and_is_replaced(folder, damage):
    FastWeightCache(folder).put("0a", entry_of(1))
    file = folder / "0a.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    cache = FastWeightCache(folder)
    assert cache.get("0a") is None
    found, hit = cache.get_or_compute("0a", lambda: entry_of(3))
    assert (found.header, hit) == ({"value": 3}, False)
    assert FastWeightCache(folder).get("0a").header == {"value": 3}


def test_every_single_byte_counts(folder):
    FastWeightCache(folder).put("0a", CacheEntry({"w": torch.arange(3.0)}, {"v": 1}))
    data = (folder / "0a.safetensors").read_bytes()
    length = 8 + int.from_bytes(data[:8], "little")
    for position in range(length, len(data)):
        assert files.decode("0a", flipped(position)(data)) is None
    # In the header, white space and the like may change without harm; what is read must be right or nothing.
    for position in range(length):
        entry = files.decode("0a", flipped(position)(data))
        assert entry is None or (entry.header == {"v": 1} and entry.tensors["w"].tolist() == [0.0, 1.0, 2.0])


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_thing_that_is_no_file_is_a_miss(folder, kind):
    folder.mkdir(parents=True)
    if kind == "folder":
        (folder / "0a.safetensors").mkdir()
    else:
        (folder / "0a.safetensors").symlink_to(folder / "nowhere")
    cache = FastWeightCache(folder)
    assert cache.get("0a") is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert cache.get_or_compute("0a", lambda: entry_of(1))[0].header == {"value": 1}
    assert cache.get("0a").header == {"value": 1}


def refuse_by_full_disk(monkeypatch, folder):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)


def refuse_by_file_in_the_way(monkeypatch, folder):
    folder.parent.touch()


# Seen to fail: without `except OSError` in `_store`, the error comes through; without `_warned`, it warns twice.
@pytest.mark.parametrize("refuse", [refuse_by_full_disk, refuse_by_file_in_the_way])
def test_a_folder_that_takes_nothing_warns_once_and_memory_goes_on(folder, monkeypatch, refuse):
    cache, other = FastWeightCache(folder), FastWeightCache(folder)
    refuse(monkeypatch, folder)
    with pytest.warns(RuntimeWarning, match="cannot be written to .*cache and are kept in memory only") as caught:
        cache.get_or_compute("0a", lambda: entry_of(1))
    assert [warning.filename for warning in caught] == [__file__]
    cache.put("0b", entry_of(2))
    assert cache.get("0a").header == {"value": 1}
    assert cache.get("0b").header == {"value": 2}
    assert not folder.exists() or os.listdir(folder) == []
    with pytest.raises(RuntimeWarning):
        other.get_or_compute("0a", lambda: entry_of(1))


# Seen to fail: writing straight to the final name instead of a scratch file, the second write leaves half a file.
def test_a_write_that_fails_half_way_leaves_the_old_entry(folder, monkeypatch):
    FastWeightCache(folder).put("0a", entry_of(1))
    refuse_by_full_disk(monkeypatch, folder)
    with pytest.warns(RuntimeWarning, match="No space left"):
        FastWeightCache(folder).put("0a", entry_of(2))
    assert FastWeightCache(folder).get("0a").header == {"value": 1}
    assert os.listdir(folder) == ["0a.safetensors"]


# Seen to fail: with the sort by age left out of `_tidy`, or without `os.utime` in `read`.
def test_the_disk_cap_drops_the_least_recently_used_files(folder):
    size = len(files.encode("0a", entry_of(1)))
    cache = FastWeightCache(folder, max_disk_bytes=2 * size + size // 2)
    for age, key in enumerate(["0a", "0b"]):
        cache.put(key, entry_of(1))
        os.utime(folder / f"{key}.safetensors", (1000.0 + age, 1000.0 + age))
    assert FastWeightCache(folder, max_disk_bytes=10**6).get("0a") is not None
    (folder / "notes.txt").write_text("not ours")
    cache.put("0c", entry_of(1))
    assert sorted(os.listdir(folder)) == ["0a.safetensors", "0c.safetensors", "notes.txt"]
    assert cache.info().disk_bytes == 2 * size
    cache.put("0d", entry_of(1, size=10_000))
    assert sorted(os.listdir(folder)) == ["0a.safetensors", "0c.safetensors", "notes.txt"]
    assert cache.get("0d") is not None


def test_clear_keeps_the_folder_unless_told(folder):
    cache = FastWeightCache(folder)
    cache.put("0a", entry_of(1))
    (folder / "notes.txt").write_text("not ours")
    cache.clear()
    assert len(cache) == 0
    assert cache.get("0a") is not None
    cache.clear(disk=True)
    assert cache.get("0a") is None
    assert os.listdir(folder) == ["notes.txt"]


WORKER = """
import sys, time
from pathlib import Path
import torch
from tttabpfn.cache.shared import CacheEntry, FastWeightCache

folder, scratch, name = sys.argv[1:]
cache = FastWeightCache(folder, lock_timeout=60)
(Path(scratch) / f"ready-{name}").touch()
while len(list(Path(scratch).glob("ready-*"))) < 4:
    time.sleep(0.01)
for key in ("0a", "0b", "0c"):
    def compute():
        (Path(scratch) / f"computed-{key}-{name}").touch()
        time.sleep(0.3)
        return CacheEntry({"weight": torch.full((200_000,), float(int(key, 16)))}, {"by": name})
    entry, hit = cache.get_or_compute(key, compute)
    assert entry.tensors["weight"].unique().tolist() == [float(int(key, 16))]
    print(key, entry.header["by"], hit)
"""


# Seen to fail: with `nullcontext` in place of `file_lock` in `EntryFolder.lock`, each key is computed several times.
def test_processes_that_ask_at_once_share_one_computation(folder, tmp_path):
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), str(tmp_path), str(index)], stdout=subprocess.PIPE, text=True
        )
        for index in range(4)
    ]
    outputs = [worker.communicate(timeout=120)[0].splitlines() for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4
    answers = [line.rsplit(" ", 1)[0] for lines in outputs for line in lines]
    assert len(set(answers)) == 3
    assert len(answers) == 12
    assert sum(line.endswith("False") for lines in outputs for line in lines) == 3
    assert len(list(tmp_path.glob("computed-*"))) == 3
    assert sorted(os.listdir(folder)) == ["0a.safetensors", "0b.safetensors", "0c.safetensors"]


KILLED = """
import os, signal, sys
import torch
from tttabpfn.cache.shared import CacheEntry, FastWeightCache

def die(descriptor):
    os.kill(os.getpid(), signal.SIGKILL)

os.fsync = die
FastWeightCache(sys.argv[1]).get_or_compute("0a", lambda: CacheEntry({"weight": torch.zeros(100)}, {}))
"""


# Seen to fail: with a lock that is the mere existence of the file, this waits for the whole timeout (here: for ever).
@pytest.mark.skipif(sys.platform == "win32", reason="kills by a POSIX signal")
def test_a_process_killed_while_writing_leaves_nothing_in_the_way(folder):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False)
    assert killed.returncode < 0
    left = os.listdir(folder)
    assert ".0a.lock" in left
    assert sum(name.endswith(".part") for name in left) == 1
    assert "0a.safetensors" not in left
    cache = FastWeightCache(folder, lock_timeout=1e9)
    found, hit = cache.get_or_compute("0a", lambda: entry_of(1))
    assert (found.header, hit) == ({"value": 1}, False)
    scratch = next(folder.glob("*.part"))
    os.utime(scratch, (1000.0, 1000.0))
    cache.put("0b", entry_of(2))
    assert sorted(os.listdir(folder)) == ["0a.safetensors", "0b.safetensors"]


# Seen to fail: without the deadline in `file_lock`, this never ends.
def test_the_wait_for_another_process_is_bounded(folder):
    folder.mkdir(parents=True)
    with file_lock(folder / ".0a.lock", 0.0) as held:
        assert held
        start = time.monotonic()
        found, hit = FastWeightCache(folder, lock_timeout=0.2).get_or_compute("0a", lambda: entry_of(1))
        assert time.monotonic() - start >= 0.2
    assert (found.header, hit) == ({"value": 1}, False)
    assert os.listdir(folder) == ["0a.safetensors"]


def test_a_lock_that_cannot_be_had_is_done_without(tmp_path):
    with file_lock(tmp_path / "missing" / "lock", timeout=1e9) as held:
        assert held is False


# Seen to fail: without `_same_file`, two owners hold a lock of the same name at once.
def test_a_deleted_lock_file_is_not_held_by_two(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    real, calls = os.path.samestat, []

    def replaced_once(first, second):
        calls.append(1)
        if len(calls) == 1:
            path.unlink()
            return False
        return real(first, second)

    monkeypatch.setattr(os.path, "samestat", replaced_once)
    with file_lock(path, 5.0) as held:
        assert held
        assert len(calls) == 2
        with file_lock(path, 0.0) as second:
            assert not second
    assert not path.exists()


def test_what_is_read_is_writable_memory_of_its_own(folder):
    FastWeightCache(folder).put("0a", entry_of(1))
    entry = FastWeightCache(folder).get("0a")
    held = sum(tensor.untyped_storage().nbytes() for tensor in entry.tensors.values())
    assert held == entry.nbytes
    assert np.asarray(entry.tensors["weight"]).flags.writeable
