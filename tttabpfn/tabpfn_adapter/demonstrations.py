"""Demonstrations as the base's input tensors, and logits of queries given a context."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from tabpfn import TabPFNClassifier
from tabpfn.preprocessing.clean import clean_data_transform
from tabpfn.preprocessing.datamodel import FeatureModality
from tabpfn.utils import get_autocast_context
from tabpfn.validation import check_input_shape_matches, ensure_compatible_predict_input_sklearn
from torch import Tensor, nn

from tttabpfn.tabpfn_adapter.base import CPU_CELLS_PER_PASS, Base, castable_copies, private_copies
from tttabpfn.tabpfn_adapter.estimator import HALF_PRECISIONS
from tttabpfn.tabpfn_adapter.row_embeddings import RowEmbeddings, given_rows, has_row_stage, multiclass


@dataclass(frozen=True)
class _Member:
    """One ensemble member's view of all demonstrations."""

    rows: Tensor
    labels: Tensor
    class_order: Tensor
    schema: Any
    torch_preprocessor: Any
    model_index: int


@dataclass(frozen=True)
class Demonstrations:
    """All demonstrations as the base's input tensors, once per ensemble member.

    Preprocessing is fitted on the context rows, as it will be at predict, and applied to every demonstration; an
    episode then only picks rows.

    Parameters
    ----------
    members : tuple
        One view per ensemble member.
    labels : Tensor of shape (N,)
        Class codes in the order of ``classes_``.
    n_classes : int
        Number of classes.
    temperature : float
        Softmax temperature of the predictions.
    autocast : bool, default=False
        Whether predictions run under autocast, by the user's wish; what is scored without gradients then does, too.
    weights : Tensor of shape (N,) or None
        Of the rows in losses; None: all the same.
    half : dtype, optional
        Half precision that predictions are forced into, by the user's wish; likewise.
    """

    members: tuple[_Member, ...]
    labels: Tensor
    n_classes: int
    temperature: float
    autocast: bool = False
    weights: Tensor | None = None
    half: torch.dtype | None = None

    @property
    def n_members(self) -> int:
        """Number of ensemble members."""
        return len(self.members)

    def of_members(self, members: Sequence[int]) -> Demonstrations:
        """The views of some members, by position; the rows are shared."""
        return dataclasses.replace(self, members=tuple(self.members[position] for position in members))

    @property
    def nbytes(self) -> int:
        """Size of all members' rows in bytes."""
        return sum(member.rows.nbytes for member in self.members)

    @property
    def columns(self) -> int:
        """Widest member's number of prepared columns."""
        return max(member.rows.shape[1] for member in self.members)


def prepare_demonstrations(
    inner: TabPFNClassifier, base: Base, X: Any, labels: np.ndarray, weights: np.ndarray | None = None
) -> Demonstrations:
    """Run every demonstration through a fitted TabPFN's own preprocessing.

    Parameters
    ----------
    inner : TabPFNClassifier
        Fitted on the context rows with ``fit_mode="fit_preprocessors"``.
    base : Base
        Its base.
    X : array-like of shape (N, n_features)
        All demonstrations as the user gave them.
    labels : ndarray of shape (N,), int
        Their class codes in the order of ``inner.classes_``.
    weights : ndarray of shape (N,), optional
        Of the rows in losses.

    Returns
    -------
    Demonstrations
        On the base's device.
    """
    encoded = encode_rows(inner, X)
    forced = inner.forced_inference_dtype_
    dtype = torch.float64 if forced == torch.float64 else torch.float32
    codes = torch.as_tensor(labels, dtype=torch.long, device=base.device)
    members = []
    for member in inner.executor_.ensemble_members:
        permutation = member.config.class_permutation
        order = np.arange(inner.n_classes_) if permutation is None else np.asarray(permutation)
        order_t = torch.as_tensor(order, dtype=torch.long, device=base.device)
        members.append(
            _Member(
                rows=torch.as_tensor(member.transform_X_test(encoded), dtype=dtype, device=base.device),
                labels=order_t[codes].to(dtype),
                class_order=order_t,
                schema=member.feature_schema,
                torch_preprocessor=member.gpu_preprocessor,
                model_index=member.config._model_index,
            )
        )
    return Demonstrations(
        tuple(members),
        codes,
        int(inner.n_classes_),
        temperature=float(inner.softmax_temperature_),
        autocast=bool(inner.use_autocast_),
        weights=None if weights is None else torch.as_tensor(weights, dtype=torch.float32, device=base.device),
        half=forced if forced in HALF_PRECISIONS else None,
    )


def encode_rows(inner: TabPFNClassifier, X: Any) -> np.ndarray:
    """Follow TabPFN's predict path up to the ensemble members."""
    check_input_shape_matches(X, estimator=inner)
    X = inner.text_transformer_.transform(inner.date_transformer_.transform(X))
    X = ensure_compatible_predict_input_sklearn(X, inner)
    return clean_data_transform(
        X,
        cat_indices=inner.inferred_feature_schema_.indices_for(FeatureModality.CATEGORICAL),
        ord_encoder=getattr(inner, "ordinal_encoder_", None),
        passthrough_inf=inner.inference_config_.PASSTHROUGH_INF,
    )


class MemberOutput(NamedTuple):
    """What ensemble members make of query rows.

    Attributes
    ----------
    logits : Tensor of shape (M, Q, K)
        Raw logits (before the softmax temperature), classes in the order of ``classes_``.
    embeddings : Tensor of shape (M, Q, E)
        The rows' embeddings; empty, of shape (0,), where they were not asked for.
    """

    logits: Tensor
    embeddings: Tensor


