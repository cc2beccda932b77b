"""The LaCT layer in the paper's three kinds of data, in small: text, posed images, video.

    python benchmarks/lact_tasks.py --task text --out lact_text.json --plot lact_text.png
    python benchmarks/lact_tasks.py --task views --out lact_views.json --plot lact_views.png
    python benchmarks/lact_tasks.py --task video --out lact_video.json --plot lact_video.png

Everything is trained from random weights on data made here or shipped with Python. The file is written as rows come;
`--resume` goes on, `--minutes` stops before a row that would start later.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any

import torch
from _common import parser
from _running import Run, digest, use_threads

SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "text": {
        "full": {"context": 4096, "steps": 150, "eval_contexts": 16, "chunks": [64, 1024, 4096]},
        "smoke": {"context": 256, "steps": 2, "eval_contexts": 2, "chunks": [64], "dim": 32, "layers": 1},
        "common": {"dim": 64, "heads": 2, "layers": 2, "window": 32, "chunk": 256, "batch": 1, "rate": 6e-3},
    },
    "views": {
        "full": {"steps": 400, "eval_scenes": 24, "views": [2, 4, 8, 16, 32]},
        "smoke": {"steps": 2, "eval_scenes": 2, "views": [2, 16], "dim": 32, "layers": 1},
        "common": {"dim": 64, "heads": 2, "layers": 3, "size": 16, "patch": 4, "targets": 4, "batch": 4, "rate": 3e-3},
    },
    "video": {
        "full": {"steps": 400, "eval_clips": 32, "frames": 8},
        "smoke": {"steps": 2, "eval_clips": 2, "frames": 3, "dim": 32, "layers": 1},
        "common": {"dim": 64, "heads": 2, "layers": 3, "size": 16, "patch": 4, "batch": 4, "rate": 3e-3},
    },
}


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    made = parser(__doc__.splitlines()[0], data=False, plot=True)
    made.add_argument("--task", required=True, choices=sorted(SIZES))
    made.add_argument("--seeds", type=int, default=3, help="trainings of every setting")
    made.add_argument("--steps", type=int, help="training steps; default: the task's own")
    made.add_argument("--rate", type=float, help="learning rate; default: the task's own")
    made.add_argument("--base-rate", type=float, default=0.01, help="rate of LaCT's tokens at initialisation")
    made.add_argument("--parts", nargs="*", help="only these parts: text has mixers, rules, forms, chunks and states")
    made.add_argument("--kinds", nargs="*", help="only these ways to mix tokens: lact, linear, window, full")
    made.add_argument("--smoke", action="store_true", help="smallest sizes, to see that everything runs")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--minutes", type=float, help="stop before a row that would start later than this")
    made.add_argument("--resume", action="store_true", help="keep the rows of --out that would come out the same")
    options = made.parse_args(arguments)
    sizes = SIZES[options.task]
    for name, value in {**sizes["common"], **sizes["smoke" if options.smoke else "full"]}.items():
        if getattr(options, name, None) is None:
            setattr(options, name, value)
    return options


def main(arguments: list[str] | None = None) -> None:
    options = options_of(arguments)
    use_threads(options)
    task = importlib.import_module(f"_lact_tasks_{options.task}")
    hidden = ("out", "plot", "resume", "minutes", "parts", "kinds", "seeds", "smoke", "threads")
    settings = {name: value for name, value in vars(options).items() if name not in hidden}
    source = task.Corpus(options.context) if options.task == "text" else task.Source(options)
    chosen = [job for job in task.jobs(options) if options.parts is None or job["part"] in options.parts]
    chosen = [job for job in chosen if options.kinds is None or job["kind"] in options.kinds]
    depends = digest(settings, source.describe(), torch.__version__)
    run = Run(
        options,
        f"lact_{options.task}",
        {**settings, **source.describe()},
        [{**job, "depends": depends} for job in chosen],
    )
    run.measure(lambda job: task.measure(job, options, source))
    if options.plot:
        from _lact_tasks_plot import draw

        draw(options.task, run.rows, settings, options.plot)


if __name__ == "__main__":
    main()
