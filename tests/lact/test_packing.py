"""Packed sequences against each of them run apart."""

from __future__ import annotations

import pytest
import torch

from tests.fast_weights.tolerances import RTOL_EXACT, relative_max
from tests.lact.test_lact_operation import draw
from tests.lact.test_state import flat_gradient
from tttabpfn.lact import LaCTSwiGLU, lact_swiglu
from tttabpfn.lact.packing import packed_window_attention
from tttabpfn.lact.window import window_attention

F64 = RTOL_EXACT[torch.float64]
LENGTHS = [[11], [4, 7], [1, 0, 4, 3, 3], [5, 5, 1], [0, 11, 0]]


def part(inputs, momentum, start, stop):
    tokens = [value[:, start:stop] for value in inputs[3:]]
    return [*inputs[:3], *tokens], None if momentum is None else momentum[:, start:stop]


def spans(lengths):
    stops = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    return [(stop - length, stop) for stop, length in zip(stops, lengths, strict=True)]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("order", ["causal", "causal-prenorm"])
@pytest.mark.parametrize("muon", [False, True])
def test_packed_sequences_equal_each_alone(lengths, order, muon):
    inputs, momentum = draw()
    options = {"order": order, "chunk_size": 2, "muon": muon}
    o, weights = lact_swiglu(*inputs, lengths=lengths, momentum=momentum, **options)
    for index, (start, stop) in enumerate(spans(lengths)):
        apart, factors = part(inputs, momentum, start, stop)
        wanted_o, wanted = lact_swiglu(*apart, momentum=factors, **options)
        if stop > start:
            assert relative_max(o[:, start:stop], wanted_o) < F64
        for got, one in zip(weights, wanted, strict=True):
            assert relative_max(got[index], one) < F64


def test_packed_operators_stay_in_their_sequence_and_keep_their_order():
    inputs, _ = draw()
    operators = [(5, 8, True, True), (0, 4, True, False), (8, 11, False, True), (1, 3, False, True), (4, 5, True, True)]
    o, _ = lact_swiglu(*inputs, order="operators", operators=operators, lengths=[4, 7])
    first, second = part(inputs, None, 0, 4)[0], part(inputs, None, 4, 11)[0]
    own = [(1, 4, True, True), (4, 7, False, True), (0, 1, True, True)]
    second_o, _ = lact_swiglu(*second, order="operators", operators=own)
    first_o, _ = lact_swiglu(*first, order="operators", operators=[(0, 4, True, False), (1, 3, False, True)])
    wanted = torch.cat([second_o[:, :6], first_o, second_o[:, 6:]], dim=1)
    assert relative_max(o, wanted) < F64


def test_a_window_across_two_sequences_is_refused():
    inputs, _ = draw()
    with pytest.raises(ValueError, match=r"operators\[0\] must stay inside one of the packed sequences of lengths"):
        lact_swiglu(*inputs, order="operators", operators=[(3, 5, True, True)], lengths=[4, 7])


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("window", [1, 3, 20])
def test_packed_window_attention_equals_each_alone(lengths, window):
    inputs, _ = draw()
    q, k, v = inputs[3:6]
    o = packed_window_attention(q, k, v, window, lengths)
    for start, stop in spans(lengths):
        if stop > start:
            alone = window_attention(q[:, start:stop], k[:, start:stop], v[:, start:stop], window)
            assert relative_max(o[:, start:stop], alone) < F64


MODES = [{}, {"chunk_size": 2}, {"mode": "causal", "chunk_size": 3, "window_size": 4, "momentum": True}]


@pytest.mark.parametrize("options", MODES, ids=str)
@pytest.mark.parametrize("lengths", [[4, 0, 6], [[4, 6], [10, 0]]], ids=str)
def test_the_layer_packs_with_the_gradients_of_sequences_apart(options, lengths):
    net = LaCTSwiGLU(6, n_heads=2, generator=torch.Generator().manual_seed(0), **options).double()
    x = torch.randn(2, 10, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = net(x, lengths=lengths)
    rows = lengths if isinstance(lengths[0], list) else [lengths, lengths]
    apart = [torch.cat([net(part) for part in x[i : i + 1].split(row, dim=1)], 1) for i, row in enumerate(rows)]
    wanted = torch.cat(apart)
    assert relative_max(y, wanted) < F64
    assert relative_max(flat_gradient(net, y), flat_gradient(net, wanted)) < F64


def test_nothing_leaks_from_one_sequence_to_the_next():
    net = LaCTSwiGLU(6, mode="causal", chunk_size=2, window_size=4).double()
    x = torch.randn(1, 10, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    changed = x.clone()
    changed[:, :5] = 7.0
    before, after = net(x, lengths=[5, 5]), net(changed, lengths=[5, 5])
    assert torch.equal(before[:, 5:], after[:, 5:])
    assert relative_max(after[:, :5], before[:, :5]) > 1e-3


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([5, 5], "lengths must sum to the number of tokens, 11, got"),
        ([], "lengths must be a non-empty list of integers"),
        ([12, -1], "lengths must be a non-empty list of integers of 0 or more"),
        ([5.5, 5.5], "lengths must be a non-empty list of integers of 0 or more"),
    ],
)
def test_bad_lengths_are_refused(lengths, message):
    inputs, _ = draw()
    with pytest.raises(ValueError, match=message):
        lact_swiglu(*inputs, chunk_size=2, lengths=lengths)


def test_bad_lengths_of_rows_are_refused():
    x = torch.zeros(2, 11, 6)
    with pytest.raises(ValueError, match="lengths must be one list, or a list for each of the 2 rows"):
        LaCTSwiGLU(6)(x, lengths=[[11]])
    with pytest.raises(ValueError, match='lengths must be one list for all rows with mode="operators"'):
        LaCTSwiGLU(6, mode="operators")(x, operators=[(0, 1, True, True)], lengths=[[11], [11]])
