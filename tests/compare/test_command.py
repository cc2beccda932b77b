"""The command line: the main job on real tables, and errors that a person understands."""

import gzip
import os
import re
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_iris
from sklearn.metrics import log_loss

from tttabpfn import TTTTabPFNClassifier
from tttabpfn.choices import ADAPTATIONS, SELECTIONS
from tttabpfn.compare.command import _each_warning_once, main
from tttabpfn.compare.differences import differences
from tttabpfn.compare.measure import ModelScores, score
from tttabpfn.compare.output import advise, figure
from tttabpfn.compare.tables import Table, load_table, split_table
from tttabpfn.fast_weights.rules import RULES
from tttabpfn.report import AdaptationReport

FAST = ["--estimators", "1", "--n-steps", "2", "--step-size", "0.001", "--quiet"]


@pytest.fixture
def frame():
    """A table with text, missing values and a label that follows from the features."""
    rng = np.random.default_rng(0)
    number = rng.normal(size=60)
    text = rng.choice(["red", "green", "blue"], size=60).astype(object)
    text[::7] = None
    label = np.where(number + (text == "red") > 0.3, "yes", "no").astype(object)
    number[::9] = np.nan
    label[5] = None
    return pd.DataFrame({"number": number, "colour": text, "flag": rng.random(60) > 0.5, "answer": label})


def rows_of(output):
    """The lines of the table of scores: model name to cells."""
    lines = output.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("model "))
    return {line[:27].strip(): line[27:].split() for line in lines[start + 1 :] if line[:1].strip() and "  " in line}


def test_iris_compares_three_models_and_draws(capsys, tmp_path):
    plot = tmp_path / "iris.png"
    assert main(["compare", "iris", *FAST, "--context-size", "21", "--plot", str(plot)]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert "iris: 150 rows, 4 features, 3 classes (setosa 50, versicolor 50, virginica 50)" in output
    assert "TTT keeps 21 of the 105 rows to fit, and learns from the others too" in output
    assert "Adapted to 105 rows, 21 of them context at predict" in output
    assert "What predicts now:" in output
    assert "+-" in output.rpartition("On these 45 rows TTT has a ")[2]
    rows = rows_of(output)
    assert list(rows) == ["frozen TabPFN, all rows", "frozen TabPFN, context rows", "TTT"]
    assert [cells[0] for cells in rows.values()] == ["105", "21", "21"]
    for cells in rows.values():
        assert 0.3 < float(cells[1]) <= 1
        assert 0 < float(cells[2]) < 1.2
        assert 0.5 < float(cells[3]) <= 1
    assert plot.read_bytes().startswith(b"\x89PNG")


# Seen to fail: with `None` in place of `context` in `comparison.compare`, the frozen row is fitted on all rows.
def test_zero_steps_score_as_the_frozen_context(capsys):
    assert main(["compare", "wine", "--n-steps", "0", "--estimators", "1", "--quiet", "--context-size", "30"]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert rows["TTT"][:4] == rows["frozen TabPFN, context rows"][:4]
    assert rows["TTT"][0] == "30"
    assert rows["frozen TabPFN, all rows"][1:4] != rows["TTT"][1:4]


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "tsv", "parquet"])
def test_a_file_with_text_and_missing_values(kind, frame, capsys, tmp_path):
    path = tmp_path / f"table.{kind}"
    if kind == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    assert main(["compare", str(path), "--target", "answer", "--context-size", "all", *FAST]) == 0
    output = capsys.readouterr().out
    assert f"table.{kind}: 59 rows, 3 features (1 not numeric), 16 missing values, 2 classes" in output
    assert "left out 1 rows without a 'answer'" in output
    assert "TTT keeps all 42 rows to fit" in output
    assert list(rows_of(output)) == ["frozen TabPFN, all rows", "TTT"]


def test_large_tables_are_sampled_and_say_so(capsys):
    assert main(["compare", "digits", *FAST, "--max-rows", "200", "--test-share", "0.2", "--context-size", "0.5"]) == 0
    output = capsys.readouterr().out
    assert "took 196 of 1,797 rows" in output
    assert "160 rows to fit, 36 rows to test" in output
    assert "TTT keeps 80 of the 160 rows to fit" in output