def member_logits(
    models: Sequence[nn.Module],
    demonstrations: Demonstrations,
    context: Tensor,
    query: Tensor,
    members: Sequence[int] | None = None,
    *,
    embeddings: bool = False,
    known_rows: RowEmbeddings | None = None,
) -> MemberOutput:
    """Logits of query rows given context rows.

    Parameters
    ----------
    models : sequence of Module
        The base's networks or private copies of them; gradients flow where they are enabled.
    demonstrations : Demonstrations
        Rows of all members.
    context, query : Tensor of shape (n,), (Q,), int64
        Positions of the demonstrations that play the context and the queries.
    members : sequence of int, optional
        Ensemble members to run, by default all.
    embeddings : bool, default=False
        Also return the query rows' embeddings.
    known_rows : RowEmbeddings, optional
        Where row embeddings are kept; the networks must then be private copies whose row stage is the base's.

    Returns
    -------
    MemberOutput
        Of the chosen members, in the given order.
    """
    chosen = list(range(demonstrations.n_members)) if members is None else list(members)
    logits: dict[int, Tensor] = {}
    embedded: dict[int, Tensor] = {}
    rows = torch.cat([context, query])
    scoring = not torch.is_grad_enabled()
    autocast = scoring and demonstrations.autocast
    # Steps are taken in the base's own precision: in half of it most would be rounded away.
    half = demonstrations.half if scoring else None
    if half is not None:
        models = [model.type(half) for model in castable_copies(models)]
    for group in _groups(models, demonstrations, chosen, len(rows)):
        for positions, x, categorical, given in _batches(demonstrations, group, rows, len(context), known_rows):
            model = models[demonstrations.members[positions[0]].model_index]
            y = torch.stack([demonstrations.members[m].labels[context] for m in positions], dim=1)
            if half is not None:
                x, y = x.to(half), y.to(half)
            known = nullcontext() if given is None else given_rows(model, given)
            with known, get_autocast_context(rows.device, enabled=autocast):
                output = model(
                    x,
                    y if len(positions) > 1 else y[:, 0],
                    only_return_standard_out=not embeddings,
                    categorical_inds=categorical,
                    performance_options=_gradient_options(model),
                    **multiclass(model),
                )
            standard = output["standard"] if embeddings else output
            for position, m in enumerate(positions):
                logits[m] = standard[:, position].float()[:, demonstrations.members[m].class_order]
                if embeddings:
                    embedded[m] = output["test_embeddings"][:, position].float()
    return MemberOutput(
        torch.stack([logits[m] for m in chosen]),
        torch.stack([embedded[m] for m in chosen]) if embeddings else logits[chosen[0]].new_empty(0),
    )


def keep_row_embeddings(models: Sequence[nn.Module], demonstrations: Demonstrations) -> RowEmbeddings | None:
    """An empty place for the row embeddings of demonstrations.

    None if the networks have no separate row stage, or run it in half precision where they predict.
    """
    if demonstrations.autocast or demonstrations.half is not None or not all(has_row_stage(model) for model in models):
        return None

    def prepare(member: int, rows: Tensor, n_context: int) -> tuple[Tensor, Tensor, int]:
        own = demonstrations.members[member]
        return _member_input(own, rows, n_context)[0], own.labels[rows], own.model_index

    frozen = private_copies(models, [{}] * len(models), trainable=False)
    return RowEmbeddings(frozen, len(demonstrations.labels), prepare)


def _groups(models: Sequence[Any], demonstrations: Demonstrations, chosen: list[int], n_rows: int) -> list[list[int]]:
    """Members that may share a forward pass: same network, same shape, on a network that batches members."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for m in chosen:
        member = demonstrations.members[m]
        batches = models[member.model_index].estimator_batch_budget.rows > 0
        key = (member.model_index, tuple(member.rows.shape)) if batches else ("alone", m)
        groups.setdefault(key, []).append(m)
    if demonstrations.labels.device.type != "cpu":
        return list(groups.values())
    size = max(1, CPU_CELLS_PER_PASS // (n_rows * max(1, demonstrations.columns)))
    return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]


_Batch = tuple[list[int], Tensor, list[list[int]], Tensor | None]


def _batches(
    demonstrations: Demonstrations, group: list[int], rows: Tensor, n_context: int, known_rows: RowEmbeddings | None
) -> Iterator[_Batch]:
    """Members, inputs (R, B, C), categorical columns and known row embeddings of each forward pass of a group."""
    if known_rows is not None:
        given = torch.cat([known_rows.get(m, rows[:n_context], rows[n_context:]) for m in group])
        yield group, given.new_zeros(len(rows), len(group), 1), [[] for _ in group], given
        return
    prepared = [_member_input(demonstrations.members[m], rows, n_context) for m in group]
    alike = len({tuple(x.shape) for x, _ in prepared}) == 1
    for part in [range(len(group))] if alike else [[position] for position in range(len(group))]:
        x = torch.cat([prepared[position][0] for position in part], dim=1)
        yield [group[position] for position in part], x, [prepared[position][1] for position in part], None


def _member_input(member: _Member, rows: Tensor, n_context: int) -> tuple[Tensor, list[int]]:
    x = member.rows[rows].unsqueeze(1)
    schema = member.schema
    if member.torch_preprocessor is not None:
        result = member.torch_preprocessor(x, feature_schema=schema, num_train_rows=n_context, use_fitted_cache=False)
        x, schema = result.x.to(member.rows.dtype), result.feature_schema
    return x, schema.indices_for(FeatureModality.CATEGORICAL)


def _gradient_options(model: Any) -> Any:
    """The whole table in one pass: chunked inference would only add overhead at TTT's sizes."""
    return dataclasses.replace(model.get_default_performance_options(), use_chunkwise_inference=False)
