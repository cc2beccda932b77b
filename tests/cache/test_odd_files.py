"""What is no plain file of a plausible size, in the place of an entry: a miss, at once and with little memory."""

import os
import socket
import subprocess
import sys
import threading

import pytest
import torch

from tttabpfn.cache import files
from tttabpfn.cache.shared import CacheEntry, FastWeightCache

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes, devices and sparse files of POSIX")


def entry_of(value):
    return CacheEntry({"weight": torch.full((64,), float(value))}, {"value": value})


def told(nbytes):
    """The start of an entry's file whose header tells of a tensor of so many bytes."""
    data = files.encode("0a", CacheEntry({"weight": torch.zeros(1)}, {}))
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b"[0,4]", b"[0,%d]" % nbytes)
    return len(header).to_bytes(8, "little") + header


def sparse(path, start, nbytes):
    with open(path, "wb") as stream:
        stream.write(start)
        stream.truncate(nbytes)


def unix_socket(path):
    # A socket's path is short: it is bound by a relative one.
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)


TERABYTE = 10**12
ODD = {
    "pipe": os.mkfifo,
    "link_to_pipe": lambda path: (os.mkfifo(path.with_suffix(".pipe")), path.symlink_to(path.with_suffix(".pipe"))),
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "random": lambda path: path.symlink_to("/dev/urandom"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "socket": unix_socket,
    "loop": lambda path: path.symlink_to(path),
    "sparse": lambda path: sparse(path, b"", TERABYTE),
    "sparse_below_the_cap": lambda path: sparse(path, b"", files.MAX_BYTES),
    "sparse_with_long_header": lambda path: sparse(path, (10**11).to_bytes(8, "little"), TERABYTE),
    "sparse_with_header": lambda path: sparse(path, told(TERABYTE - len(told(10**12))), TERABYTE),
    "sparse_after_entry": lambda path: sparse(path, files.encode("0a", entry_of(1)), files.MAX_BYTES),
}

READ = """
import resource, sys
from tttabpfn.cache.shared import FastWeightCache
from pathlib import Path
import torch
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 512 * 1024**2,) * 2)
cache = FastWeightCache(sys.argv[1])
assert cache.get("0a") is None
assert "0a" not in cache
assert cache.info().disk_bytes in (0, Path(sys.argv[1], "0a.safetensors").lstat().st_size)
print("missed")
"""


# Seen to fail: with `file.read_bytes()` in place of `read_whole`: "pipe" and "link_to_pipe" hang, the endless and the
# sparse ones end in MemoryError.
@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the limit of memory is set as on Linux")
def test_what_is_no_plain_file_of_plausible_size_is_a_miss(tmp_path, make):
    file = tmp_path / "0a.safetensors"
    make(file)
    command = [sys.executable, "-c", READ, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL, check=False)
    assert (run.returncode, run.stdout) == (0, "missed\n"), run.stderr
    found, hit = FastWeightCache(tmp_path).get_or_compute("0a", lambda: entry_of(2))
    assert (found.header, hit) == ({"value": 2}, False)
    assert FastWeightCache(tmp_path).get("0a").header == {"value": 2}
    assert not file.is_symlink()


# Seen to fail: without O_NONBLOCK.
def test_a_pipe_put_there_after_the_look_is_not_waited_for(tmp_path, monkeypatch):
    file, real = tmp_path / "0a.safetensors", os.stat
    FastWeightCache(tmp_path).put("0a", entry_of(1))

    def looked(path, **options):
        found = real(path, **options)
        if path == file:
            file.unlink()
            os.mkfifo(file)
        return found

    found = []
    thread = threading.Thread(target=lambda: found.append(files.read_whole(file)), daemon=True)
    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", looked)
        thread.start()
        thread.join(20)
    assert found == [None]


def test_a_file_that_grows_while_it_is_read_is_read_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "0a.safetensors"
    FastWeightCache(tmp_path).put("0a", entry_of(1))
    data, real = file.read_bytes(), os.fstat

    def grow(descriptor):
        found = real(descriptor)
        with open(file, "ab") as stream:
            stream.truncate(10**12)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", grow)
        assert files.read_whole(file) == data


# Seen to fail: with every name counted by its size: the sparse file makes all others go.
def test_odd_files_count_for_nothing_and_make_no_entry_go(tmp_path):
    size = len(files.encode("0a", entry_of(1)))
    cache = FastWeightCache(tmp_path, max_disk_bytes=3 * size)
    cache.put("0a", entry_of(1))
    sparse(tmp_path / "0b.safetensors", b"", TERABYTE)
    os.mkfifo(tmp_path / "0c.safetensors")
    cache.put("0d", entry_of(1))
    assert (cache.info().disk_entries, cache.info().disk_bytes) == (2, 2 * size)
    cache.clear(disk=True)
    assert os.listdir(tmp_path) == []


# Seen to fail: without the comparison of the names of the metadata.
def test_metadata_that_is_not_known_is_a_miss():
    import json

    import safetensors.torch

    data = files.encode("0a", entry_of(1))
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    more = safetensors.torch.save(safetensors.torch.load(data), {**metadata, "more": "1"})
    assert files.decode("0a", data) is not None
    assert files.decode("0a", more) is None
