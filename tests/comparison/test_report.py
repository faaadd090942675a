"""The reports of a comparison: right figures, harmless texts, and a page that needs nothing but itself."""

import copy
import html
import inspect
import json
import math
import random
import re
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_be.cli.compare import compare
from peft_be.comparison.report.report import html_report, markdown_table

from .reports import HOSTILE, Document, bound, dots_of, gap_of, make_run, method_of, table_of, with_gaps


def test_the_markdown_table_has_the_figures(results):
    for seed, run in enumerate(method_of(results, "be")["runs"]):
        run["ttft_ms"] = 120.0 + seed
    text = markdown_table(results)
    table = table_of(text)
    assert list(table) == ["Full prompt", "cartridge, 4 tokens †", r"\[BE\]", "No prompt"]
    be = table[r"\[BE\]"]
    mean = math.fsum((0.1, 0.16, 0.13)) / 3
    assert be == {
        "Method": r"\[BE\]",
        "Quiz": "0.600 (± 0.020)",
        "Task retention": f"{0.6 / 0.8:.3f}",
        "Mean gap": f"{1 - mean / 0.4:.3f} (0.600 to 0.750)",
        "KL": f"{mean:.4f}",
        "Tokens": "1 (300×)",
        "First token": "121 ms (120 to 122 ms)",
        "KV cache": "1.20 MB",
        "Size": "2.30 KB",
        "Same top token": "0.800",
        "ROUGE-L": "0.300",
        "Steps": "20",
        "Fit time": "1.5 min",
    }
    assert list(be)[1:4] == ["Quiz", "Task retention", "Mean gap"]
    assert table["Full prompt"]["KL"] == "0.0000" and table["Full prompt"]["Tokens"] == "300 (1×)"
    assert table["No prompt"]["Mean gap"] == "0.000" and table["No prompt"]["Tokens"] == "0"
    assert "Failed: llmlingua-2: The package is missing: pip install it." in text


def test_the_page_shows_the_same_figures(results):
    page = Document(html_report(results))
    shown = page.text.replace("\u2011", "-")
    for row in table_of(markdown_table(results)).values():
        for cell in list(row.values())[1:]:
            for part in re.split(r" \(|\)", cell):
                assert part in shown
    cells = [attributes for tag, attributes in page.tags if tag == "td" and "data-value" in attributes]
    assert len(cells) == 4 * 12
    # On a narrow screen each figure stands next to its heading
    assert {cell["data-heading"] for cell in cells} == set(list(table_of(markdown_table(results)).values())[0]) - {
        "Method"
    }
    assert str(math.fsum((0.1, 0.16, 0.13)) / 3)[:10] in {cell["data-value"][:10] for cell in cells}


def test_the_order_of_the_methods_is_that_of_their_scores(results):
    """Whatever order they ran in."""
    expected = html_report(results)
    generator = random.Random(0)
    for _ in range(5):
        generator.shuffle(results["methods"])
        assert html_report(results) == expected


def words(results):
    """The verdict, which comes first in both reports."""
    page = html_report(results)
    found = re.search(r'<p class="verdict">(.*?)</p>', page)
    if not found:
        return ""
    assert page.index(found[0]) < page.index("<main>")
    text = html.unescape(found[1])
    assert markdown_table(results).replace("\\", "").startswith(text + "\n\n")
    return text


SCORE = "1 token ([BE]) keeps 75 % of the full prompt's task score, of which no prompt keeps 62 %. "


