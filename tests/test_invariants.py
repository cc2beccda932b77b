"""What always holds, by number: no global effects, cached equals uncached, complete keys, no pickles, no network."""

import json
import pickle
import re
import socket
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from tabpfn import TabPFNClassifier

from tttabpfn import FastWeightCache, TTTTabPFNClassifier, bundled_model_path, store
from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.fast_weights.cache import default_cache

from .helpers import base_weights, fast_weights, global_state, plain_on_context, same_tensors
from .tiny_models import save_tiny_checkpoint

ATOL = 5e-6
"""Probabilities of one row alone against the same row among many, in float32: matrix products are blocked otherwise.
Seen on the bundled base: 1.4e-6."""


# 1. Seen to fail: with "fit_with_cache" for a frozen entry too.
@pytest.mark.parametrize("off", [{"n_steps": 0}, {"step_size": 0}], ids=str)
@pytest.mark.parametrize(
    "inner",
    [{}, {"fit_mode": "fit_with_cache"}, {"balance_probabilities": True, "average_before_softmax": True}],
    ids=str,
)
def test_1_without_steps_it_is_tabpfn_bit_for_bit(classifier, table, off, inner):
    X, y, X_new, _ = table
    fitted = classifier(inner=inner, **off).fit(X, y)
    plain = plain_on_context(fitted, X, y)
    np.testing.assert_array_equal(fitted.predict_proba(X_new), plain.predict_proba(X_new))
    np.testing.assert_array_equal(fitted.predict(X_new), plain.predict(X_new))


def test_1_the_bundled_base_frozen_is_tabpfn_on_the_bundled_path(table):
    X, y, X_new, _ = table
    fitted = TTTTabPFNClassifier(n_steps=0, context_size=40, random_state=1, cache=FastWeightCache()).fit(X, y)
    rows = fitted.context_indices_
    plain = TabPFNClassifier(model_path=str(bundled_model_path())).fit(X[rows], y[rows])
    np.testing.assert_array_equal(fitted.predict_proba(X_new), plain.predict_proba(X_new))


# 2. Seen to fail: with a counter set on self in predict_proba.
def test_2_predict_changes_nothing_on_the_estimator(classifier, table):
    X, y, X_new, _ = table
    fitted = classifier().fit(X, y)
    before, frozen_copy = dict(vars(fitted)), pickle.dumps({k: v for k, v in vars(fitted).items() if k[0] != "c"})
    first = fitted.predict_proba(X_new)
    fitted.predict(X_new[:1])
    fitted.predict_proba(np.full_like(X_new, np.nan))
    fitted.adapt()
    fitted.adaptation_report()
    assert vars(fitted).keys() == before.keys()
    assert all(vars(fitted)[name] is before[name] for name in before)
    assert pickle.dumps({k: v for k, v in vars(fitted).items() if k[0] != "c"}) == frozen_copy
    np.testing.assert_array_equal(fitted.predict_proba(X_new), first)


# 2. Seen to fail: without fork_rng in tabpfn_adapter.base._load (v3 draws its first weights from the global generator).
@pytest.mark.parametrize("adaptation", ["gradient", "memory", "both"])
def test_2_nothing_global_moves(tmp_path, table, classifier, adaptation):
    X, y, X_new, _ = table
    fresh = TabPFNClassifier(model_path=str(save_tiny_checkpoint("v3", tmp_path)), n_estimators=2, device="cpu")
    settings = {"guard": True, "step_size": "auto", "random_state": None, "adaptation": adaptation}
    before = global_state()
    fitted = classifier(estimator=fresh, **settings).fit(X, y)
    fitted.predict(X_new)
    after = global_state()
    assert [name for name in before if before[name] != after[name]] == []


