"""`predict`: one file in, another out, read by the same rules, with the labels and probabilities of the class."""

import numpy as np
import pandas as pd
import pytest

from tttabpfn import FastWeightCache, TTTTabPFNClassifier
from tttabpfn.compare import reading
from tttabpfn.compare.command import main

FAST = ["--estimators", "1", "--n-steps", "2", "--adaptation", "memory", "--quiet"]


@pytest.fixture
def frame():
    """60 rows: a number, a colour written in digits, a day, a flag with blanks, a label."""
    rng = np.random.default_rng(0)
    number = rng.normal(size=60)
    colour = rng.choice(["1", "02", "red"], size=60)
    day = pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 90, size=60), unit="D")
    flag = pd.Series(rng.random(60) > 0.5, dtype=object).where(rng.random(60) < 0.8, None)
    label = np.where(number + (colour == "red") > 0.3, 7, 3)
    return pd.DataFrame(
        {"number": number, "colour": colour, "day": day.strftime("%Y-%m-%d"), "flag": flag, "answer": label}
    )


@pytest.fixture
def files(frame, tmp_path, monkeypatch):
    """Two files in the working folder: rows to learn from, and rows to predict."""
    monkeypatch.chdir(tmp_path)
    frame.to_csv("train.csv", index=False)
    frame.drop(columns="answer").iloc[:9].to_csv("new.csv", index=False)
    return tmp_path


def run(*arguments):
    return main(["predict", *arguments, "--target", "answer", *FAST])


def test_labels_and_probabilities_are_those_of_the_class(files, frame, capsys):
    assert run("train.csv", "new.csv", "--out", "out.csv") == 0
    output = capsys.readouterr().out
    assert "read as dates: day" in output
    assert "Wrote 9 rows to out.csv" in output
    found = pd.read_csv("out.csv")
    assert found.columns.tolist() == ["answer", "probability_3", "probability_7"]
    typed = frame.assign(day=pd.to_datetime(frame["day"])).drop(columns="answer")
    inner = {"estimator__n_estimators": 1, "estimator__random_state": 0, "estimator__ignore_pretraining_limits": True}
    model = TTTTabPFNClassifier(n_steps=2, adaptation="memory", random_state=0, cache=FastWeightCache())
    model.set_params(**inner).fit(typed, frame["answer"])
    wanted = model.predict_proba(typed.iloc[:9])
    np.testing.assert_allclose(found.to_numpy()[:, 1:], wanted, atol=5e-6, rtol=0)
    assert found["answer"].tolist() == model.predict(typed.iloc[:9]).tolist()


# Seen to fail: a batch of digits alone was read as numbers, which no category of the other file equals.
def test_other_formats_orders_and_parts_give_the_same(files, frame):
    assert run("train.csv", "new.csv", "--out", "out.csv") == 0
    whole = pd.read_csv("out.csv")
    new = pd.read_csv("new.csv", dtype=str)[["flag", "day", "colour", "number"]].assign(more=1)
    digits = new["colour"] != "red"
    new[digits].to_csv("digits.tsv", index=False, sep="\t")
    assert run("train.csv", "digits.tsv", "--out", "digits.parquet") == 0
    np.testing.assert_allclose(
        pd.read_parquet("digits.parquet")["probability_7"], whole["probability_7"][digits], atol=5e-6, rtol=0
    )
    frame.to_csv("half.csv", index=False, sep=";", decimal=",")
    new.drop(columns="more").iloc[:1].to_csv("one.csv.gz", index=False)
    assert run("half.csv", "one.csv.gz", "--out", "one.csv") == 0
    np.testing.assert_allclose(pd.read_csv("one.csv")["probability_7"], whole["probability_7"][:1], atol=5e-6, rtol=0)


def test_a_cache_folder_serves_the_second_run(files, capsys):
    for said in ("", ", from the cache"):
        assert run("train.csv", "new.csv", "--out", "out.csv", "--cache", "kept") == 0
        output = capsys.readouterr().out
        assert f"s{said}):" in output
    assert list((files / "kept").glob("*"))


