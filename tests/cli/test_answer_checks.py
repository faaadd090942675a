"""`peft-be eval --checks`."""

import json

import pytest
from huggingface_hub import ModelCard

from peft_be import check_scores, load_checks
from peft_be.cli.answer_checks import show_lost

from .outcomes import fails


@pytest.fixture
def evaluate(cli, job):
    """Compress, then evaluate with a file of checks."""
    assert cli(*job.arguments)[0] == 0

    def run(checks, *options):
        path = job.folder / "checks.yaml"
        path.write_text(checks)
        given = ["--prompt", job.folder / "prompt.txt", "--queries", job.folder / "held_out.txt", "--checks", path]
        return cli("eval", job.folder / "out", *given, "--max-answer-length", 4, *options)

    return run


def test_the_table_the_figures_and_the_card_have_the_pass_rates(evaluate, job):
    figures = job.folder / "scores.json"
    code, out, err = evaluate("says [anything]: ''\n", "--json", figures)
    fails((code, out, err), "'regex' of the check 'says [anything]'", "must be a regular expression")
    checks = "says [anything]: '^'\nsays goodbye: {ends_with: Goodbye!}\n"
    code, out, err = evaluate(checks, "--json", figures, "--card")
    assert code == 0, err
    lines = [line for line in out.splitlines() if " of 2" in line or "KL to the full" in line]
    for line, start, cell in zip(
        lines, ("says [anything]", "says goodbye", "all checks"), ("2 of 2", "0 of 2", "0 of 2")
    ):
        assert line.strip(" \u2502").startswith(start) and line.count(cell) == 3
    assert "KL" in lines[3]  # after the checks
    assert "No check is clearly lost" in out and "there are fewer for 'says [anything]' (2)" in out
    assert "2 of 2 answers of the full prompt are as long as they may be, 4 tokens" in err
    scores = json.loads(figures.read_text())["checks"]
    assert scores["all checks"]["be"] == 0 and scores["says [anything]"]["num_answers"] == 2
    results = ModelCard.load(job.folder / "out" / "README.md").data.eval_results
    found = {r.metric_name: r.metric_value for r in results if r.metric_type == "check_pass_rate"}
    assert (
        found["Answers that pass: says [anything]"] == 1 == 1 + found["Answers that pass: all checks"]
        and len(found) == 3
    )


def test_one_check_needs_no_sum(evaluate):
    code, out, _ = evaluate("says [anything]: '^'\n")
    assert code == 0 and "says [anything]" in out and "all checks" not in out


def test_a_pass_rate_that_is_too_low_ends_with_1_after_all_is_written(evaluate, job):
    figures = job.folder / "scores.json"
    checks = "answers: '^'\nsays goodbye: {ends_with: Goodbye!}\n"
    result = evaluate(checks, "--fail-below", 0.95, "--json", figures, "--card")
    fails(result, "[BE] passes 1 of 2 checks in too few answers: 'says goodbye' in 0 of 2, which is below 0.95.")
    assert (
        "gap, mean over tokens" in result[1] and json.loads(figures.read_text())["checks"]["says goodbye"]["be"] == 0
    )
    assert "check_pass_rate" in (job.folder / "out" / "README.md").read_text()
    # A check's own rate holds without the option
    fails(evaluate("says goodbye: {ends_with: Goodbye!, min_pass_rate: 0.5}\n"), "which is below 0.5")
    assert evaluate("answers: '^'\n", "--fail-below", 1)[0] == 0


def test_what_is_wrong_is_said_before_a_model_is_loaded(evaluate, cli, job):
    fails(evaluate("a: {contains: b, when: refund}\n", "--model", "/no/such/folder"), "No query matches 'when'")
    fails(evaluate("a: {contain: b}\n", "--model", "/no/such/folder"), "did you mean 'contains'?")
    fails(evaluate("a: b\n", "--fail-below", 95), "--fail-below must be above 0 and at most 1")
    given = ["--prompt", job.folder / "prompt.txt", "--queries", job.folder / "held_out.txt", "--fail-below", 0.5]
    fails(cli("eval", job.folder / "out", *given), "--fail-below is for the checks of --checks")


def test_what_is_lost_is_said_in_answers(capsys):
    (check,) = load_checks({"says [goodbye]": {"ends_with": "Goodbye!"}})
    pairs = 8 * [("Goodbye!", "")] + [("", "Goodbye!")] + 3 * [("Goodbye!", "Goodbye!")]
    show_lost(check_scores([check], [{"query": "Hi", "full": f, "be": b, "no_prompt": ""} for f, b in pairs]))
    assert capsys.readouterr().out == (
        "Lost: 'says [goodbye]'. 8 answers pass with the full prompt alone, 1 with [BE] alone "
        "(McNemar's exact test: p = 0.039).\n"
    )


def test_a_comparison_counts_them(cli, job, tiny_dir):
    path = job.folder / "checks.yaml"
    path.write_text("says [anything]: '^'\nsays goodbye: {ends_with: Goodbye!}\n")
    arguments = ["--prompt", job.folder / "prompt.txt", "--queries", job.folder / "queries.jsonl", "--model", tiny_dir]
    arguments += ["--output", job.folder / "compared", "--max-answer-length", 4, "--methods", "truncation:8"]
    code, out, err = cli("compare", *arguments, "--checks", path)
    assert code == 0, err
    assert "pass all checks in 0 % of the answers, the full prompt in 0 %, no prompt in 0 %." in out
    assert "| says \\[anything\\] | 1.000 | 1.000 | 1.000 |" in out
    assert "answers of the full prompt are as long as they may be, 4 tokens" in err
    assert '<section id="checks">' in (job.folder / "compared" / "report.html").read_text()