def test_progress_goes_to_standard_error(capsys):
    assert main(["compare", "iris", *FAST[:-1], "--context-size", "20"]) == 0
    output, errors = capsys.readouterr()
    assert "test-time training" in errors
    assert "passed, about" in errors
    assert "passed, about" not in output


def test_no_command_prints_help_and_version_says_what_runs(capsys):
    assert main([]) == 0
    assert "compare" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("tttabpfn ")


def write(folder, name, frame):
    frame.to_csv(folder / name, index=False)
    return name


BAD = {
    "no_file": (["nowhere.csv"], "there is no file nowhere.csv"),
    "folder": (["."], "there is no file ."),
    "no_target": (["table.csv"], "--target is needed for a file: the column to predict, one of number, colour, flag"),
    "unknown_column": (["table.csv", "--target", "price"], "--target must be a column of table.csv, one of number"),
    "toy_target": (["iris", "--target", "species"], "--target is for files; iris has its own target"),
    "continuous": (["table.csv", "--target", "number"], "'number' holds continuous numbers"),
    "rare": (["rare.csv", "--target", "y"], "1 of 3 have fewer, such as 'c': merge or drop them"),
    "one_class": (["one.csv", "--target", "y"], "must have two classes or more in its target, got ['a']"),
    "only_target": (["single.csv", "--target", "y"], "must have a column besides the target 'y'"),
    "empty": (["empty.csv", "--target", "y"], "empty.csv cannot be read as a table"),
    "binary": (["binary.csv", "--target", "y"], "binary.csv cannot be read as a table"),
    "parquet": (["bad.parquet", "--target", "y"], "bad.parquet cannot be read as a table"),
    "suffix": (["table.xlsx", "--target", "y"], "table.xlsx must end in .csv, .csv.gz, .tsv or .parquet"),
    "drop": (
        ["table.csv", "--target", "answer", "--drop", "price"],
        "--drop must be a column of table.csv, one of nu",
    ),
    "date": (
        ["table.csv", "--target", "answer", "--date", "price"],
        "--date must be a column of table.csv, one of nu",
    ),
    "no_date": (
        ["table.csv", "--target", "answer", "--date", "colour"],
        "--date colour: row 2 of table.csv holds 'green', which is no date",
    ),
    "toy_drop": (["iris", "--drop", "species"], "--drop, --date and --separator are for files; iris comes with"),
    "device": (["iris", "--device", "cuda:99"], "estimator.device: 'cuda:99' is not there: torch finds"),
    "model": (["iris", "--model", "none.safetensors"], "there is no file none.safetensors"),
    "damaged_model": (["iris", "--model", "bad.safetensors"], "bad.safetensors' is not a readable checkpoint"),
    "plot_kind": (["iris", "--plot", "figure.docx"], "--plot must end in one of"),
    "plot_folder": (["iris", "--plot", "nowhere/figure.png"], "--plot must be in a folder that exists"),
    "too_many_classes": (["many.csv", "--target", "y"], "class"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_gets_one_line_and_exit_code_2(arguments, message, frame, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame.to_csv("table.csv", index=False)
    pd.DataFrame({"x": range(9), "y": list("aaaabbbbc")}).to_csv("rare.csv", index=False)
    pd.DataFrame({"x": range(9), "y": ["a"] * 9}).to_csv("one.csv", index=False)
    pd.DataFrame({"y": list("aaaabbbb")}).to_csv("single.csv", index=False)
    pd.DataFrame({"x": range(2000), "y": [f"c{i % 200}" for i in range(2000)]}).to_csv("many.csv", index=False)
    (tmp_path / "empty.csv").touch()
    (tmp_path / "binary.csv").write_bytes(gzip.compress(bytes(range(256))))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but not really")
    (tmp_path / "bad.safetensors").write_bytes(b"neither this")
    (tmp_path / "table.xlsx").touch()
    before = sorted(os.listdir(tmp_path))
    assert main(["compare", *arguments, "--quiet"]) == 2
    _, errors = capsys.readouterr()
    assert errors.startswith("tttabpfn: error: ")
    assert message in errors
    assert "Traceback" not in errors
    assert sorted(os.listdir(tmp_path)) == before


OPTIONS = [
    ["--context-size", "0"],
    ["--context-size", "1.5"],
    ["--test-share", "1"],
    ["--estimators", "0"],
    ["--n-steps", "-1"],
    ["--step-size", "1e5"],
    ["--step-size", "nan"],
    ["--chunk-size", "0"],
    ["--seed", "-1"],
    ["--time-limit", "soon"],
    ["--max-rows", "many"],
    ["--separator", "ab"],
    ["--update-rule", "newton"],
    ["--adaptation", "lora"],
    ["--fast-weights", "half"],
]


# Seen to fail: "--n-steps", "--step-size" and the names were checked by `fit`, after the table had been read.
@pytest.mark.parametrize("option", OPTIONS, ids=" ".join)
def test_bad_options_stop_before_anything_runs(option, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["compare", "nowhere.csv", *option])
    assert stop.value.code == 2
    assert re.search("must be|invalid choice|expected one", capsys.readouterr().err)


@pytest.mark.parametrize("command", ["compare", "predict"])
def test_help_lists_every_choice(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for name in (*RULES, *ADAPTATIONS, *SELECTIONS):
        assert f"{name}, " in said


# Seen to fail: with a fifth of the rows as the command's default.
def test_the_context_by_default_is_that_of_the_class(capsys):
    assert main(["compare", "iris", *FAST, "--adaptation", "memory"]) == 0
    assert "TTT keeps all 105 rows to fit" in capsys.readouterr().out
    X, y = load_iris(return_X_y=True)
    assert len(TTTTabPFNClassifier(random_state=0).fit(X, y).context_indices_) == 150


# Seen to fail: with "--context-size must be at most the 105 rows to fit".
def test_a_context_above_the_rows_is_all_of_them_and_says_so(capsys):
    assert main(["compare", "iris", *FAST, "--n-steps", "1", "--context-size", "106"]) == 0
    assert "TTT keeps all 105 rows to fit (106 asked for)" in capsys.readouterr().out
    X, y = load_iris(return_X_y=True)
    fitted = TTTTabPFNClassifier(context_size=151, n_steps=0, random_state=0).fit(X, y)
    assert fitted.adaptation_report().notes == ("context_size=151 keeps all 150 rows as context",)


# Seen to fail: with warnings shown as they come, once for each line of code that fits.
def test_warnings_come_once_and_as_notes(capsys):
    with _each_warning_once(debug=False):
        for _ in range(3):
            warnings.warn("the folder is full", UserWarning, stacklevel=1)
            warnings.warn("These columns look like free text", UserWarning, stacklevel=1)
            warnings.warn("divide by zero", RuntimeWarning, stacklevel=1)
    assert capsys.readouterr().err == "note: the folder is full\n"


# Seen to fail: with the first line printed once the table was read, behind the import of torch and TabPFN.
def test_the_first_line_comes_before_anything_heavy_loads():
    code = (
        "import io, sys\n"
        "class Out(io.StringIO):\n"
        "    def write(self, text):\n"
        '        sys.stderr.write(f\'{text}:{sorted({"torch", "pandas", "tabpfn"} & set(sys.modules))}\')\n'
        "        sys.exit()\n"
        "sys.stdout = Out()\n"
        "from tttabpfn.compare.command import main\n"
        "main(sys.argv[1:])\n"
    )
    for arguments in (["compare", "iris"], ["predict", "a.csv", "b.csv", "--target", "y", "--out", "o.csv"]):
        run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert run.stderr.startswith("Reading ")
        assert run.stderr.endswith(":[]")


def test_frozen_on_all_rows_can_be_skipped(capsys):
    assert main(["compare", "iris", *FAST, "--context-size", "20", "--skip-frozen"]) == 0
    assert list(rows_of(capsys.readouterr().out)) == ["frozen TabPFN, context rows", "TTT"]


def test_missing_extras_are_named(capsys, monkeypatch, frame, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    assert main(["compare", "iris", "--plot", str(tmp_path / "a.png")]) == 2
    assert "pip install 'tttabpfn[plot]'" in capsys.readouterr().err
    frame.to_parquet(tmp_path / "table.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "fastparquet", None)
    assert main(["compare", str(tmp_path / "table.parquet"), "--target", "answer"]) == 2
    assert "pip install pyarrow" in capsys.readouterr().err


def test_labels_keep_their_kind(tmp_path):
    frame = pd.DataFrame({"x": range(8), "y": [1, 2] * 4, "z": [True, False] * 4, "w": [1.0, 2.0] * 4})
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert load_table(str(tmp_path / "t.csv"), "y").y.dtype == np.int64
    assert load_table(str(tmp_path / "t.csv"), "w").y.dtype == np.int64
    assert set(load_table(str(tmp_path / "t.csv"), "z").y) == {"True", "False"}


# Seen to fail: without the bounds in `_draw`, class c has no row to test.
def test_every_split_has_every_class_on_both_sides():
    y = np.repeat(["a", "b", "c"], [40, 10, 4])
    table = Table("table", pd.DataFrame({"x": np.arange(54)}), y)
    for share, seed in [(0.1, 0), (0.1, 1), (0.5, 0), (0.9, 0)]:
        split, _ = split_table(table, share, seed)
        assert set(split.y_test) == {"a", "b", "c"}
        assert min(np.unique(split.y_train, return_counts=True)[1]) >= 2
        assert sorted([*split.X_train["x"], *split.X_test["x"]]) == list(range(54))
    sampled, notes = split_table(table, 0.5, 0, max_rows=20)
    assert len(sampled.y_train) + len(sampled.y_test) == 22
    assert set(sampled.y_test) == {"a", "b", "c"}
    assert notes == ("took 22 of 54 rows (stratified; change with --max-rows)",)
    first, again = split_table(table, 0.3, 1)[0], split_table(table, 0.3, 1)[0]
    assert first.X_test.equals(again.X_test)


def test_score_is_what_it_says():
    y = np.array(["a", "b", "c", "a"])
    probabilities = np.array([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.4, 0.35, 0.25], [0.35, 0.5, 0.15]])
    accuracy, loss, area = score(y, probabilities, np.array(["a", "b", "c"]))
    assert accuracy == 0.5
    assert loss == pytest.approx(-np.log([0.7, 0.4, 0.25, 0.35]).mean())
    assert loss == pytest.approx(log_loss(y, probabilities))
    # Share of pairs of rows in the right order, in the column of either class: a and b, a and c, b and c.
    assert area == pytest.approx(((1 + 0.5) / 2 + (0.5 + 1) / 2 + (1 + 0) / 2) / 3)


def scores(model, probabilities, loss, context=10):
    return ModelScores(model, model, "C0", context, 0.5, loss, 0.5, 1.0, 0.1, probabilities, np.array(["a", "b"]))


def test_advice_where_ttt_did_worse():
    y = np.array(["a", "b"] * 20)
    right = np.tile([[0.9, 0.1], [0.1, 0.9]], (20, 1))
    plain, trained = scores("plain", right, 0.1, context=40), scores("TTT", np.full((40, 2), 0.5), 0.69)
    report = AdaptationReport(adaptation="memory", accepted=True, reason="")
    worse = advise([plain, trained], y, report)
    assert worse[0].strip().startswith("On these 40 rows TTT has a higher log loss than plain, by 0.5878 +- ")
    assert worse[1] == "Try a larger context: --context-size all, or a larger share."
    better = advise([trained, plain], y, report)
    assert len(better) == 1
    assert "lower log loss than TTT, by 0.5878" in better[0]
    drawing = figure([plain, trained], y, report, "title")
    texts = [text.get_text() for ax in drawing.axes[1:] for text in ax.texts]
    assert "+0.5900" in texts
    assert advise([trained], y, report) == []


def test_differences_are_those_of_the_scores():
    rng = np.random.default_rng(0)
    classes = np.array(["a", "b"])
    y = classes[rng.integers(2, size=200)]
    first, second = (rng.dirichlet([1, 1], size=200) for _ in range(2))
    found = differences(y, classes, first, second)
    for name, one, two in zip(found, score(y, first, classes), score(y, second, classes), strict=True):
        assert found[name].value == pytest.approx(two - one)
        assert 0.01 < found[name].standard_error < 0.3
    three = differences(np.array(["a", "b", "c"] * 5), np.array(list("abc")), *np.full((2, 15, 3), 1 / 3))
    assert np.isnan(three["roc_auc"].value)
