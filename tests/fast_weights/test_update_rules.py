"""The update rules: their formulas, and each guarantee of their docstrings."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.fast_weights.tolerances import MUON_BAND, NORM_RTOL, RTOL_EXACT, assert_close, relative_max
from tttabpfn.fast_weights.reference.newton_schulz import newton_schulz
from tttabpfn.fast_weights.reference.step import row_norms
from tttabpfn.fast_weights.rules import Rule
from tttabpfn.fast_weights.update_rules import RULES, SCALES, init_state, update

F64 = RTOL_EXACT[torch.float64]


def stack(batch=3, dtype=torch.float64, seed=0):
    draw = torch.Generator().manual_seed(seed)
    shapes = {"wide": (batch, 4, 6), "tall": (batch, 6, 4), "twin": (batch, 4, 6), "bias": (batch, 5)}
    return {name: torch.randn(*shape, dtype=dtype, generator=draw) for name, shape in shapes.items()}


def run(rule, weights, steps=3, step_size=0.1, **options):
    state = init_state(rule, weights)
    for seed in range(1, steps + 1):
        batch = next(iter(weights.values())).shape[0]
        gradients = {name: value for name, value in stack(batch, seed=seed).items() if name in weights}
        gradients = {name: value.to(weights[name].dtype) for name, value in gradients.items()}
        weights, state = update(rule, weights, gradients, state, step_size, **options)
    return weights, state


def test_sgd_and_momentum_follow_their_formulas():
    weights = stack()
    g1, g2 = stack(seed=1), stack(seed=2)
    sgd, _ = run("sgd", weights, 2)
    momentum, state = run("momentum", weights, 2, momentum=0.5)
    for name, start in weights.items():
        assert_close(sgd[name], start - 0.1 * (g1[name] + g2[name]), rtol=F64, atol=F64)
        wanted = start - 0.1 * g1[name] - 0.1 * (g2[name] + 0.5 * g1[name])
        assert_close(momentum[name], wanted, rtol=F64, atol=F64)
        assert_close(state.first[name], g2[name] + 0.5 * g1[name], rtol=F64, atol=F64)
    assert int(state.step) == 2


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_adamw_equals_the_published_loop(weight_decay):
    weights = stack()
    got, _ = run("adamw", weights, 4, betas=(0.8, 0.95), eps=1e-6, weight_decay=weight_decay)
    for name, start in weights.items():
        theta, m, v = start.numpy().copy(), 0.0, 0.0
        for t in range(1, 5):
            g = stack(seed=t)[name].numpy()
            theta = theta * (1 - 0.1 * weight_decay)
            m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
            theta = theta - 0.1 * (m / (1 - 0.8**t)) / ((v / (1 - 0.95**t)) ** 0.5 + 1e-6)
        assert_close(got[name], theta, rtol=F64, atol=F64)


def test_muon_subtracts_the_orthogonalised_running_gradient():
    weights, g1, g2 = stack(), stack(seed=1), stack(seed=2)
    got, _ = run("muon", weights, 2, momentum=0.9, weight_decay=0.2)
    for name in ("wide", "tall", "twin"):
        first = weights[name] - 0.1 * (newton_schulz(g1[name]) + 0.2 * weights[name])
        wanted = first - 0.1 * (newton_schulz(g2[name] + 0.9 * g1[name]) + 0.2 * first)
        assert_close(got[name], wanted, rtol=F64, atol=F64)


def test_vectors_under_muon_follow_adamw():
    got, _ = run("muon", stack(), scale="match_rms")
    wanted, _ = run("adamw", stack())
    assert_close(got["bias"], wanted["bias"], rtol=F64, atol=F64)


def test_muon_direction_has_singular_values_in_the_band_one_matrix_at_a_time():
    weights = {"w": torch.zeros(3, 8, 12, dtype=torch.float64)}
    sizes = torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)[:, None, None]
    gradients = {"w": torch.randn(3, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * sizes}
    moved, _ = update("muon", weights, gradients, init_state("muon", weights), 1.0)
    values = torch.linalg.svdvals(moved["w"])
    assert MUON_BAND[0] < values.min()
    assert values.max() < MUON_BAND[1]


def test_same_shape_matrices_run_together_as_they_would_apart():
    together, _ = run("muon", stack())
    for name in ("wide", "twin", "tall"):
        alone, _ = run("muon", {name: stack()[name]})
        assert_close(together[name], alone[name], rtol=F64, atol=F64)


def test_match_rms_and_relative_scale_the_orthogonal_factor():
    weights = {"w": stack()["wide"]}
    gradients = {"w": stack(seed=1)["wide"]}
    change = {}
    for scale in SCALES:
        moved, _ = update("muon", weights, gradients, init_state("muon", weights), 0.1, scale=scale)
        change[scale] = weights["w"] - moved["w"]
    assert_close(change["match_rms"], change["lact"] * 0.2 * 6**0.5, rtol=F64, atol=F64)
    share = torch.linalg.matrix_norm(change["relative"]) / torch.linalg.matrix_norm(weights["w"])
    assert_close(share, torch.full((3,), 0.1, dtype=torch.float64), rtol=F64, atol=0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("restore_norms", [False, True])
@pytest.mark.parametrize("scale", SCALES)
def test_step_size_zero_keeps_every_bit(rule, restore_norms, scale):
    weights = stack(dtype=torch.float32)
    options = {"restore_norms": restore_norms, "scale": scale, "weight_decay": 0.1, "norm_eps": 1e-5}
    for step_size in (0.0, 0, torch.tensor(0.0), torch.zeros(3), dict.fromkeys(weights, 0.0)):
        got, _ = run(rule, weights, step_size=step_size, **options)
        assert all(torch.equal(got[name], weights[name]) for name in weights)
    mixed, _ = run(rule, weights, step_size=torch.tensor([0.1, 0.0, 0.2]), **options)
    for name, start in weights.items():
        assert torch.equal(mixed[name][1], start[1])
        assert not torch.equal(mixed[name][0], start[0])


@pytest.mark.parametrize("rule", RULES)
def test_candidates_in_one_batch_equal_candidates_apart(rule):
    weights = stack()
    sizes, factors = torch.tensor([0.01, 0.1, 0.3]), torch.tensor([0.0, 0.5, 0.9])
    together, _ = run(rule, weights, step_size=sizes, momentum=factors, restore_norms=True)
    for entry, (size, factor) in enumerate(zip(sizes.double().tolist(), factors.double().tolist(), strict=True)):
        state = init_state(rule, {name: value[entry : entry + 1] for name, value in weights.items()})
        alone = {name: value[entry : entry + 1] for name, value in weights.items()}
        for seed in range(1, 4):
            gradients = {name: value[entry : entry + 1] for name, value in stack(seed=seed).items()}
            alone, state = update(rule, alone, gradients, state, size, momentum=factor, restore_norms=True)
        for name in weights:
            assert relative_max(together[name][entry], alone[name][0]) < F64


@pytest.mark.parametrize("rule", RULES)
def test_norms_are_kept_over_many_updates(rule):
    weights = stack(dtype=torch.float32)
    norms = {name: row_norms(value) for name, value in weights.items() if value.dim() == 3}
    for initial in (norms, None):
        got, _ = run(rule, weights, steps=50, restore_norms=True, initial_norms=initial)
        for name, wanted in norms.items():
            tolerance = NORM_RTOL if initial is not None else 10 * NORM_RTOL
            assert_close(row_norms(got[name]), wanted, rtol=tolerance, atol=0)
            assert relative_max(got[name], weights[name]) > 0.1


@pytest.mark.parametrize(("rule", "restore_norms"), list(itertools.product(RULES, [False, True])))
def test_inputs_are_never_written(rule, restore_norms):
    weights, gradients = stack(), stack(seed=1)
    _, state = update(rule, weights, gradients, init_state(rule, weights), 0.1)
    held = [weights, gradients, state.first, state.second]
    copies = [{name: value.clone() for name, value in part.items()} for part in held]
    count = int(state.step)
    update(rule, weights, gradients, state, 0.1, restore_norms=restore_norms, scale="relative")
    for part, copy in zip(held, copies, strict=True):
        assert part.keys() == copy.keys()
        assert all(torch.equal(part[name], copy[name]) for name in part)
    assert int(state.step) == count


def test_weights_without_gradients_and_step_sizes_per_name():
    weights = stack()
    gradients = {"wide": stack(seed=1)["wide"], "tall": stack(seed=1)["tall"]}
    sizes = {"wide": 0.5, "tall": torch.tensor([0.0, 0.1, 0.2])}
    got, _ = update("sgd", weights, gradients, init_state("sgd", weights), sizes)
    assert_close(got["wide"], weights["wide"] - 0.5 * gradients["wide"], rtol=F64, atol=F64)
    assert torch.equal(got["tall"][0], weights["tall"][0])
    assert torch.equal(got["bias"], weights["bias"])


@pytest.mark.parametrize("rule", RULES)
def test_updates_are_differentiable(rule):
    weights = {"w": stack(1)["wide"], "bias": stack(1)["bias"]}
    gradients = stack(1, seed=1)

    def moved(w, bias, g, size):
        new, _ = update(
            rule,
            {"w": w, "bias": bias},
            {"w": g, "bias": gradients["bias"]},
            init_state(rule, weights),
            size,
            restore_norms=True,
        )
        return new["w"], new["bias"]

    inputs = (weights["w"], weights["bias"], gradients["wide"], torch.tensor([0.1], dtype=torch.float64))
    assert torch.autograd.gradcheck(moved, [value.clone().requires_grad_() for value in inputs])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "lion"}, "rule must be one of"),
        ({"scale": "spectral"}, "scale must be one of"),
        ({"newton_schulz": "cubic"}, "newton_schulz must be one of"),
        ({"newton_schulz_steps": 9}, "newton_schulz_steps must be at most 5"),
        ({"newton_schulz_dtype": "float16"}, "newton_schulz_dtype must be one of"),
        ({"backend": "numpy"}, "backend must be one of"),
        (
            {"step_size": torch.ones(2)},
            r"step_size must be a float or a tensor of shape \[B\] = \[3\], got shape \(2,\)",
        ),
        ({"momentum": torch.ones(3, 1)}, "momentum must be a float or a tensor"),
        ({"gradients": {"other": torch.ones(3, 4, 6)}}, r"gradients\['other'\] has no weight of that name"),
        ({"gradients": {"wide": torch.ones(3, 6, 4)}}, r"gradients\['wide'\] must have the weight's shape"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    weights = stack()
    arguments = {"rule": "muon", "gradients": stack(seed=1), "step_size": 0.1} | change
    state = init_state("muon", weights)
    rule, gradients, step_size = (arguments.pop(name) for name in ("rule", "gradients", "step_size"))
    with pytest.raises(ValueError, match=message):
        update(rule, weights, gradients, state, step_size, **arguments)


def test_init_state_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"weights\['w'\] must have shape"):
        init_state("sgd", {"w": torch.ones(3)})


# Seen to fail: with the names of rules written into `init_state`, `update`, the settings and the parser.
def test_a_row_of_the_table_is_all_that_a_rule_needs(monkeypatch, classifier, table):
    monkeypatch.setitem(RULES, "calm", Rule("momentum for matrices alone", "running", "gradient", 0.02, 0.2))
    weights = {"w": torch.ones(1, 2, 2), "b": torch.ones(1, 2)}
    gradients = {"w": torch.full((1, 2, 2), 0.5), "b": torch.full((1, 2), 0.5)}
    state = init_state("calm", weights)
    for _ in range(2):
        weights, state = update("calm", weights, gradients, state, 0.1)
    assert weights["b"].flatten().tolist() == pytest.approx([0.9] * 2)
    assert weights["w"].flatten().tolist() == pytest.approx([1 - 0.05 - 0.095] * 4)
    X, y, X_new, _ = table
    for adaptation in ("gradient", "memory"):
        fitted = classifier(update_rule="calm", step_size="auto", adaptation=adaptation).fit(X, y)
        assert fitted.predict_proba(X_new).shape == (30, 3)
        assert fitted.adaptation_report().update_rule == "calm"
