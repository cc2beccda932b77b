"""Measurements in a process of their own, so that memory peaks and first calls are nobody else's."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

RESULT = "RESULT "


def in_fresh_process(script: str, job: dict[str, Any], threads: int, minutes: float = 60.0) -> dict[str, Any]:
    """Run ``script --worker JOB`` and return what its `answer` sent back; a worker that fails is a row that says so."""
    command = [sys.executable, script, "--worker", json.dumps(job)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    try:
        run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60 * minutes)
    except subprocess.TimeoutExpired:
        return {"error": f"stopped after {minutes:g} minutes"}
    lines = [line for line in run.stdout.splitlines() if line.startswith(RESULT)]
    if run.returncode or not lines:
        return {"error": (run.stderr.strip().splitlines() or ["no output"])[-1], "exit_status": run.returncode}
    return json.loads(lines[-1].removeprefix(RESULT))


def answer(worker: Callable[[dict[str, Any]], dict[str, Any]], argument: str) -> None:
    """The worker's side: run the job and send its row, with the peak of this process's memory."""
    found = worker(json.loads(argument))
    print(RESULT + json.dumps({**found, "peak_bytes": peak_bytes()}, default=float))


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
