"""The chunk loop against cases unrolled by hand, and gradients over micro-batches."""

from __future__ import annotations

import pytest
import torch

from tests.fast_weights.tolerances import assert_close
from tttabpfn.fast_weights.chunked import Chunk, accumulate, is_out_of_memory, plan_chunks, run_chunks

X = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)


def loop(chunks, order, observer=None):
    """Weight w; gradient: sum(x) * w; update: w - g / 10 + state, state counts; output: w * x."""
    return run_chunks(
        chunks,
        {"w": torch.tensor([2.0], dtype=torch.float64)},
        0,
        gradient=lambda chunk, weights: {"w": X[chunk.start : chunk.end].sum() * weights["w"]},
        update=lambda chunk, weights, g, state: ({"w": weights["w"] - g["w"] / 10 + state}, state + 1),
        apply=lambda chunk, weights: weights["w"] * X[chunk.start : chunk.end],
        order=order,
        observer=observer,
    )


def test_two_chunks_update_then_apply_unrolled():
    run = loop([Chunk(0, 2), Chunk(2, 5)], "update_then_apply")
    w1 = 2.0 - 3.0 * 2.0 / 10 + 0
    w2 = w1 - 12.0 * w1 / 10 + 1
    assert_close(run.weights["w"].item(), w2)
    assert_close(torch.cat(run.outputs), torch.cat([w1 * X[:2], w2 * X[2:]]))
    assert run.state == 2


def test_two_chunks_apply_then_update_unrolled():
    run = loop([Chunk(0, 2), Chunk(2, 5, update=False)], "apply_then_update")
    w1 = 2.0 - 3.0 * 2.0 / 10 + 0
    assert_close(run.weights["w"].item(), w1)
    assert_close(torch.cat(run.outputs), torch.cat([2.0 * X[:2], w1 * X[2:]]))


def test_windows_may_overlap_skip_and_go_back():
    chunks = [Chunk(3, 5, True, False), Chunk(0, 4, False, True), Chunk(2, 3, True, True)]
    seen = []
    run = loop(
        chunks, "update_then_apply", lambda chunk, weights, state: seen.append((chunk.start, weights["w"].item()))
    )
    w1 = 2.0 - 9.0 * 2.0 / 10
    w2 = w1 - 3.0 * w1 / 10 + 1
    assert_close(torch.cat(run.outputs), torch.cat([w1 * X[0:4], w2 * X[2:3]]))
    assert [start for start, _ in seen] == [3, 0, 2]
    assert_close([w for _, w in seen], [w1, w1, w2])


def test_starting_weights_are_not_touched_and_apply_is_optional():
    weights = {"w": torch.zeros(1)}
    run = run_chunks(
        [Chunk(0, 1)],
        weights,
        None,
        gradient=lambda chunk, current: None,
        update=lambda chunk, current, g, state: ({"w": current["w"] + 1}, state),
    )
    assert weights["w"].item() == 0
    assert run.weights["w"].item() == 1
    assert run.outputs == []


def test_unknown_order_is_refused():
    with pytest.raises(ValueError, match=r"order must be one of .*, got 'random'"):
        loop([Chunk(0, 1)], "random")


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (2, 2), (3, 1)])
def test_empty_and_negative_windows_are_refused(start, end):
    with pytest.raises(ValueError, match="0 <= start < end"):
        Chunk(start, end)


@pytest.mark.parametrize(
    ("length", "size", "edges"),
    [(5, 2, [(0, 2), (2, 4), (4, 5)]), (4, 2, [(0, 2), (2, 4)]), (3, 8, [(0, 3)]), (2, 1, [(0, 1), (1, 2)])],
)
def test_plan_covers_the_length_once(length, size, edges):
    assert [(chunk.start, chunk.end) for chunk in plan_chunks(length, size)] == edges
    assert [chunk.update for chunk in plan_chunks(length, size, update_last=False)] == [True] * (len(edges) - 1) + [
        False
    ]


def test_plan_refuses_sizes_below_one():
    with pytest.raises(ValueError, match="chunk_size must be 1 or more, got 0"):
        plan_chunks(3, 0)
    with pytest.raises(ValueError, match="length must be 1 or more, got 0"):
        plan_chunks(0, 3)


def squares(start, end):
    return {"sum": X[start:end].sum(), "squares": (X[start:end] ** 2).sum()}


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 100])
def test_accumulated_sums_do_not_depend_on_the_micro_batch(micro_batch):
    done = accumulate(squares, 1, 5, micro_batch)
    assert done.total["sum"].item() == 14
    assert done.total["squares"].item() == 54
    assert (done.halvings, done.notes) == (0, ())
    assert done.micro_batch == min(micro_batch, 4)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_out_of_memory_halves_the_micro_batch_and_goes_on(error):
    calls = []

    def tight(start, end):
        calls.append((start, end))
        if end - start > 2 or (start == 2 and end - start > 1):
            raise error
        return squares(start, end)

    done = accumulate(tight, 0, 5, 5)
    assert done.total["sum"].item() == 15
    assert done.total["squares"].item() == 55
    assert calls == [(0, 5), (0, 2), (2, 4), (2, 3), (3, 4), (4, 5)]
    assert (done.micro_batch, done.halvings) == (1, 2)
    assert done.notes[0] == "out of memory with 5 rows per micro-batch; went on with 2"


def test_a_row_that_does_not_fit_is_an_error_with_its_cause():
    def never(start, end):
        raise RuntimeError("out of memory")

    with pytest.raises(MemoryError, match="single row") as caught:
        accumulate(never, 0, 4, 4)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_other_errors_pass_through_at_once():
    calls = []

    def broken(start, end):
        calls.append(start)
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        accumulate(broken, 0, 4, 4)
    assert calls == [0]
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_failed_try_keeps_no_tensors_alive():
    import weakref

    held = []

    def greedy(start, end):
        scratch = torch.ones(end - start)
        held.append(weakref.ref(scratch))
        if end - start > 1:
            raise RuntimeError("out of memory")
        assert held[0]() is None
        return squares(start, end)

    accumulate(greedy, 0, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"), [((3, 3, 1), "must not be empty"), ((0, 3, 0), "micro_batch must be")]
)
def test_bad_windows_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        accumulate(squares, *arguments)