def test_the_verdict(results):
    assert words(results) == (
        f"{SCORE}1 token ([BE]) closes 68 % of the gap between no prompt and the full prompt of 300 tokens. "
        "4 tokens (cartridge) close 80 % of the gap, the most of 2 methods."
    )
    none, full, be, _, prefix = results["methods"]
    # What is saved, where it is something
    full["runs"][0].update(ttft_ms=2000.0, kv_bytes=3_000_000)
    assert words(results).endswith(
        "Compared with the full prompt and nothing cached, [BE] gives the first token 17 times faster and needs 2.5 times "
        "less KV cache."
    )
    full["runs"][0]["kv_bytes"] = be["runs"][0]["kv_bytes"]
    assert words(results).endswith("nothing cached, [BE] gives the first token 17 times faster.")
    # Seeds that overlap
    prefix["runs"] = [make_run(1, 0.12), make_run(2, 0.13)]
    assert "The seeds of cartridge, 4 tokens overlap with those of [BE]: which is better stays open." in words(results)
    prefix["runs"] = [make_run(1, 0.08), make_run(2, 0.09)]
    assert "overlap" not in words(results)
    # The shortest is the best
    prefix["runs"] = [make_run(1, 0.3)]
    assert "300 tokens, the most of 2 methods. Compared" in words(results)
    # Worse than nothing
    be["runs"] = [make_run(1, 0.5)]
    assert words(results).startswith(
        f"{SCORE}1 token ([BE]) is further from the full prompt than no prompt is. 4 tokens"
    )
    be["runs"] = [make_run(1, 0.4)]
    assert words(results).startswith(f"{SCORE}1 token ([BE]) closes 0 % of the gap")
    # The score leads, and whoever keeps most of it
    prefix["runs"][0]["task"]["score"] = 0.76
    assert words(results).startswith(f"{SCORE}4 tokens (cartridge) keep 95 %, the most of 2 methods. 1 token")
    results["task_lower_is_better"] = True
    assert words(results).startswith("1 token ([BE]) closes 0 % of the gap")


def with_checks(results):
    """Two checks, one of which a single seed of [BE] loses, and the cartridge in its only run."""
    passed = {"none": (0.1, 0.0), "full": (1.0, 0.9), "be": (1.0, 0.5), "cartridge:4": (0.95, 0.25)}
    for method in results["methods"]:
        for number, run in enumerate(method["runs"]):
            greets, brief = passed[method["name"]]
            lost = method["name"] == "cartridge:4" or (method["name"] == "be" and number == 0)
            run["checks"] = {
                "greets [all]": {"be": greets, "lost": False},
                "is brief": {"be": brief, "lost": lost},
                "all checks": {"be": brief - 0.1 * (brief > 0), "lost": lost},
            }


def test_checks_lead(results):
    with_checks(results)
    text = markdown_table(results)
    table = table_of(text.partition("| Check |")[0])
    assert list(table[r"\[BE\]"])[1:4] == ["All checks", "Quiz", "Task retention"]
    assert table[r"\[BE\]"]["All checks"] == "0.400" and table["No prompt"]["All checks"] == "0.000"
    checks = table_of("| Check |" + text.partition("| Check |")[2])
    assert checks[r"greets \[all\]"][r"\[BE\]"] == "1.000"
    assert checks["is brief"] == {
        "Check": "is brief",
        "Full prompt": "0.900",
        "cartridge, 4 tokens": "0.250 (lost)",
        r"\[BE\]": "0.500 (lost in 1 of 3 runs)",
        "No prompt": "0.000",
    }
    assert words(results).startswith(
        "1 token ([BE]) passes all checks in 40 % of the answers, the full prompt in 80 %, no prompt in 0 %. 1 token ([BE]) "
        "keeps"
    )
    page = Document(html_report(results))
    assert page.sections()[:2] == ["methods", "checks"]
    assert "greets [all]" in page.text and "lost in 1 of 3 runs" in page.text
    # What most runs lose is said, and who passes more
    for run in method_of(results, "be")["runs"]:
        run["checks"]["is brief"]["lost"] = True
    method_of(results, "cartridge:4")["runs"][0]["checks"]["all checks"]["be"] = 0.45
    assert (
        "no prompt in 0 %. Lost with 1 token ([BE]): 'is brief'. 4 tokens (cartridge) pass them in 45 %, the most"
        in (words(results))
    )
    # The only one has no sum
    for method in results["methods"]:
        for run in method["runs"]:
            run["checks"] = {"is brief": run["checks"]["is brief"]}
    assert table_of(markdown_table(results).partition("| Check |")[0])[r"\[BE\]"]["All checks"] == "0.500"
    results["settings"]["checks"] = "2fd4"
    assert "--checks CHECKS" in html_report(results)
    results["methods"] = results["methods"][2:]
    assert words(results).startswith("1 token ([BE]) passes all checks in 50 % of the answers. Lost")


def test_a_method_that_takes_no_tokens(results):
    lora = results["methods"][4]
    lora.update(name="lora", tokens=0)
    lora["runs"] = [make_run(1, 0.04)]
    assert words(results).endswith("300 tokens. lora closes 90 % of the gap, the most of 2 methods.")
    table = table_of(markdown_table(results))
    assert table["lora †"]["Tokens"] == "0 (in the weights)" and table["No prompt"]["Tokens"] == "0"
    assert "lora" not in html_report(results).partition('<section id="trade-off">')[2].partition("</section>")[0]