# 2. Seen to fail: with the base's own networks trained in FastModel.
def test_2_the_shared_base_is_never_written_to(classifier, table):
    X, y, X_new, _ = table
    fitted = classifier(step_size=0.05, n_steps=3).fit(X, y)
    before = base_weights(fitted.estimator)
    frozen = classifier(n_steps=0).fit(X, y)
    wanted = frozen.predict_proba(X_new)
    moved = fitted.predict_proba(X_new)
    assert np.abs(moved - wanted).max() > 1e-4
    assert same_tensors(before, base_weights(fitted.estimator))
    frozen.cache.clear()
    np.testing.assert_array_equal(frozen.predict_proba(X_new), wanted)
    model = adapter.load_base(fitted.estimator).models[0]
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_2_predictions_of_two_estimators_may_take_turns(classifier, table):
    X, y, X_new, _ = table
    cache = FastWeightCache()
    one = classifier(cache=cache, step_size=0.05).fit(X, y)
    two = classifier(cache=cache, step_size=0.005).fit(X, y)
    first_of_one, first_of_two = one.predict_proba(X_new), two.predict_proba(X_new)
    assert np.abs(first_of_one - first_of_two).max() > 1e-5
    for _ in range(2):
        np.testing.assert_array_equal(one.predict_proba(X_new), first_of_one)
        np.testing.assert_array_equal(two.predict_proba(X_new), first_of_two)


# 3. Seen to fail: with the rows' answers left in the order of their content.
def test_3_one_row_and_many_agree(bundled_fit):
    fitted, rows = bundled_fit
    together = fitted.predict_proba(rows)
    alone = np.vstack([fitted.predict_proba(row[None]) for row in rows[:8]])
    np.testing.assert_allclose(alone, together[:8], atol=ATOL, rtol=0)
    halves = np.vstack([fitted.predict_proba(rows[:11]), fitted.predict_proba(rows[11:])])
    np.testing.assert_allclose(halves, together, atol=ATOL, rtol=0)


# 3. Seen to fail: without content_order.
@pytest.mark.parametrize("n_rows", [16, 20, 80])
def test_3_the_order_of_rows_changes_no_bit(n_rows, bundled_fit):
    fitted, rows = bundled_fit
    rows = rows[:n_rows]
    wanted = fitted.predict_proba(rows)
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(n_rows)
        np.testing.assert_array_equal(fitted.predict_proba(rows[order]), wanted[order])


@pytest.fixture(scope="module")
def bundled_fit(table):
    X, y, _, _ = table
    wrapped = TabPFNClassifier(model_path=str(bundled_model_path()), n_estimators=4)
    settings = {"n_steps": 1, "step_size": 1e-3, "guard": False, "context_size": 24, "random_state": 0}
    return TTTTabPFNClassifier(wrapped, cache=FastWeightCache(), **settings).fit(X, y), X


@pytest.mark.parametrize("way", ["pickle", "joblib", "clone", "disk"])
def test_3_cached_uncached_unpickled_and_cloned_agree(classifier, table, tmp_path, way):
    X, y, X_new, _ = table
    fitted = classifier(cache=str(tmp_path / "cache") if way == "disk" else FastWeightCache()).fit(X, y)
    wanted = fitted.predict_proba(X_new)
    if way == "clone":
        other = clone(fitted).fit(X, y)
        assert other.adaptation_report().cache_hit
    elif way == "joblib":
        joblib.dump(fitted, tmp_path / "fitted.joblib")
        other = joblib.load(tmp_path / "fitted.joblib")
    else:
        other = pickle.loads(pickle.dumps(fitted))
    if way == "disk":
        other._resolved_cache().clear()
    np.testing.assert_array_equal(other.predict_proba(X_new), wanted)
    np.testing.assert_array_equal(classifier().fit(X, y).predict_proba(X_new), wanted)


# 3. Seen to fail: without `_packed_fast_weights` (a miss in the new cache).
def test_3_a_pickle_brings_its_fast_weights_along(classifier, table):
    X, y, X_new, _ = table
    fitted = classifier().fit(X, y).adapt()
    packed = pickle.dumps(fitted)
    other = pickle.loads(packed)
    assert other.cache is not fitted.cache
    other.predict(X_new)
    assert other.cache.info().misses == 0
    assert same_tensors(fast_weights(other), fast_weights(fitted))
    data = X.nbytes + y.nbytes
    weights = sum(tensor.numel() * tensor.element_size() for tensor in fast_weights(fitted).values())
    assert len(packed) < data + 1.1 * weights + 60_000


def test_3_a_pickle_of_an_estimator_that_has_not_adapted_stays_lazy(classifier, table):
    X, y, X_new, _ = table
    other = pickle.loads(pickle.dumps(classifier().fit(X, y)))
    assert other.cache.info().misses == 0
    np.testing.assert_array_equal(other.predict_proba(X_new), classifier().fit(X, y).predict_proba(X_new))


