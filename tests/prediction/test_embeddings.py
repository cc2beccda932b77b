"""`transform`: embeddings of what predicts, for plots and other models, without the rows' own labels in them."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tttabpfn.prediction.embeddings import _folds

from ..helpers import ATOL


@pytest.mark.parametrize("adaptation", ["gradient", "memory", "both"])
def test_embeddings_are_those_of_what_predicts(classifier, table, adaptation):
    X, y, X_new, _ = table
    fitted = classifier(adaptation=adaptation, step_size=0.05).fit(X, y)
    embedded = fitted.transform(X_new)
    frozen = classifier(n_steps=0).fit(X, y).transform(X_new)
    assert embedded.shape == frozen.shape
    assert embedded.shape[0] == 30
    assert embedded.shape[1] % 2 == 0
    assert np.isfinite(embedded).all()
    # A memory alone leaves the network as it was.
    assert np.allclose(embedded, frozen, atol=0.05) == (adaptation == "memory")
    names = fitted.get_feature_names_out()
    assert names.tolist() == [f"ttttabpfnclassifier{i}" for i in range(embedded.shape[1])]
    state = dict(vars(fitted))
    np.testing.assert_allclose(fitted.transform(X_new[3:4]), embedded[3:4], atol=50 * ATOL, rtol=0)
    assert vars(fitted) == state


# Seen to fail: with the rows preprocessed anew for each fold, where the same row lay elsewhere.
def test_rows_outside_the_context_are_embedded_alike_by_both_ways(classifier, table):
    X, y, *_ = table
    fitted = classifier(guard=False)
    known = fitted.fit_transform(X, y)
    outside = np.setdiff1d(np.arange(80), fitted.context_indices_)
    again = fitted.transform(X)
    np.testing.assert_allclose(known[outside], again[outside], atol=100 * ATOL, rtol=0)
    assert np.abs(known[fitted.context_indices_] - again[fitted.context_indices_]).max() > 1e-3


# Seen to fail: with `transform` in place of `fit_transform`.
def test_the_embedding_of_a_row_does_not_know_its_own_label(classifier, table):
    X, y, *_ = table
    fitted = classifier(n_steps=0, context_size=None)
    known = fitted.fit_transform(X, y)
    folds = _folds(fitted._fitted.codes, fitted._fitted.settings.seed)
    here = np.flatnonzero(folds == 0)

    def swap(one, other):
        labels = y.copy()
        labels[[one, other]] = y[[other, one]]
        return labels

    # Two rows of a fold that trade their labels, and leave all rows in their folds.
    pairs = [(one, other) for one in here for other in here if y[one] < y[other]]
    one, other = next(pair for pair in pairs if (_folds(swap(*pair), fitted._fitted.settings.seed) == folds).all())
    swapped = swap(one, other)
    again = classifier(n_steps=0, context_size=None).fit_transform(X, swapped)
    np.testing.assert_array_equal(again[here], known[here])
    assert np.abs(again[folds == 1] - known[folds == 1]).max() > 1e-4
    seen = classifier(n_steps=0, context_size=None).fit(X, swapped).transform(X) - fitted.transform(X)
    assert np.abs(seen[one]).max() > 1e-4


def test_it_is_a_step_of_a_pipeline_with_frames(classifier, table):
    X, y, X_new, _ = table
    names = [f"x{i}" for i in range(5)]
    frame, new = pd.DataFrame(X, columns=names), pd.DataFrame(X_new, columns=names)
    step = clone(classifier()).set_output(transform="pandas")
    pipeline = make_pipeline(step, StandardScaler(), LogisticRegression()).fit(frame, y)
    assert pipeline.predict(new).shape == (30,)
    assert pipeline[0].transform(new).columns.tolist() == pipeline[0].get_feature_names_out().tolist()


def test_it_ends_the_pipelines_of_skrub(classifier):
    skrub = pytest.importorskip("skrub")
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "number": rng.normal(size=60),
            "colour": rng.choice(["red", "green"], size=60),
            "day": (pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 900, size=60), unit="D")).astype(str),
        }
    )
    y = np.where(frame["number"] + (frame["colour"] == "red") > 0.3, "yes", "no")
    for pipeline in (
        make_pipeline(skrub.TableVectorizer(), classifier()),
        skrub.tabular_pipeline(classifier(context_size=None)),
    ):
        probabilities = pipeline.fit(frame, y).predict_proba(frame[:7])
        assert probabilities.shape == (7, 2)
        one = pipeline.predict_proba(frame[:1])
        np.testing.assert_allclose(one, probabilities[:1], atol=ATOL, rtol=0)