def test_a_verdict_on_a_prompt_without_effect(results):
    for method in results["methods"]:
        for run in method["runs"]:
            run["kl_gap_closed"] = None
    nothing = "The prompt changes nothing on these queries, so there is no gap to close."
    assert words(results) == SCORE + nothing
    results["task_lower_is_better"] = True
    assert words(results) == nothing
    results["methods"] = results["methods"][1:]
    assert words(results) == ""


def test_the_median_leads_where_there_is_one(results):
    with_gaps(results)
    table = table_of(markdown_table(results))
    # The best on most queries comes first, though a few answers make another's mean the better one
    assert list(table) == ["Full prompt", r"\[BE\]", "cartridge, 4 tokens †", "No prompt"]
    be = table[r"\[BE\]"]
    assert list(be)[1:6] == ["Quiz", "Task retention", "Median gap", "Gap without quotations", "Mean gap"]
    assert be["Median gap"] == "0.850 (0.75 to 0.90)" and be["Gap without quotations"] == "0.800"
    assert table["Full prompt"]["Median gap"] == "1.000" and table["No prompt"]["Median gap"] == "0.000"
    assert words(results) == (
        f"{SCORE}1 token ([BE]) closes 85 % of the gap between no prompt and the full prompt of 300 tokens on the median "
        "query (95 % interval 75 to 90 %), the most of 2 methods. Over the tokens of the answers it is 80 % without "
        "quotations from the prompt, and 68 % with them."
    )
    dots = dots_of(html_report(results))
    assert dots["m1"][2] == "[BE]: 0.850 (0.75 to 0.90) at 300×" and dots["m1"][1] < dots["m2"][1]
    page = Document(html_report(results))
    assert "Three gaps." in page.text and "KL gap closed on the median query against" in page.text
    # Where nothing is quoted, there is nothing to tell apart
    for method in results["methods"]:
        for run in method["runs"]:
            run["gap"]["quoted_share"] = 0.0
    assert "Gap without quotations" not in table_of(markdown_table(results))[r"\[BE\]"]
    assert "Over the tokens of the answers it is 68 %." in words(results)


def test_the_noise_floor_is_that_of_the_prompt_in_another_order(results):
    with_gaps(results)
    before = words(results)
    runs = [make_run(1, 0.01, gap=gap_of(0.93)), make_run(2, 0.01, gap=gap_of(0.97))]
    results["methods"].append({"name": "reordered", "trains": False, "tokens": 300, "bytes": 900, "runs": runs})
    floor = "The noise floor is 5 %: as much of the gap stays open if the prompt is only reordered."
    # It is no method of its own
    assert words(results) == f"{before} {floor}"
    for run in runs:
        run["gap"] = gap_of(1.02)
    assert "The noise floor is 0 %" in words(results)
    results["methods"] = [method for method in results["methods"] if method["name"] in ("full", "none", "reordered")]
    assert words(results) == floor.replace("5 %", "0 %")


def test_what_no_median_holds_is_said(results):
    with_gaps(results)
    assert "¶" not in markdown_table(results) and "stands in the prompt" not in html_report(results)
    for method in results["methods"]:
        for run in method["runs"]:
            run["gap"]["unchanged_queries"] = 2
    results["left_out"] = [{"query": "Who?", "passage": "who"}]
    text, page = markdown_table(results), Document(html_report(results)).text
    assert "Median gap ¶" in table_of(text)[r"\[BE\]"]
    for report in (text, page):
        assert "2 queries have no part in the median" in report
    assert "2 (1 more stands in the prompt)" in page


@pytest.mark.parametrize("retained", [True, False])
@pytest.mark.parametrize("seeds, mark", [(1, "†"), (2, "‡"), (3, "")])
def test_a_mark_has_a_note_and_a_note_has_a_mark(results, seeds, mark, retained):
    method_of(results, "be")["runs"] = method_of(results, "be")["runs"][:seeds]
    method_of(results, "cartridge:4")["runs"] *= 3
    results["task_lower_is_better"] = not retained
    markdown, page = markdown_table(results), html_report(results)
    parts = [markdown.partition("\n- "), page[page.index("<table") :].partition("</table>")]
    for expected in "†‡§":
        is_there = expected == mark or (expected == "§" and not retained)
        for table, _, notes in parts:
            assert (expected in table) is (expected in notes) is is_there