ELSEWHERE = """
import pickle, sys
from pathlib import Path
import numpy as np
folder, number = Path(sys.argv[1]), sys.argv[2]
fitted = pickle.loads((folder / "fitted.pickle").read_bytes())
np.save(folder / f"{number}.npy", fitted.predict_proba(np.load(folder / "rows.npy")))
"""


def test_3_processes_on_one_disk_cache_adapt_once_and_agree(classifier, table, tmp_path):
    X, y, X_new, _ = table
    fitted = classifier(cache=str(tmp_path / "cache")).fit(X, y)
    (tmp_path / "fitted.pickle").write_bytes(pickle.dumps(fitted))
    np.save(tmp_path / "rows.npy", X_new)
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path)]
    workers = [subprocess.Popen([*command, str(number)]) for number in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    found = [np.load(tmp_path / f"{number}.npy") for number in range(2)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0], classifier().fit(X, y).predict_proba(X_new), atol=ATOL, rtol=0)
    (path,) = (tmp_path / "cache").glob("*.safetensors")
    written = path.stat().st_mtime_ns
    assert fitted.adaptation_report().seconds > 0
    assert path.stat().st_mtime_ns == written


OTHER_SETTINGS = [
    {"step_size": 2e-3},
    {"step_size": "auto"},
    {"n_steps": 3},
    {"context_size": 25},
    {"chunk_size": 17},
    {"update_rule": "adamw"},
    {"fast_weights": "mlp"},
    {"fast_weights": ["*mlp*"]},
    {"guard": True},
    {"adaptation": "memory"},
    {"adaptation": "both"},
    {"backend": "torch"},
    {"random_state": 1},
    {"estimator__n_estimators": 3},
    {"estimator__random_state": 1},
    {"estimator__softmax_temperature": 0.7},
    {"estimator__balance_probabilities": True},
    {"estimator__average_before_softmax": True},
    {"estimator__categorical_features_indices": [0]},
    {"estimator__inference_precision": torch.float32},
    {"estimator__inference_config": {"FINGERPRINT_FEATURE": False}},
    {"estimator__ignore_pretraining_limits": True},
]


def key_of(fitted):
    base = adapter.load_base(fitted._wrapped_estimator)
    return store.entry_key(base, fitted._wrapped_estimator, fitted._fit_settings, fitted._data_print)


# 4. Seen to fail: with the settings, and with the estimator's print left out of entry_key.
@pytest.mark.parametrize("change", OTHER_SETTINGS, ids=str)
def test_4_every_parameter_is_part_of_the_key(classifier, table, change):
    X, y, _, _ = table
    plain = key_of(classifier().fit(X, y))
    assert key_of(classifier().fit(X.copy(), list(y))) == plain
    assert key_of(classifier().set_params(**change).fit(X, y)) != plain


def _nudged(X, y):
    X = X.copy()
    X[7, 1] = np.nextafter(X[7, 1], 9)
    return X, y


def _relabelled(X, y):
    y = y.copy()
    y[5] = (y[5] + 1) % 3
    return X, y


OTHER_DATA = {
    "one value by one bit": _nudged,
    "one label": _relabelled,
    "rows in another order": lambda X, y: (X[::-1], y[::-1]),
    "columns in another order": lambda X, y: (X[:, ::-1], y),
    "one row less": lambda X, y: (X[1:], y[1:]),
    "another dtype": lambda X, y: (X.astype(np.float32), y),
    "other names of the labels": lambda X, y: (X, y.astype(str)),
}


# 4. Seen to fail: with the data's print left out of the key.
@pytest.mark.parametrize("other", OTHER_DATA.values(), ids=OTHER_DATA)
def test_4_the_data_are_part_of_the_key(classifier, table, other):
    X, y, _, _ = table
    assert key_of(classifier().fit(*other(X, y))) != key_of(classifier().fit(X, y))


