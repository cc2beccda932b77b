"""Command line of the pretraining: ``python -m tttabpfn.pretraining --config cpu --out DIR``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from tttabpfn.pretraining.arguments import argument_parser, parse
from tttabpfn.pretraining.train import StepReport, Trainer


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
    parser.add_argument("--log", metavar="FILE", help="write one JSON line a step instead of a progress bar")
    options, config = parse(parser, argv)
    try:
        if options.minutes is not None:
            if options.minutes <= 0:
                raise ValueError(f"--minutes must be > 0, got {options.minutes}")
            schedule = dataclasses.replace(config.schedule, minutes=options.minutes, steps=0)
            config = dataclasses.replace(config, schedule=schedule)
        trainer = Trainer(config, options.out, device=options.device, resume=options.resume, init=options.init)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    if options.log is None:
        trainer.run(save_every=options.save_every)
        return 0
    with Path(options.log).open("a", encoding="utf-8", buffering=1) as log:

        def write(record: StepReport) -> None:
            log.write(json.dumps(dataclasses.asdict(record)) + "\n")

        trainer.run(save_every=options.save_every, report=write)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
