"""The training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from tttabpfn.pretraining import state
from tttabpfn.pretraining.config import TrainConfig
from tttabpfn.pretraining.export import build_model, export_checkpoint
from tttabpfn.pretraining.fast import faster
from tttabpfn.pretraining.muon import MuonAdamW
from tttabpfn.pretraining.parallel import Team
from tttabpfn.pretraining.prior.batches import Batch, BatchStream
from tttabpfn.pretraining.schedule import step_scale

UNLIMITED = 2**62


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Parameters
    ----------
    step : int
        Number of the step, from 1.
    progress : float
        Share of the schedule that is over.
    loss, accuracy : float
        Mean over the query rows of the batch, before the update.
    rows : int
        Rows in the batch, context and queries.
    seconds, waited : float
        Wall-clock of the step, and the share of it spent waiting for the prior.
    """

    step: int
    progress: float
    loss: float
    accuracy: float
    rows: int
    seconds: float
    waited: float


class Trainer:
    """One training run: model, running average, optimiser, and where it stands.

    Parameters
    ----------
    config : TrainConfig
        What to train, on what, for how long.
    out : str or Path
        Folder for checkpoints and the exported weights; made if missing.
    device : str
        Device the model is trained on.
    resume : bool
        Whether to go on from the checkpoint in `out`, if there is one.
    init : str, Path or None
        Checkpoint of another run of the same architecture whose averaged weights this run starts from.
    go_on : bool
        Whether `init` gives all that a run needs to go on, so that this one is its branch, rather than weights alone.
    team : Team
        Place of this process among those that train together; by default it is alone.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: str | Path,
        *,
        device: str = "cpu",
        resume: bool = False,
        init: str | Path | None = None,
        go_on: bool = False,
        team: Team | None = None,
    ) -> None:
        self.config = config
        self.team = Team() if team is None else team
        self.out = Path(out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.device = torch.device(device)
        self.model: nn.Module = build_model(config.architecture, config.model, config.seed).to(self.device).train()
        if init is not None and not go_on:
            self.model.load_state_dict(state.read(init, self.device)["ema"])
        plan = config.schedule
        self.optimizer = MuonAdamW(
            self.model.named_parameters(),
            muon_lr=plan.muon_lr,
            adamw_lr=plan.adamw_lr,
            weight_decay=plan.weight_decay,
            half=config.precision == "bfloat16_products",
        )
        self.ema: dict[str, Tensor] = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.step = 0
        self.seconds = 0.0
        source = state.path(self.out) if resume and state.path(self.out).exists() else init if go_on else None
        if source is not None:
            self.step, self.seconds = state.load(source, self.model, self.optimizer, self.ema, self.device)
        self._forward: Callable[..., Tensor] = torch.compile(self.model, dynamic=True) if config.compile else self.model
        # v3.5 has a head for each kind of task and is told at every call which one is meant; v3 knows no such argument.
        told = "task_type" in inspect.signature(self.model.forward).parameters
        self._task = {"task_type": "multiclass"} if told else {}

    @property
    def progress(self) -> float:
        """Share of the schedule that is over, by steps where they are planned, else by seconds."""
        plan = self.config.schedule
        share = self.step / plan.steps if plan.steps else self.seconds / (60.0 * plan.minutes)
        return min(1.0, share)

    def train_step(self, batch: Batch) -> tuple[float, float]:
        """Make one update.

        Parameters
        ----------
        batch : Batch
            Tables of one shape.

        Returns
        -------
        loss, accuracy : float
            Mean over the query rows before the update.

        Raises
        ------
        FloatingPointError
            If the loss is not finite.
        """
        plan = self.config.schedule
        X = torch.from_numpy(batch.X).to(self.device)
        y = torch.from_numpy(batch.y).to(self.device)
        target = y[batch.n_train :].reshape(-1)
        half = self.config.precision == "bfloat16"
        autocast = torch.autocast(self.device.type, torch.bfloat16) if half else contextlib.nullcontext()
        with self._faster(), autocast:
            logits = self._forward(X, y[: batch.n_train].to(X.dtype), **self._task)
        logits = logits.float().reshape(target.shape[0], -1)
        loss = F.cross_entropy(logits, target, ignore_index=-100, reduction="sum")
        self.optimizer.zero_grad()
        loss.backward()
        known = target >= 0
        correct = (logits.argmax(-1) == target)[known]
        mean_loss, accuracy = self._share(torch.stack([loss.detach(), correct.sum(), known.sum()]))
        if not math.isfinite(mean_loss):
            raise FloatingPointError(f"the loss of step {self.step + 1} is {mean_loss}")
        nn.utils.clip_grad_norm_(self.model.parameters(), plan.clip)
        self.optimizer.step(step_scale(self.progress, warmup=plan.warmup, decay_from=plan.decay_from))
        self.step += 1
        self._average()
        return mean_loss, accuracy

    def _faster(self) -> contextlib.AbstractContextManager[None]:
        half = self.config.precision == "bfloat16_products"
        if self.device.type != "cpu" or not (half or self.config.kernels):
            return contextlib.nullcontext()
        return faster(self.model, kernels=self.config.kernels, half_products=half)

    def _share(self, sums: Tensor) -> tuple[float, float]:
        """Turn this process's gradients of summed losses into the team's mean gradients."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if self.team.size > 1:
            total = self.team.sum(torch.cat([g.flatten() for g in gradients] + [sums]))
            sums = total[-len(sums) :]
            for gradient, summed in zip(
                gradients, total.split([*(g.numel() for g in gradients), len(sums)]), strict=False
            ):
                gradient.copy_(summed.view_as(gradient))
        loss, correct, known = sums.tolist()
        torch._foreach_div_(gradients, max(known, 1.0))
        return loss / max(known, 1.0), correct / max(known, 1.0)

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.config.schedule.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.model.state_dict().items():
            self.ema[name].lerp_(value, 1 - decay) if value.is_floating_point() else self.ema[name].copy_(value)

    def run(
        self,
        *,
        save_every: float = 120.0,
        stop_after: int | None = None,
        report: Callable[[StepReport], None] | None = None,
    ) -> Path:
        """Train until the schedule is over, then export the running average.

        Parameters
        ----------
        save_every : float
            Seconds between checkpoints.
        stop_after : int or None
            Stop after this many steps of this call, with a checkpoint; None trains to the end.
        report : callable or None
            Called with the report of every step.

        Returns
        -------
        Path
            The exported safetensors file.
        """
        plan = self.config.schedule
        last_saved = time.monotonic()
        done = 0
        bar = tqdm(total=100, unit="%", desc="pretraining", disable=report is not None or not self.team.leads)
        with BatchStream(self.config, part=self.team.rank) as stream:
            while self.progress < 1.0 and (stop_after is None or done < stop_after):
                started = time.monotonic()
                last = plan.steps - 1 if plan.steps else UNLIMITED
                batch = stream.get(self.step, self.progress, last)
                waited = time.monotonic() - started
                loss, accuracy = self.train_step(batch)
                spent = self.team.leaders(time.monotonic() - started)
                self.seconds += spent
                done += 1
                rows = batch.y.size * self.team.size
                if report is not None and self.team.leads:
                    report(StepReport(self.step, self.progress, loss, accuracy, rows, spent, waited))
                bar.update(100 * self.progress - bar.n)
                bar.set_postfix(step=self.step, loss=f"{loss:.3f}", rows_per_s=f"{rows / spent:.0f}")
                if time.monotonic() - last_saved > save_every:
                    self.save()
                    last_saved = time.monotonic()
        bar.close()
        return self.save()

    def save(self) -> Path:
        """Write the checkpoint to resume from, and the running average as a file that TabPFN loads.

        Returns
        -------
        Path
            The safetensors file; the process that leads its team writes it.
        """
        if not self.team.leads:
            return self.out / "model.safetensors"
        state.save(self.out, self.model, self.optimizer, self.ema, self.step, self.seconds)
        return export_checkpoint(
            self.out / "model.safetensors",
            self.ema,
            architecture=self.config.architecture,
            model=self.config.model,
            inference=self.config.inference,
        )


def train(
    team: Team,
    config: TrainConfig,
    out: str | Path,
    start: dict[str, Any],
    save_every: float = 120.0,
    log: str | Path | None = None,
) -> Path:
    """Train to the end of the schedule, as a member of a team.

    Parameters
    ----------
    team : Team
        Place of this process among those that train together.
    config : TrainConfig
        What to train.
    out : str or Path
        Folder for checkpoints and the exported weights.
    start : dict
        Further arguments of `Trainer`.
    save_every : float
        Seconds between checkpoints.
    log : str, Path or None
        File that takes one JSON line a step; None shows a progress bar.

    Returns
    -------
    Path
        The exported safetensors file.
    """
    trainer = Trainer(config, out, team=team, **start)
    if log is None or not team.leads:
        return trainer.run(save_every=save_every)
    with Path(log).open("a", encoding="utf-8", buffering=1) as lines:

        def write(record: StepReport) -> None:
            lines.write(json.dumps(dataclasses.asdict(record)) + "\n")

        return trainer.run(save_every=save_every, report=write)