# 4. Seen to fail: with the data's print left out of the key.
def test_4_a_refit_on_other_data_never_meets_old_weights(classifier, table):
    X, y, X_new, _ = table
    cache = FastWeightCache()
    fitted = classifier(cache=cache).fit(X, y)
    old = fitted.predict_proba(X_new)
    flipped = (2 - y) % 3
    fitted.fit(X, flipped)
    assert fitted.adaptation_report().cache_hit is False
    new = fitted.predict_proba(X_new)
    np.testing.assert_array_equal(new, classifier().fit(X, flipped).predict_proba(X_new))
    assert np.abs(new - old).max() > 1e-4
    X_changed = X.copy()
    fitted.fit(X_changed, y)
    X_changed[:] = 0  # the demonstrations were stored, not borrowed
    np.testing.assert_array_equal(fitted.predict_proba(X_new), old)


# 4. Seen to fail: with the base's content left out of the key.
def test_4_other_base_weights_under_the_same_path_are_another_key(classifier, table, tmp_path):
    X, y, X_new, _ = table
    cache = FastWeightCache()
    answers, keys = [], []
    for seed in (0, 1, 0):
        path = save_tiny_checkpoint("v3", tmp_path, seed=seed)
        fitted = classifier(estimator=TabPFNClassifier(model_path=str(path), n_estimators=2), cache=cache).fit(X, y)
        answers.append(fitted.predict_proba(X_new))
        keys.append(key_of(fitted))
    assert keys[0] == keys[2] != keys[1]
    np.testing.assert_array_equal(answers[0], answers[2])
    assert np.abs(answers[0] - answers[1]).max() > 1e-4
    copied = tmp_path / "elsewhere" / path.name  # TabPFN reads the generation off the name
    copied.parent.mkdir()
    copied.write_bytes(path.read_bytes())
    moved = classifier(estimator=TabPFNClassifier(model_path=str(copied), n_estimators=2)).fit(X, y)
    assert key_of(moved) == keys[0]


def test_4_versions_are_part_of_the_key(classifier, table, monkeypatch):
    fitted = classifier().fit(table[0], table[1])
    before = key_of(fitted)
    monkeypatch.setattr(store, "version", lambda package: "0.0")
    assert key_of(fitted) != before


# 5. Seen to fail: with the guard's losses scored by the first ensemble member alone.
def test_5_the_guard_scores_the_configuration_that_predicts(classifier, table):
    X, y, _, _ = table
    fitted = classifier(guard=True, n_steps=3, context_size=30).fit(X, y)
    report = fitted.adaptation_report()
    session = fitted._session()
    rows, held_back = session.split.guard_context, session.split.held_back
    assert not set(rows) & set(held_back)
    assert set(rows) <= set(fitted.context_indices_)
    base = adapter.load_base(fitted._wrapped_estimator)
    plain = adapter.fit_tabpfn(fitted._wrapped_estimator, base, X[rows], y[rows], fit_mode="fit_with_cache")
    if set(held_back) & set(fitted.context_indices_):
        pytest.fail("with a context of 30 of 80 rows, the held-back rows must lie outside it")
    probabilities = plain.predict_proba(X[held_back])
    loss = -np.log(probabilities[np.arange(len(held_back)), y[held_back]]).mean()
    assert report.loss_frozen == pytest.approx(loss, abs=1e-5)


# 5. Seen to fail: with every refusal of `judge` turned into an acceptance.
def test_5_a_harmful_adaptation_is_refused_with_a_reason_and_the_frozen_model_predicts(classifier, table):
    X, y, X_new, _ = table
    noise = np.random.default_rng(0).integers(0, 3, len(y))
    fitted = classifier(
        guard=True, step_size=3.0, n_steps=3, update_rule="sgd", inner={"inference_precision": torch.float32}
    )
    fitted.fit(X, noise)
    report = fitted.adaptation_report()
    assert report.accepted is False
    assert report.n_steps == 0
    assert f"{report.loss_frozen:.4f} frozen" in report.reason
    plain = plain_on_context(fitted, X, noise)
    np.testing.assert_allclose(fitted.predict_proba(X_new), plain.predict_proba(X_new), atol=ATOL, rtol=0)


# 6. Seen to fail: with generators seeded by the system in episodes.seeded.
def test_6_a_seed_means_the_same_bits(classifier, table):
    X, y, X_new, _ = table
    first = classifier(guard=True, step_size="auto", random_state=5).fit(X, y)
    second = classifier(guard=True, step_size="auto", random_state=5).fit(X, y)
    np.testing.assert_array_equal(first.predict_proba(X_new), second.predict_proba(X_new))
    assert first.adaptation_report().step_losses == second.adaptation_report().step_losses
    other = classifier(random_state=6).fit(X, y)
    assert not np.array_equal(other.context_indices_, first.context_indices_)


