"""Pack a run's checkpoint into one small safetensors file that can be kept with the code, and unpack it again.

    python -m tttabpfn.pretraining.snapshot pack RUN FILE --config cpu_v2
    python -m tttabpfn.pretraining.snapshot unpack FILE RUN

A run in the folder RUN goes on after `unpack` with ``python -m tttabpfn.pretraining --out RUN --resume``.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tttabpfn.pretraining import state
from tttabpfn.pretraining.config import TrainConfig, load_config

FORMAT = 1
HALF = {"model": torch.float16, "ema": torch.float16, "optimizer": torch.bfloat16}
"""Types of what is kept: weights need the digits, moments the range."""


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, value in record.items():
        out.update({prefix + name: value} if isinstance(value, Tensor) else _flat(value, f"{prefix}{name}|"))
    return out


def pack(run: str | Path, file: str | Path, config: TrainConfig, notes: Mapping[str, Any] | None = None) -> Path:
    """Write weights, running average and moments of a run in half precision, whole or not at all.

    Parameters
    ----------
    run : str or Path
        Folder that holds the checkpoint.
    file : str or Path
        Destination; it is replaced.
    config : TrainConfig
        What the run was last trained with; it goes into the header.
    notes : mapping or None
        Further plain values for the header.

    Returns
    -------
    Path
        `file`.

    Raises
    ------
    FileNotFoundError
        If the folder holds no checkpoint.
    """
    record = state.read(state.path(run), torch.device("cpu"))
    tensors = {
        name: (value.to(HALF[name.split("|")[0]]) if value.is_floating_point() else value).contiguous()
        for name, value in _flat({part: record[part] for part in HALF}).items()
    }
    header = {
        "format": FORMAT,
        "step": record["step"],
        "seconds": record["seconds"],
        "config": config.as_dict(),
        "notes": dict(notes or {}),
    }
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(file.name + ".part")
    save_file(tensors, scratch, metadata={"tttabpfn_pretraining": json.dumps(header, sort_keys=True)})
    os.replace(scratch, file)
    return file


def read_header(file: str | Path) -> dict[str, Any]:
    """Read what a snapshot says of itself.

    Parameters
    ----------
    file : str or Path
        Written by `pack`.

    Returns
    -------
    dict
        ``step``, ``seconds`` (wall-clock spent), ``config`` (nested plain values), ``notes`` and ``format``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not a snapshot of this format.
    """
    if not Path(file).exists():
        raise FileNotFoundError(f"no snapshot {file}")
    with safe_open(str(file), "pt") as opened:
        text = (opened.metadata() or {}).get("tttabpfn_pretraining")
    header = json.loads(text) if text else {}
    if header.get("format") != FORMAT:
        raise ValueError(f"{file} must be a snapshot of format {FORMAT}, got format {header.get('format')}")
    return dict(header)


def unpack(file: str | Path, run: str | Path) -> Path:
    """Restore the checkpoint of a run from a snapshot.

    Parameters
    ----------
    file : str or Path
        Written by `pack`.
    run : str or Path
        Folder of the run; made if missing.

    Returns
    -------
    Path
        The checkpoint.

    Raises
    ------
    FileExistsError
        If the folder holds a checkpoint already.
    """
    header = read_header(file)
    target = state.path(run)
    if target.exists():
        raise FileExistsError(f"{target} exists; move it away, or give another folder")
    record: dict[str, Any] = {"step": header["step"], "seconds": header["seconds"]}
    record.update({part: {} for part in HALF})
    with safe_open(str(file), "pt") as opened:
        for name in opened.keys():  # noqa: SIM118 - the handle is no mapping
            *path, last = name.split("|")
            value, place = opened.get_tensor(name), record
            for part in path:
                place = place.setdefault(part, {})
            place[last] = value.float() if value.is_floating_point() else value
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(target.name + ".part")
    torch.save(record, scratch)
    os.replace(scratch, target)
    return target


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Parameters
    ----------
    argv : list of str or None
        Arguments; None takes those of the process.

    Returns
    -------
    int
        0 on success, 2 on a bad argument.
    """
    parser = argparse.ArgumentParser("python -m tttabpfn.pretraining.snapshot", description="Keep a run's state small.")
    actions = parser.add_subparsers(dest="action", required=True)
    packing = actions.add_parser("pack", help="from the folder of a run to one file")
    packing.add_argument("run", metavar="RUN")
    packing.add_argument("file", metavar="FILE")
    packing.add_argument("--config", required=True, help="TOML file, or the name of a shipped one")
    packing.add_argument("--notes", default="{}", metavar="JSON", help="further values for the header")
    unpacking = actions.add_parser("unpack", help="from one file to the folder of a run")
    unpacking.add_argument("file", metavar="FILE")
    unpacking.add_argument("run", metavar="RUN")
    options = parser.parse_args(argv)
    try:
        if options.action == "pack":
            pack(options.run, options.file, load_config(options.config), json.loads(options.notes))
        else:
            unpack(options.file, options.run)
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
