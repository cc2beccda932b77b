"""SHA-256 of nested values, the same in every process.

Every value is written to SHA-256 as a token: a type tag and a length, then the bytes. Tokens are prefix-free, so values
of different type or nesting cannot run into one another. Nothing depends on object identity, ``hash()`` or pickle.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import fractions
import hashlib
import struct
import uuid
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

import numpy as np
import torch


class Hasher:
    """SHA-256 over tagged tokens; knows how to walk nested values.

    Parameters
    ----------
    write_other : callable
        ``write_other(hasher, value)`` writes a value of a type that is not known here; False if it does not know it.
    """

    def __init__(self, write_other: Callable[[Hasher, Any], bool]) -> None:
        self._sha = hashlib.sha256()
        self._write_other = write_other

    def token(self, tag: str, payload: Any = b"") -> None:
        """Write one tagged piece of bytes (any contiguous buffer of single bytes)."""
        name = tag.encode("utf-8", "surrogatepass")
        self._sha.update(struct.pack("<QQ", len(name), len(payload)))
        self._sha.update(name)
        self._sha.update(payload)

    def text(self, tag: str, value: str) -> None:
        """Write one tagged string."""
        self.token(tag, value.encode("utf-8", "surrogatepass"))

    def count(self, tag: str, number: int) -> None:
        """Open a group of `number` members."""
        self.token(tag, struct.pack("<Q", number))

    def array(self, values: np.ndarray) -> None:
        """Write dtype, shape and values of an array, in C order whatever its layout."""
        dtype = values.dtype
        self.text("ndarray", dtype.str if dtype.names is None else repr(dtype.descr))
        self.token("shape", struct.pack(f"<{values.ndim}Q", *values.shape))
        if dtype.names is not None:
            for name in dtype.names:
                self.array(values[name])
        elif dtype.kind == "O" or dtype.kind == "T":
            self.objects(values.ravel().tolist())
        elif dtype.kind in "fc" and dtype.itemsize > (8 if dtype.kind == "f" else 16):
            self._extended(values)
        else:
            flat = np.ascontiguousarray(values).reshape(-1)
            self.token("values", flat.view(np.uint8).data if flat.nbytes else b"")

    def _extended(self, values: np.ndarray) -> None:
        # Extended precision has padding bytes of no meaning: write it as a sum of two doubles instead.
        parts = [values.real, values.imag] if values.dtype.kind == "c" else [values]
        with np.errstate(all="ignore"):
            for part in parts:
                high = part.astype(np.float64)
                self.array(high)
                self.array((part - high).astype(np.float64))

    def objects(self, values: list[Any]) -> None:
        """Write a list of scalars of any types; a list of strings goes fast."""
        if values and set(map(type, values)) == {str}:
            encoded = [value.encode("utf-8", "surrogatepass") for value in values]
            self.array(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)))
            self.token("strings", b"".join(encoded))
            return
        self.count("objects", len(values))
        for value in values:
            self.value(value)

    def unordered(self, tag: str, members: list[tuple[Any, ...]]) -> None:
        """Write members whose order does not count: each one's digest, sorted."""
        digests = []
        for member in members:
            inner = Hasher(self._write_other)
            for part in member:
                inner.value(part)
            digests.append(inner._sha.digest())
        self.count(tag, len(digests))
        self.token("digests", b"".join(sorted(digests)))

    def value(self, value: Any) -> None:
        """Write any supported value."""
        writer = _WRITERS.get(type(value))
        if writer is not None:
            writer(self, value)
        elif not (_write_library(self, value) or self._write_other(self, value)):
            _write_subclass(self, value)

    def hexdigest(self) -> str:
        """Return the SHA-256 of all tokens so far, in hex."""
        return self._sha.hexdigest()