# 6. Seen to fail: with the seed drawn in `_adaptation`.
def test_6_no_seed_is_drawn_once_at_fit(classifier, table):
    X, y, X_new, _ = table
    fitted = classifier(random_state=None).fit(X, y)
    first = fitted.predict_proba(X_new)
    fitted.cache.clear()
    np.testing.assert_array_equal(fitted.predict_proba(X_new), first)
    assert key_of(classifier(random_state=None).fit(X, y)) != key_of(classifier(random_state=None).fit(X, y))


def test_6_a_generator_as_seed_advances(classifier, table):
    X, y, _, _ = table
    rng = np.random.RandomState(0)
    assert key_of(classifier(random_state=rng).fit(X, y)) != key_of(classifier(random_state=rng).fit(X, y))
    same = np.random.RandomState(0)
    assert key_of(classifier(random_state=same).fit(X, y)) == key_of(
        classifier(random_state=np.random.RandomState(0)).fit(X, y)
    )


# 8. Seen to fail: with the checksum of cache files not compared.
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "garbage", "pickle", "foreign"])
def test_8_a_damaged_cache_file_is_a_miss_not_a_wrong_answer(classifier, table, tmp_path, damage, tiny_checkpoint):
    X, y, X_new, _ = table
    fitted = classifier(cache=FastWeightCache(tmp_path)).fit(X, y)
    wanted = fitted.predict_proba(X_new)
    (path,) = tmp_path.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-20] ^= 0xFF
    path.write_bytes(
        {
            "flip": bytes(content),
            "cut": path.read_bytes()[:-7],
            "empty": b"",
            "garbage": b"\x00" * 300,
            "pickle": pickle.dumps({"weights": 1}),
            "foreign": tiny_checkpoint().read_bytes(),
        }[damage]
    )
    fresh = FastWeightCache(tmp_path)
    again = classifier(cache=fresh).fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X_new), wanted)
    assert fresh.info().misses == 1


def test_8_cache_files_are_safetensors_with_a_json_header(classifier, table, tmp_path):
    X, y, _, _ = table
    classifier(cache=str(tmp_path)).fit(X, y).adapt()
    (path,) = tmp_path.glob("*.safetensors")
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["__metadata__"]


def test_8_no_file_of_the_package_is_unpickled():
    import tttabpfn

    risky = re.compile(
        r"pickle\.loads?\(|joblib\.load\(|weights_only=False|(?<!safetensors\.)torch\.load\((?!.*weights_only=True)"
    )
    for path in Path(tttabpfn.__file__).parent.rglob("*.py"):
        assert risky.findall(path.read_text()) == [], path


OFFLINE = """
import socket, sys
def refuse(*args, **kwargs):
    raise OSError("no network in this test")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
from sklearn.datasets import load_iris
from tttabpfn import TTTTabPFNClassifier
X, y = load_iris(return_X_y=True)
clf = TTTTabPFNClassifier(n_steps=1, step_size=1e-3, context_size=30, guard=False, random_state=0).fit(X, y)
print((clf.predict(X) == y).mean())
"""


# 9. Seen to fail: with `TabPFNClassifier()` in place of the bundled path in default_estimator (it wants to download).
def test_9_nothing_needs_the_network(tmp_path):
    environment = {"PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "TABPFN_MODEL_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", OFFLINE], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) > 0.9
    assert list(tmp_path.rglob("*.ckpt")) == []


def test_9_no_socket_is_opened(classifier, table, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    X, y, X_new, _ = table
    assert np.isfinite(classifier().fit(X, y).predict_proba(X_new)).all()


def test_the_default_cache_is_shared_by_the_process(classifier, table):
    X, y, _, _ = table
    fitted = classifier(cache=None, random_state=12345).fit(X, y)
    assert fitted._resolved_cache() is default_cache()
    assert fitted.adaptation_report().cache_hit is False
    assert classifier(cache=None, random_state=12345).fit(X, y).adaptation_report().cache_hit is True
