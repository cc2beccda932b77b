"""A small transformer pretrained to do linear regression in context, and TTT of it against a random start.

One task has a context of n rows (x, y) and queries x. Every token of a prompt is [x, y, 1] for a context row and
[x, 0, 0] for a query; keys and values come from the context alone, so rows are a set and queries do not see each other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

Weights = dict[str, Tensor]
QUERIES = (64, 128, 256, 512)
SHIFTS = (0.0, 0.1, 0.25, 0.5, 1.0)
RATES = (3e-4, 1e-3, 3e-3)
PLAIN_RATES = tuple(float(rate) for rate in np.logspace(-3.5, 0, 15))
LONG, SHORT = (3, 10, 30), (10,)
EVALUATED = 256


@dataclass(frozen=True)
class Setting:
    """Sizes of the experiment; the defaults fit one processor core."""

    d: int = 20
    n: int = 40
    width: int = 64
    layers: int = 3
    heads: int = 4
    batch: int = 64
    queries: int = 40
    pretrain_steps: int = 1000
    peak_rate: float = 2e-3
    known: int = 10
    tasks: int = 16
    seed: int = 0

    def variances(self, shift: float) -> Tensor:
        """Variances of the coefficients, with sum 1: a share `shift` lies where pretraining never had any."""
        known = torch.arange(self.d) < self.known
        return torch.where(known, (1 - shift) / self.known, shift / (self.d - self.known))


class Block(nn.Module):
    """A pre-norm attention and MLP block in which all tokens attend to the context rows."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor, n: int) -> Tensor:
        normed = self.norm_attention(tokens)
        split = (self.heads, tokens.shape[-1] // self.heads)
        query = self.query(normed).unflatten(-1, split).transpose(-3, -2)
        key, value = (
            part.unflatten(-1, split).transpose(-3, -2) for part in self.key_value(normed[..., :n, :]).chunk(2, -1)
        )
        scores = query @ key.transpose(-2, -1) / math.sqrt(split[1])
        mixed = (scores.softmax(-1) @ value).transpose(-3, -2).flatten(-2)
        tokens = tokens + self.out(mixed)
        return tokens + self.down(F.gelu(self.up(self.norm_mlp(tokens))))


class InContextRegressor(nn.Module):
    """Reads a labelled context, predicts the labels of the queries."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.read = nn.Linear(setting.d + 2, setting.width)
        self.blocks = nn.ModuleList(Block(setting.width, setting.heads) for _ in range(setting.layers))
        self.norm = nn.LayerNorm(setting.width)
        self.head = nn.Linear(setting.width, 1)

    def forward(self, context_x: Tensor, context_y: Tensor, query_x: Tensor) -> Tensor:
        n = context_x.shape[-2]
        context = torch.cat([context_x, context_y[..., None], torch.ones_like(context_y)[..., None]], -1)
        tokens = self.read(torch.cat([context, F.pad(query_x, (0, 2))], -2))
        for block in self.blocks:
            tokens = block(tokens, n)
        return self.head(self.norm(tokens[..., n:, :])).squeeze(-1)


def random_model(setting: Setting, seed: int) -> InContextRegressor:
    """A model with PyTorch's default initialisation, from its own seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return InContextRegressor(setting)


def draw(setting: Setting, tasks: int, rows: int, shift: float, generator: torch.Generator) -> tuple[Tensor, ...]:
    """`tasks` noiseless linear tasks of `rows` rows: x standard normal, y, and the coefficients."""
    beta = torch.randn(tasks, setting.d, generator=generator) * setting.variances(shift).sqrt()
    x = torch.randn(tasks, rows, setting.d, generator=generator)
    return x, (x @ beta[..., None]).squeeze(-1), beta


def pretrain(setting: Setting, log: Callable[[str], None]) -> tuple[InContextRegressor, dict[str, Any]]:
    """Adam on fresh prompts, warm-up then cosine; returns the model and what it cost."""
    generator = torch.Generator().manual_seed(setting.seed)
    model, n = random_model(setting, setting.seed), setting.n
    optimizer = torch.optim.Adam(model.parameters(), lr=setting.peak_rate, betas=(0.9, 0.98))
    warm = max(1, setting.pretrain_steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / setting.pretrain_steps)) + 1e-3),
    )
    start, losses, curve = time.process_time(), [], []
    for step in range(1, setting.pretrain_steps + 1):
        x, y, _ = draw(setting, setting.batch, n + setting.queries, 0.0, generator)
        loss = (model(x[:, :n], y[:, :n], x[:, n:]) - y[:, n:]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 250 == 0 or step == setting.pretrain_steps:
            curve.append([step, float(np.mean(losses[-250:]))])
            log(f"pretraining step {step}: query loss {curve[-1][1]:.4f} (predicting zero: 1)")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    seconds = time.process_time() - start
    return model, {"curve": curve, "parameters": parameters, "cpu_seconds": seconds, **asdict(setting)}


class Tasks:
    """Some tasks of one shift with k training queries each, and TTT of stacked weights on them, task by task."""

    def __init__(self, setting: Setting, k: int, shift: float) -> None:
        generator = torch.Generator().manual_seed(1000 * k + round(100 * shift) + 7)
        n = setting.n
        x, y, beta = draw(setting, setting.tasks, n + k + EVALUATED, shift, generator)
        self.context, self.train_x, self.test_x = (x[:, :n], y[:, :n]), x[:, n : n + k], x[:, n + k :]
        self.train_y, self.test_y = y[:, n : n + k], y[:, n + k :]
        self.scale = beta.square().sum(-1)
        model = random_model(setting, 0)

        def loss(weights: Weights, context: tuple[Tensor, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return (functional_call(model, weights, (*context, x)) - y).square().mean()

        self._loss, self._gradient = vmap(loss), vmap(grad(loss))

    @torch.no_grad()
    def risk(self, weights: Weights) -> np.ndarray:
        """Squared error on new queries over the variance of the labels, one number per task."""
        return (self._loss(weights, self.context, self.test_x, self.test_y) / self.scale).numpy()

    def plain_step(self, weights: Weights) -> np.ndarray:
        """Risk after one plain gradient step, shape (rates, tasks)."""
        gradient = self._gradient(weights, self.context, self.train_x, self.train_y)
        return np.stack(
            [self.risk({name: w - rate * gradient[name] for name, w in weights.items()}) for rate in PLAIN_RATES]
        )

    def adam_steps(self, weights: Weights, rate: float, budgets: tuple[int, ...]) -> list[np.ndarray]:
        """Risk after each number of full-batch Adam steps."""
        stepped = {name: w.clone().requires_grad_() for name, w in weights.items()}
        optimizer = torch.optim.Adam(stepped.values(), lr=rate)
        risks = []
        for step in range(1, max(budgets) + 1):
            optimizer.zero_grad()
            self._loss(stepped, self.context, self.train_x, self.train_y).sum().backward()
            optimizer.step()
            if step in budgets:
                risks.append(self.risk(stepped))
        return risks


def two_fold(risks: np.ndarray) -> np.ndarray:
    """Per-task risks where each half of the tasks uses the rate that is best on the other half."""
    even, odd = risks[:, ::2], risks[:, 1::2]
    chosen = np.empty(risks.shape[1])
    chosen[::2], chosen[1::2] = even[odd.mean(axis=1).argmin()], odd[even.mean(axis=1).argmin()]
    return chosen


def experiment(setting: Setting, log: Callable[[str], None]) -> list[dict[str, Any]]:
    """Pretrain, then TTT of the pretrained and of random weights over queries and shifts; all rows."""
    model, cost = pretrain(setting, log)
    rows: list[dict[str, Any]] = [{"figure": "transformer pretraining", **cost}]
    starts = {
        "pretrained": stack([model] * setting.tasks),
        "random": stack([random_model(setting, 100 + task) for task in range(setting.tasks)]),
    }
    cells = [(k, 1.0, LONG) for k in QUERIES] + [(k, s, SHORT) for s in SHIFTS[:-1] for k in (QUERIES[0], QUERIES[-1])]
    for k, shift, budgets in cells:
        tasks = Tasks(setting, k, shift)
        for start, weights in starts.items():
            by_budget = {"before": tasks.risk(weights), "1 plain": two_fold(tasks.plain_step(weights))}
            adam = np.stack([tasks.adam_steps(weights, rate, budgets) for rate in RATES], axis=1)
            by_budget |= {f"{budget} Adam": two_fold(risks) for budget, risks in zip(budgets, adam, strict=True)}
            for budget, risks in by_budget.items():
                rows.append(_row(k, shift, start, budget, risks))
            log(f"k={k} shift={shift} {start}: " + ", ".join(f"{b} {r.mean():.3f}" for b, r in by_budget.items()))
    return rows


def _row(k: int, shift: float, start: str, budget: str, risks: np.ndarray) -> dict[str, Any]:
    low, median, high = np.percentile(risks, [20, 50, 80])
    return {
        "figure": "transformer",
        "k": k,
        "shift": shift,
        "start": start,
        "steps": budget,
        "relative_risk": float(risks.mean()),
        "standard_error": float(risks.std(ddof=1) / np.sqrt(risks.size)),
        "median": float(median),
        "p20": float(low),
        "p80": float(high),
        "tasks": int(risks.size),
    }


def stack(models: list[InContextRegressor]) -> Weights:
    """Weights of several models with a leading task axis."""
    named = [dict(model.named_parameters()) for model in models]
    return {name: torch.stack([parameters[name].detach() for parameters in named]) for name in named[0]}
