"""The faster training step: equal answers and gradients, and a model left as it was."""

import contextlib
import dataclasses

import pytest
import torch
from tabpfn.architectures.shared.attention_backends import AttentionSpec, registered_attention_backends
from torch.nn import functional as F

from tttabpfn.pretraining import native
from tttabpfn.pretraining.config import parse_config
from tttabpfn.pretraining.export import build_model
from tttabpfn.pretraining.fast import _HalfAttention, faster
from tttabpfn.pretraining.prior import sample_batch
from tttabpfn.pretraining.train import Trainer

needs_compiler = pytest.mark.skipif(native.library() is None, reason="no C++ compiler")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def reference_attention(q, k, v):
    k, v = (t.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for t in (k, v))
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def outcome(function, inputs):
    out = function(*inputs)
    weight = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
    return [out, *torch.autograd.grad((out * weight).sum(), inputs)]


@needs_compiler
@pytest.mark.parametrize(
    ("batch", "queries", "keys", "heads", "kv_heads", "width"),
    [(3, 5, 7, 4, 4, 12), (2, 1, 1, 1, 1, 8), (2, 16, 33, 2, 2, 16), (1, 40, 16, 4, 2, 12), (2, 9, 200, 6, 1, 5)],
)
def test_attention_of_narrow_heads_equals_torchs(batch, queries, keys, heads, kv_heads, width):
    q = draw(batch, queries, heads, width, seed=1)
    k, v = draw(batch, keys, kv_heads, width, seed=2), draw(batch, keys, kv_heads, width, seed=3)
    for scale in (1.0, 30.0):
        inputs = [(scale * q).detach().requires_grad_(), k, v]
        ours, theirs = outcome(native.NarrowAttention.apply, inputs), outcome(reference_attention, inputs)
        for found, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5 * scale)


@needs_compiler
@pytest.mark.parametrize("width", [5, 12, 48, 192])
def test_the_norm_equals_torchs(width):
    inputs = [draw(3, 7, width, seed=1), draw(width, seed=2)]
    eps = torch.finfo(torch.float32).eps
    ours = outcome(lambda x, w: native.RootMeanSquareNorm.apply(x, w, eps), inputs)
    theirs = outcome(lambda x, w: F.rms_norm(x, (width,), w), inputs)
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("queries", "keys", "kv_heads"), [(9, 30, 6), (40, 25, 2)])
def test_half_attention_equals_torchs_to_half_precision(queries, keys, kv_heads):
    inputs = [draw(2, queries, 6, 32, seed=1), draw(2, keys, kv_heads, 32, seed=2), draw(2, keys, kv_heads, 32, seed=3)]
    ours, theirs = outcome(_HalfAttention().run, inputs), outcome(reference_attention, inputs)
    for found, expected in zip(ours, theirs, strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).norm() < 1e-2 * expected.norm()


def test_half_attention_leaves_large_calls_alone():
    spec = AttentionSpec(4000, 4000, 6, 6, 32, torch.float32, torch.device("cpu"), 4)
    assert not _HalfAttention().is_preferred(spec)
    assert _HalfAttention().is_preferred(dataclasses.replace(spec, seq_len_q=100))
    assert not _HalfAttention().is_preferred(dataclasses.replace(spec, seq_len_q=100, dtype=torch.float64))


def v3_5(values):
    return {**values, "architecture": "tabpfn_v3_5", "model": {**values["model"], "icl_num_kv_heads_test": 1}}


def gradients_of_a_step(trainer, batch):
    loss, _ = trainer.train_step(batch)
    return loss, torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


def warmed_up(config, folder):
    trainer = Trainer(config, folder)
    for index in range(3):  # output projections start at zero, and nothing flows through them
        trainer.train_step(sample_batch(config, index, 0.0))
    return trainer


@needs_compiler
@pytest.mark.parametrize("architecture", ["tabpfn_v3", "tabpfn_v3_5"])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16_products", 3e-2)])
def test_a_faster_step_has_the_gradients_of_the_plain_one(values, tmp_path, architecture, precision, tolerance):
    values = v3_5(values) if architecture == "tabpfn_v3_5" else values
    plain = parse_config(values)
    quick = parse_config({**values, "precision": precision, "kernels": True})
    batch = sample_batch(plain, 9, 0.0)
    first, second = warmed_up(plain, tmp_path / "plain"), warmed_up(plain, tmp_path / "quick")
    second.config = quick
    (loss, expected), (fast_loss, found) = gradients_of_a_step(first, batch), gradients_of_a_step(second, batch)
    assert expected.norm() > 1e-3
    assert fast_loss == pytest.approx(loss, abs=tolerance / 10)
    assert (found - expected).norm() < tolerance * expected.norm()
    assert not torch.equal(found, expected)


def test_the_model_and_the_registry_are_left_as_they_were(values):
    model = build_model("tabpfn_v3_5", v3_5(values)["model"], 0)
    before = registered_attention_backends()
    with contextlib.suppress(RuntimeError), faster(model, kernels=True, half_products=True):
        assert any("forward" in module.__dict__ for module in model.modules())
        raise RuntimeError("stops the step")
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert registered_attention_backends() == before


def test_without_a_compiler_the_step_runs_without_kernels(values, tmp_path, monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    config = parse_config({**v3_5(values), "kernels": True})
    model = Trainer(config, tmp_path).model
    before = registered_attention_backends()
    with faster(model, kernels=True):
        assert registered_attention_backends() == before
        assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_source_that_does_not_compile_gives_no_library(tmp_path, monkeypatch):
    broken = tmp_path / "kernels.cpp"
    broken.write_text("not C++")
    monkeypatch.setattr(native, "SOURCE", broken)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    try:
        assert native.library() is None
    finally:
        native.library.cache_clear()