def qualified_name(kind: type) -> str:
    """Return module and name of a type."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _write_int(hasher: Hasher, value: int) -> None:
    hasher.token("int", value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))


def _write_sequence(tag: str) -> Callable[[Hasher, Any], None]:
    def write(hasher: Hasher, value: Any) -> None:
        hasher.count(tag, len(value))
        for member in value:
            hasher.value(member)

    return write


def _write_datetime(tag: str) -> Callable[[Hasher, Any], None]:
    def write(hasher: Hasher, value: Any) -> None:
        hasher.text(tag, f"{value.isoformat()}|{getattr(value, 'fold', 0)}|{getattr(value, 'tzinfo', None)}")

    return write


_WRITERS: dict[type, Callable[[Hasher, Any], None]] = {
    type(None): lambda hasher, value: hasher.token("None"),
    type(...): lambda hasher, value: hasher.token("Ellipsis"),
    bool: lambda hasher, value: hasher.token("bool", bytes([value])),
    int: _write_int,
    float: lambda hasher, value: hasher.token("float", struct.pack("<d", value)),
    complex: lambda hasher, value: hasher.token("complex", struct.pack("<dd", value.real, value.imag)),
    str: lambda hasher, value: hasher.text("str", value),
    bytes: lambda hasher, value: hasher.token("bytes", value),
    bytearray: lambda hasher, value: hasher.token("bytearray", bytes(value)),
    list: _write_sequence("list"),
    tuple: _write_sequence("tuple"),
    dict: lambda hasher, value: hasher.unordered("dict", list(value.items())),
    set: lambda hasher, value: hasher.unordered("set", [(member,) for member in value]),
    frozenset: lambda hasher, value: hasher.unordered("frozenset", [(member,) for member in value]),
    datetime.datetime: _write_datetime("datetime"),
    datetime.date: _write_datetime("date"),
    datetime.time: _write_datetime("time"),
    datetime.timedelta: lambda hasher, value: hasher.text(
        "timedelta", f"{value.days}|{value.seconds}|{value.microseconds}"
    ),
    decimal.Decimal: lambda hasher, value: hasher.text("Decimal", str(value)),
    fractions.Fraction: lambda hasher, value: hasher.text("Fraction", str(value)),
    uuid.UUID: lambda hasher, value: hasher.text("UUID", value.hex),
    torch.dtype: lambda hasher, value: hasher.text("torch.dtype", str(value)),
    torch.device: lambda hasher, value: hasher.text("torch.device", str(value)),
}


def _write_tensor(hasher: Hasher, value: torch.Tensor) -> None:
    if value.layout != torch.strided or value.is_quantized:
        raise TypeError(f"cannot fingerprint a tensor of layout {value.layout} and dtype {value.dtype}: make it dense")
    plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
    hasher.text("tensor", str(plain.dtype))
    hasher.token("shape", struct.pack(f"<{plain.ndim}Q", *plain.shape))
    hasher.token("values", plain.reshape(-1).view(torch.uint8).numpy().data if plain.numel() else b"")


def _write_library(hasher: Hasher, value: Any) -> bool:
    """Write values of NumPy, torch, enum, path and dataclass types; False if `value` is none of them."""
    if isinstance(value, torch.Tensor):
        _write_tensor(hasher, value)
    elif isinstance(value, np.ma.MaskedArray):
        hasher.token("masked")
        hasher.array(np.ma.getmaskarray(value))
        hasher.array(np.asarray(value.filled()))
    elif isinstance(value, np.ndarray):
        hasher.array(np.asarray(value))
    elif isinstance(value, np.generic):
        hasher.token("scalar")
        hasher.array(np.asarray(value))
    elif isinstance(value, np.dtype):
        hasher.text("dtype", value.str if value.names is None else repr(value.descr))
    elif isinstance(value, enum.Enum):
        hasher.text("enum", f"{qualified_name(type(value))}.{value.name}")
        hasher.value(value.value)
    elif isinstance(value, PurePath):
        hasher.text("path", value.as_posix())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        hasher.text("dataclass", qualified_name(type(value)))
        hasher.unordered("fields", [(field.name, getattr(value, field.name)) for field in fields])
    else:
        return False
    return True


def _write_subclass(hasher: Hasher, value: Any) -> None:
    """Write a subclass of a built-in type, such as a named tuple, as its base and its type's name."""
    for base in type(value).__mro__[1:]:
        writer = _WRITERS.get(base)
        if writer is not None:
            hasher.text("subclass", qualified_name(type(value)))
            writer(hasher, value)
            return
    raise TypeError(f"cannot fingerprint a value of type {qualified_name(type(value))}: its content is not known")
