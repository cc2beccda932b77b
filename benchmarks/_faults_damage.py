"""Damage for `faults`: to bytes, odd things in the place of files, and entries signed anew."""

from __future__ import annotations

import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import torch

from tttabpfn.cache import files
from tttabpfn.cache.entry import CacheEntry

Damage = Callable[[random.Random, bytes], bytes]


def header_bytes(data: bytes) -> int:
    """Length of the part of an entry's file before its tensors."""
    return 8 + int.from_bytes(data[:8], "little")


def flip(rng: random.Random, data: bytes, start: int = 0, end: int | None = None, bits: int = 1) -> bytes:
    """Turn over some bits between two positions."""
    changed = bytearray(data)
    for _ in range(bits):
        changed[rng.randrange(start, len(data) if end is None else end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def swap(rng: random.Random, data: bytes) -> bytes:
    """Exchange two blocks of a file, as a file system that lost their order would."""
    size = rng.choice([1, 8, 64, 512])
    first, second = sorted(rng.randrange(len(data) // size) * size for _ in range(2))
    blocks = data[first : first + size], data[second : second + size]
    if first == second or len(blocks[0]) != len(blocks[1]):
        return data[size:] + data[:size]
    return data[:first] + blocks[1] + data[first + size : second] + blocks[0] + data[second + size :]


def blank(rng: random.Random, data: bytes) -> bytes:
    """Zeros in the place of a stretch, as in a file that was never flushed."""
    start = rng.randrange(len(data))
    end = rng.randrange(start, len(data)) + 1
    return data[:start] + bytes(end - start) + data[end:]


def foreign(rng: random.Random, data: bytes) -> bytes:
    """Content of something else."""
    random_bytes = rng.randbytes(rng.randrange(2000))
    claim = json.dumps({"__metadata__": {"format": files.FORMAT}, "w": {"data_offsets": [0, 10**12]}}).encode()
    return rng.choice(
        [
            b"",
            random_bytes,
            b"PK\x03\x04" + random_bytes,
            pickle.dumps({"weights": list(random_bytes)}),
            len(claim).to_bytes(8, "little") + claim,
            (2**63).to_bytes(8, "little") + data[8:],
            b"[" * rng.randrange(1, 100_000),
            safetensors_of({"weight": torch.zeros(3)}),
        ]
    )


def safetensors_of(tensors: dict[str, torch.Tensor]) -> bytes:
    """A safetensors file that is none of a cache's."""
    import safetensors.torch

    return safetensors.torch.save(tensors, {"format": "pt"})


DAMAGE: dict[str, Damage] = {
    "a bit": flip,
    "a bit of the header": lambda rng, data: flip(rng, data, 0, header_bytes(data)),
    "a bit of the tensors": lambda rng, data: flip(rng, data, header_bytes(data)),
    "many bits": lambda rng, data: flip(rng, data, bits=rng.randrange(2, 200)),
    "cut off": lambda rng, data: data[: rng.randrange(len(data))],
    "longer": lambda rng, data: data + rng.randbytes(rng.randrange(1, 5000)),
    "blocks swapped": swap,
    "zeros": blank,
    "foreign": foreign,
}


def signed_anew(rng: random.Random, entry: CacheEntry, other: CacheEntry) -> CacheEntry:
    """An entry that is whole and yet lacks something, or has something of another kind of adaptation.

    What is left out: other numbers under right names and shapes. They are trusted, as a checkpoint's are.
    """
    tensors, header = dict(entry.tensors), json.loads(json.dumps(entry.header))
    names = sorted(tensors)
    name = rng.choice(names)
    field = rng.choice(sorted(header["report"]))

    def reshape() -> None:
        tensors[name] = torch.cat([tensors[name].reshape(-1), tensors[name].reshape(-1)[:1]])

    def swap_kind() -> None:
        tensors.clear()
        tensors.update(other.tensors)

    changes = [
        lambda: tensors.pop(name),
        lambda: tensors.clear(),
        lambda: tensors.update({rng.choice(["w", "0:none", "9:norm", "memory:none", ":", ""]): torch.zeros(2)}),
        lambda: tensors.update({name + rng.choice(["x", "/", ":"]): tensors.pop(name)}),
        reshape,
        lambda: tensors.update({name: tensors[name].to(rng.choice([torch.float16, torch.int64]))}),
        lambda: tensors.update({name: torch.full(tensors[name].shape, float("nan"))}),
        swap_kind,
        lambda: header.clear(),
        lambda: header.pop(rng.choice(["report", "creator"])),
        lambda: header.update(report=rng.choice([None, [], "report", {}, 3])),
        lambda: header["report"].pop(field),
        lambda: header["report"].update({field: rng.choice([None, "text", [None], {"a": []}, True])}),
        lambda: header["report"].update({"other": 1}),
        lambda: header.update(other.header),
    ]
    rng.choice(changes)()
    return CacheEntry(tensors, header)


def put_something(rng: random.Random, file: Path, data: bytes) -> str:
    """Put what is no plain file of a plausible size in the place of a file; returns what it is."""

    def sparse(start: bytes, nbytes: int) -> None:
        with open(file, "wb") as stream:
            stream.write(start)
            stream.truncate(nbytes)

    kinds: dict[str, Callable[[], object]] = {
        "a pipe": lambda: os.mkfifo(file),
        "endless": lambda: file.symlink_to("/dev/zero"),
        "a terminal": lambda: file.symlink_to("/dev/tty"),
        "a folder": lambda: file.mkdir(),
        "a loop": lambda: file.symlink_to(file),
        "a link to nothing": lambda: file.symlink_to(file.parent / "nothing"),
        "sparse": lambda: sparse(b"", rng.choice([10**9, 10**10, 10**12])),
        "sparse behind an entry": lambda: sparse(data, rng.choice([10**9, 10**10, 10**12])),
    }
    kind = rng.choice(sorted(kinds))
    kinds[kind]()
    return kind
