"""Command line of the pretraining: ``python -m tttabpfn.pretraining --config cpu --out DIR``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from tttabpfn.pretraining import state
from tttabpfn.pretraining.arguments import argument_parser, parse
from tttabpfn.pretraining.export import build_model
from tttabpfn.pretraining.parallel import launch
from tttabpfn.pretraining.schedule import annealed
from tttabpfn.pretraining.train import train


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Parameters
    ----------
    argv : list of str or None
        Arguments; None takes those of the process.

    Returns
    -------
    int
        0 on success, 2 on a bad argument or configuration.
    """
    parser = argument_parser("python -m tttabpfn.pretraining", "Train a base checkpoint.")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for checkpoints and the exported weights")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in DIR")
    parser.add_argument("--minutes", type=float, help="wall-clock budget, in place of the configuration's")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--save-every", type=float, default=120.0, metavar="SECONDS", help="between checkpoints")
    parser.add_argument("--init", metavar="STATE", help="start from the weights of another run's state.pt")
    parser.add_argument(
        "--decay-minutes", type=float, metavar="M", help="branch off the run of --init and decay to zero in M minutes"
    )
    parser.add_argument("--log", metavar="FILE", help="write one JSON line a step instead of a progress bar")
    options, config = parse(parser, argv)
    try:
        if options.minutes is not None:
            if options.minutes <= 0:
                raise ValueError(f"--minutes must be > 0, got {options.minutes}")
            schedule = dataclasses.replace(config.schedule, minutes=options.minutes, steps=0)
            config = dataclasses.replace(config, schedule=schedule)
        if config.processes > 1 and options.device != "cpu":
            raise ValueError(f"processes: one alone trains on {options.device!r}, got {config.processes}")
        if options.init is not None and not Path(options.init).exists():
            raise FileNotFoundError(f"no checkpoint {options.init}")
        if options.decay_minutes is not None:
            if options.init is None or options.resume or options.minutes is not None:
                raise ValueError("--decay-minutes needs --init, and goes without --resume and --minutes")
            seconds = float(state.read(options.init, torch.device("cpu"))["seconds"])
            config = annealed(config, seconds, options.decay_minutes)
        build_model(config.architecture, config.model, config.seed)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    start: dict[str, Any] = {"device": options.device, "resume": options.resume, "init": options.init}
    start["go_on"] = options.decay_minutes is not None
    launch(config.processes, train, config, options.out, start, options.save_every, options.log)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