@given(
    st.lists(
        st.tuples(st.integers(1, 2000), st.lists(st.floats(0, 5), min_size=1, max_size=3)), min_size=1, max_size=9
    )
)
def test_the_verdict_says_no_more_than_the_figures(methods):
    """It names the fewest tokens and the best score, whatever these are."""
    made = [bound("full", 300, 0.0, None), bound("none", 0, 0.4, None)]
    for number, (tokens, kls) in enumerate(methods):
        runs = [make_run(seed, kl) for seed, kl in enumerate(kls)]
        made.append({"name": f"m{number}", "tokens": tokens, "runs": runs})
    text = words({"methods": made, "prompt": {"tokens": 300}})
    fewest = min(tokens for tokens, _ in methods)
    best = round(100 * max(statistics.fmean(1 - kl / 0.4 for kl in kls) for _, kls in methods))
    assert text.startswith(f"{fewest:,} token")
    shares = [int(share) for share in re.findall(r"(\d+) %", text)]
    assert max(shares, default=-1) == (best if best >= 0 else -1)
    assert ("the most of" in text) is (len(methods) > 1 and best >= 0)


@pytest.mark.parametrize(
    "full, none, has_retention",
    [
        ({"score": 0.8, "stderr": 0.02}, {"score": 0.5, "stderr": 0.02}, True),
        # 2 * hypot(0.02, 0.02) = 0.0566
        ({"score": 0.557, "stderr": 0.02}, {"score": 0.5, "stderr": 0.02}, True),
        ({"score": 0.556, "stderr": 0.02}, {"score": 0.5, "stderr": 0.02}, False),
        ({"score": 0.5, "stderr": 0.02}, {"score": 0.8, "stderr": 0.02}, False),  # the prompt harms
        ({"score": 0.8}, {"score": 0.5, "stderr": 0.02}, False),
        (None, {"score": 0.5, "stderr": 0.02}, False),
    ],
)
def test_retention_needs_a_prompt_that_matters(results, full, none, has_retention):
    method_of(results, "full")["runs"][0]["task"] = full
    method_of(results, "none")["runs"][0]["task"] = none
    text = markdown_table(results)
    be = table_of(text)[r"\[BE\]"]
    assert be["Task retention" if has_retention else "Task retention §"] == (
        f"{0.6 / full['score']:.3f}" if has_retention else "–"
    )
    assert ("No task retention" in text) is not has_retention


def test_no_part_is_retained_of_what_is_better_when_lower(results):
    method_of(results, "full")["runs"][0]["task"] = {"score": 50.0, "stderr": 1.0}
    method_of(results, "none")["runs"][0]["task"] = {"score": 80.0, "stderr": 1.0}
    for lower_is_better in (False, True):
        results["task_lower_is_better"] = lower_is_better
        text = markdown_table(results)
        assert table_of(text)[r"\[BE\]"]["Task retention §"] == "–"
        assert ("lower scores are better" in text) == lower_is_better


def test_texts_are_escaped(results):
    results["queries"][0] = results["full_answers"][1] = HOSTILE
    results["model"] = results["prompt"]["name"] = results["task"] = HOSTILE
    results["machine"] = {HOSTILE: HOSTILE}
    be = method_of(results, "be")
    be["name"] = HOSTILE
    be["runs"][0]["answers"][0] = HOSTILE
    method_of(results, "llmlingua-2")["error"] = HOSTILE
    results["settings"]["methods"] = [HOSTILE]
    results["settings"]["model"] = results["settings"]["prompt"] = HOSTILE
    page = html_report(results)
    document = Document(page)
    assert [tag for tag, _ in document.tags].count("script") == 1 and "img" not in dict(document.tags)
    assert document.text.count(HOSTILE) > 8
    assert "<script" not in markdown_table(results).replace(r"\<", "")


def damaged(results, path, value=...):
    """A copy without one of its parts, or with another value there."""
    results = copy.deepcopy(results)
    part = results
    for key in path[:-1]:
        part = part[key]
    del part[path[-1]]
    if value is not ...:
        part[path[-1]] = value
    return results


