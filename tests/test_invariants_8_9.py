"""Invariants 8 and 9: nothing is unpickled, damaged files are misses, no network."""

import json
import pickle
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tttabpfn import FastWeightCache
from tttabpfn.cache.shared import default_cache


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


# 8. Seen to fail: with `safetensors.torch.load` and no checksum in `decode_with_key`.
@pytest.mark.parametrize("where", [0.3, 0.6, 0.99])
def test_8_a_flipped_bit_in_a_pickled_estimator_is_a_miss(classifier, table, where):
    X, y, X_new, _ = table
    fitted = classifier().fit(X, y)
    expected, report = fitted.predict_proba(X_new), fitted.adaptation_report()
    state = fitted.__getstate__()
    packed = bytearray(state["_packed_fast_weights"])
    packed[int(where * len(packed))] ^= 1
    damaged = type(fitted)()
    fitted.cache.clear()
    damaged.__setstate__({**state, "_packed_fast_weights": bytes(packed)})
    assert len(damaged.cache) == 0
    np.testing.assert_array_equal(damaged.predict_proba(X_new), expected)
    found = damaged.adaptation_report()
    assert (found.cache_hit, found.reason) == (False, report.reason)


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
    assert fitted._lookup().cache is default_cache()
    assert fitted.adaptation_report().cache_hit is False
    assert classifier(cache=None, random_state=12345).fit(X, y).adaptation_report().cache_hit is True