BAD = {
    "no_new": (["train.csv", "nowhere.csv", "--out", "o.csv"], "NEW must be a file; there is no file nowhere.csv"),
    "no_train": (["nowhere.csv", "new.csv", "--out", "o.csv"], "there is no file nowhere.csv"),
    "ending": (["train.csv", "new.csv", "--out", "o.xlsx"], "--out must end in .csv, .csv.gz, .tsv, .parquet"),
    "folder": (["train.csv", "new.csv", "--out", "no/o.csv"], "--out must be a file in a folder that exists"),
    "same": (["train.csv", "new.csv", "--out", "new.csv"], "--out must not be a file that is read"),
    "lacking": (
        ["train.csv", "less.csv", "--out", "o.csv"],
        "must have every column to learn from; it lacks 'day'",
    ),
    "kinds": (["train.csv", "text.csv", "--out", "o.csv"], "column 'number' must hold numbers, as it does in the rows"),
    "day": (
        ["train.csv", "late.csv", "--out", "o.csv"],
        "row 1 of late.csv holds 'soon', which is no date",
    ),
    "rows": (["train.csv", "none.csv", "--out", "o.csv"], "none.csv must have a row to predict, got none"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input_gets_one_line_and_writes_nothing(arguments, message, files, capsys):
    new = pd.read_csv("new.csv")
    new.drop(columns="day").to_csv("less.csv", index=False)
    new.assign(number="many").to_csv("text.csv", index=False)
    new.assign(day="soon").to_csv("late.csv", index=False)
    new.iloc[:0].to_csv("none.csv", index=False)
    before = sorted(files.iterdir())
    assert run(*arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("tttabpfn: error: ")
    assert message in errors
    assert sorted(files.iterdir()) == before


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a,b\n1,2\n", (",", ".")),
        ("a;b\n1,5;2\n", (";", ",")),
        ("a;b\n1.5;2\n", (";", ".")),
        ("a\tb\n1\t2\n", ("\t", ".")),
        ("a|b\n1|2\n", ("|", ".")),
        ('a,b\n"x;y",2\n', (",", ".")),
        ("a\n1\n", (",", ".")),
        ("\ufeffa;b\n1;2\n", (";", ".")),
    ],
)
def test_separators_are_found(text, wanted, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    assert reading.sniff(path) == wanted


def test_columns_that_cannot_help_are_named(files, frame, capsys):
    n = len(frame)
    odd = frame.assign(
        empty=np.nan, one=1, id=[f"u{i}" for i in range(n)], number_of_row=range(n),
        prose=[f"this is text number {i}" for i in range(n)],
    )  # fmt: skip
    odd.to_csv("odd.csv", index=False)
    assert run("odd.csv", "odd.csv", "--out", "out.csv", "--drop", "prose") == 0
    output, errors = capsys.readouterr()
    assert "left out 'empty': without any value" in output
    assert "'one' holds one value in every row and cannot help: --drop it" in output
    assert "'id', 'number_of_row' hold another value in nearly every row" in output
    assert "prose" not in output
    assert "odd.csv: its 'answer' is not looked at" in output
    # Seen to fail: with 96 lines of warnings about the empty column.
    assert errors == ""
    assert reading.hints(odd[["prose"]])[0].startswith("'prose' holds what looks like prose")


def test_dates_in_other_writings_are_read_where_asked(files, frame):
    frame.assign(day=pd.to_datetime(frame["day"]).dt.strftime("%d %b %Y")).to_csv("named.csv", index=False)
    assert run("train.csv", "new.csv", "--out", "iso.csv") == 0
    assert run("named.csv", "named.csv", "--out", "named_out.csv", "--date", "day") == 0
    iso, named = pd.read_csv("iso.csv"), pd.read_csv("named_out.csv")
    np.testing.assert_allclose(named["probability_7"][:9], iso["probability_7"], atol=5e-6, rtol=0)
