"""What the command lines of pretraining have in common."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tttabpfn.pretraining.config import TrainConfig, load_config

__all__ = ["argument_parser", "parse"]


def argument_parser(program: str, description: str) -> argparse.ArgumentParser:
    """Start a command line that is led by a training configuration.

    Parameters
    ----------
    program : str
        How the user calls it.
    description : str
        First line of its help.

    Returns
    -------
    ArgumentParser
        With ``--config``; the caller adds its own options.

    Examples
    --------
    >>> argument_parser("train", "Train.").parse_args([]).config
    'cpu'
    """
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--config", default="cpu", metavar="FILE", help="TOML file, or the name of a shipped one")
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, TrainConfig]:
    """Read arguments and the configuration that they name; a bad one ends the program with status 2.

    Parameters
    ----------
    parser : ArgumentParser
        From `argument_parser`.
    argv : sequence of str or None
        Arguments; None takes those of the process.

    Returns
    -------
    options : Namespace
    config : TrainConfig

    Examples
    --------
    >>> options, config = parse(argument_parser("train", "Train."), ["--config", "cpu"])
    >>> config.architecture
    'tabpfn_v3'
    """
    options = parser.parse_args(argv)
    try:
        return options, load_config(options.config)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
