"""What an adaptation says of itself, in words, in HTML and as values."""

from tttabpfn.report import AdaptationReport, PartReport

PARTS = (
    PartReport("memory", True, "counts 98% of what predicts: log loss 0.1065 frozen, ...", 567, 0.1065, 0.0758, 0.0091),
    PartReport(
        "gradient steps", False, "no gain on the held-back rows: log loss 0.0758 ...", 90, 0.0758, 0.0790, 0.002
    ),
    PartReport("gradient steps", False, "the time limit left no time for gradient steps"),
)
REPORT = AdaptationReport(
    adaptation="both", accepted=True, reason="...", update_rule="muon", step_size=0.0005, n_steps=32, context_size=80,
    n_demonstrations=1400, seconds=1.25, cache_hit=True, notes=("one note",), parts=PARTS,
    shares={"linear on columns": 0.9, "TabPFN, frozen": 0.1},
)  # fmt: skip


def test_printed_it_says_what_was_tried_what_it_gained_and_what_predicts():
    assert str(REPORT).splitlines() == [
        "Adapted to 1,400 rows, 80 of them context at predict (1.2 s, from the cache):",
        "  memory: kept; log loss 0.1065 to 0.0758 on 567 held-back rows, a gain of 0.0307 +- 0.0091",
        "  gradient steps: not kept: no gain on the held-back rows; log loss 0.0758 to 0.0790 on 90 held-back rows, a "
        "loss of 0.0032 +- 0.0020",
        "  gradient steps: not kept: the time limit left no time for gradient steps",
        "  note: one note",
        "What predicts now:",
        "   90%  linear on columns",
        "   10%  TabPFN, frozen",
    ]


def test_other_reports_print_too():
    nothing = AdaptationReport(adaptation="none", accepted=False, reason="n_steps is 0: the frozen model predicts")
    assert str(nothing) == "Nothing was adapted (n_steps is 0: the frozen model predicts), with 0 rows as context."
    refused = AdaptationReport(adaptation="gradient", accepted=False, reason="no gain: log loss", n_demonstrations=9)
    assert "What predicts now: plain TabPFN, in float32" in str(refused)
    assert "  gradient steps: not kept: no gain\n" in str(refused)
    kept = AdaptationReport(adaptation="gradient", accepted=True, reason="better", n_steps=7)
    assert str(kept).endswith("What predicts now: TabPFN, adapted by 7 gradient steps")


def test_a_notebook_gets_a_small_table():
    shown = REPORT._repr_html_()
    assert shown.count("<tr>") == 4
    assert "0.0307 &plusmn; 0.0091" in shown
    assert "What predicts now: 90% linear on columns" in shown
    assert "&lt;b&gt;" in AdaptationReport(adaptation="memory", accepted=False, reason="<b>")._repr_html_()


def test_values_survive_and_old_ones_are_read():
    assert AdaptationReport.from_dict(REPORT.to_dict()) == REPORT
    former = REPORT.to_dict()
    del former["parts"]
    assert AdaptationReport.from_dict(former).parts == ()


def test_an_adaptation_reports_its_parts(classifier, table):
    X, y, *_ = table
    report = classifier(adaptation="both", guard=True).fit(X, y).adaptation_report()
    assert [part.name for part in report.parts] == ["memory", "gradient steps"]
    memory = report.parts[0]
    assert memory.n_rows > 0
    assert memory.accepted == bool(report.shares)
    assert f"on {memory.n_rows:,} held-back rows" in str(report)