def test_whatever_is_missing_leaves_out_its_part(results):
    assert Document(html_report(results)).sections() == [
        "methods", "failed", "trade-off", "answers", "curves", "norms", "reconstruction", "reading", "settings"
    ]  # fmt: skip
    paths = [(key,) for key in results]
    paths += [("methods", 2, key) for key in results["methods"][2]]
    paths += [("methods", i, "runs", 0, key) for i in (0, 2) for key in make_run(1, 0.1)]
    paths += [("methods", 2, "runs", 0, "reconstruction", "curve"), ("prompt", "tokens"), ("budget", "max_steps")]
    paths += [("settings", key) for key in results["settings"]]
    for path in paths:
        for value in (..., None):
            Document(html_report(damaged(results, path, value)))
            markdown_table(damaged(results, path, value))


@pytest.mark.parametrize(
    "key, section", [("curve", "curves"), ("norm", "norms"), ("reconstruction", "reconstruction")]
)
def test_a_section_without_data_is_left_out(results, key, section):
    for method in results["methods"]:
        for run in method["runs"]:
            run[key] = [] if isinstance(run[key], list) else None
    sections = Document(html_report(results)).sections()
    assert section not in sections and len(sections) == 8


def test_a_failed_method_takes_no_place(results):
    page = Document(html_report(results))
    assert page.text.count("llmlingua-2 :") == 1
    pins = {
        attributes["class"] for tag, attributes in page.tags if tag == "span" and "pin" in attributes.get("class", "")
    }
    assert pins == {f"pin{dot} {css}" for dot in ("", " dot") for css in ("full", "none", "m1", "m2")} - {
        "pin dot none"
    }


def test_nothing_at_all():
    for results in ({}, {"methods": []}, {"methods": [{"name": "be", "error": "It failed."}]}):
        assert markdown_table(results).startswith("No method has a result.") and words(results) == ""
        assert "No method has a result." in Document(html_report(results)).text
    assert r"Failed: \[BE\]: It failed." in markdown_table(results)


def test_a_method_that_fell_apart_leaves_room_for_the_others(results):
    method_of(results, "cartridge:4")["runs"] = [
        make_run(1, 40.0), make_run(2, math.nan, query_kl=[math.nan, math.inf])
    ]  # fmt: skip
    table = table_of(markdown_table(results))
    assert table["cartridge, 4 tokens ‡"]["Mean gap"].startswith("−99.000")
    page = html_report(results)
    Document(page)
    assert not re.search(r"\bnan\b|\binf\b", page)
    # [BE] is still in the upper part of its chart
    tops = {css: top for css, (_, top, _) in dots_of(page).items()}
    assert tops["full"] < tops["m1"] < 40 < 95 < tops["m2"] <= 100


def test_the_dots_are_where_the_numbers_are(results):
    dots = dots_of(html_report(results))
    x = {"full": 1, "m1": 75, "m2": 300}
    y = {"full": 1.0, "m1": 0.8, "m2": 1 - 0.13 / 0.4}
    assert set(dots) == set(x)
    # Equal ratios are equally long, and equal differences are equally high
    width = (dots["m2"][0] - dots["full"][0]) / math.log(300)
    assert dots["m1"][0] - dots["full"][0] == pytest.approx(width * math.log(x["m1"]), abs=0.1)
    height = (dots["m2"][1] - dots["full"][1]) / (y["full"] - y["m2"])
    assert dots["m1"][1] - dots["full"][1] == pytest.approx(height * (y["full"] - y["m1"]), abs=0.1)
    assert dots["m2"][2] == "[BE]: 0.675 (0.600 to 0.750) at 300×"


def test_the_settings_tell_how_to_compare_again(results):
    page = Document(html_report(results)).text
    assert results["settings"]["prompt"] in page and results["settings"]["queries"] in page
    command = re.search(r"peft-be compare (.*?) Settings", page)[1]
    assert (
        "--methods full,none,be,cartridge:4,llmlingua-2 --seed 1 --seeds 3 --task gsm8k --task-items ITEMS" in command
    )
    options = inspect.get_annotations(compare, eval_str=True)
    assert {name.replace("-", "_") for name in re.findall(r"--([\w-]+)", command)} <= set(options)
    # Its own two words for a series of seeds cannot tell others
    results["settings"]["seeds"] = [1, 3]
    assert "peft-be compare --" not in Document(html_report(results)).text


def test_the_results_may_have_been_a_file(results):
    assert html_report(json.loads(json.dumps(results))) == html_report(results)
