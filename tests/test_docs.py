"""The pages' examples run, their commands name scripts and options that exist, and their links lead somewhere."""

import doctest
import re
import shlex
from pathlib import Path

import pytest
import torch

import tttabpfn

ROOT = Path(__file__).parents[1]
EXAMPLES = [
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "tttabpfn").glob("*/README.md")),
]
PAGES = [*EXAMPLES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def cases(pages, language):
    return [
        pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
        for page in pages
        for number, block in enumerate(blocks(page, language))
    ]


# A block of a session, with its prompts and answers, is for doctest: `tests/lact/test_lact_readme.py` runs those.
@pytest.mark.parametrize("code", [case for case in cases(EXAMPLES, "python") if ">>>" not in case.values[0]])
def test_an_example_runs_as_it_stands(code, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    state = torch.get_rng_state()
    try:
        exec(compile(code, "example", "exec"), {"__name__": "example"})
    finally:
        torch.set_rng_state(state)


def commands():
    """Calls of Python in the pages' shell blocks and tables, as words behind `python`."""
    found = set()
    for page in PAGES:
        text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
        text += "\n" + "\n".join(re.findall(r"`(python [^`\n]+)`", page.read_text(encoding="utf-8")))
        found |= {call.strip() for call in re.findall(r"python (-m tttabpfn[^&\n]*|benchmarks/[^&\n]*)", text)}
    return sorted(found)


def options_of(*files):
    """Options that scripts define, with the negations of their switches, and those of the helpers they import."""
    text = "\n".join((ROOT / file).read_text(encoding="utf-8") for file in files)
    helpers = re.findall(r"^(?:from|import) (_[a-z]\w*)", text, flags=re.MULTILINE)
    text += "\n".join((ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8") for name in helpers)
    named = set(re.findall(r"\"(--[a-z][a-z-]*)\"", text))
    negated = {f"--no-{name[2:]}" for name in named} if "BooleanOptionalAction" in text else set()
    return named | negated


PACKAGE_FILES = {
    "tttabpfn": ["tttabpfn/compare/command.py", "tttabpfn/compare/options.py"],
    "tttabpfn.pretraining": ["tttabpfn/pretraining/__main__.py", "tttabpfn/pretraining/arguments.py"],
}


# Seen to fail: with `--most-gflop`, a former name of `--max-gflop`, in benchmarks/README.md.
@pytest.mark.parametrize("command", commands())
def test_a_command_names_a_program_and_options_that_exist(command):
    words = shlex.split(command)
    files = PACKAGE_FILES[words[1]] if words[0] == "-m" else words[:1]
    asked = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert asked <= options_of(*files)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    wanted = [page.parent / link for link in links if "://" not in link]
    assert [str(path) for path in wanted if not path.exists()] == []


def test_readme_is_short_and_has_one_place_for_the_comparison():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    assert text.count("<!-- compare:start -->") == text.count("<!-- compare:end -->") == 1
    assert "| | log loss | accuracy | ROC AUC | processor seconds |" in text


# Seen to fail: without the imports in the examples of the class and of `FastWeightCache`.
@pytest.mark.parametrize("name", tttabpfn.__all__)
def test_a_docstring_example_runs_when_pasted_alone(name):
    public = getattr(tttabpfn, name)
    example = doctest.DocTestParser().get_doctest(public.__doc__, {"__name__": "pasted"}, name, None, None)
    said = []
    doctest.DocTestRunner().run(example, out=said.append)
    assert "".join(said) == ""


# Seen to fail: with "a class with one row" in the docstring's list, which `fit` takes.
def test_fit_raises_what_its_docstring_lists_about_few_rows():
    assert "no class with two rows" in " ".join(tttabpfn.TTTTabPFNClassifier.__doc__.split())
    X = [[0.0], [1.0], [2.0]]
    tttabpfn.TTTTabPFNClassifier(random_state=0).fit(X, ["a", "a", "b"])
    with pytest.raises(ValueError, match=r"^too few rows per class"):
        tttabpfn.TTTTabPFNClassifier(random_state=0).fit(X, ["a", "b", "c"])
