"""The reports of a comparison: right figures, harmless texts, and a page that needs nothing but itself."""

import copy
import json
import math
import re
from html.parser import HTMLParser

import pytest

from peft_be.comparison.report.report import html_report, markdown_table


HOSTILE = "</script><script>document.title = 'stolen'</script><img src=x onerror=\"document.title = 'stolen'\">"
VOID = {"meta", "br", "hr", "img", "input", "link"}


def make_run(seed, kl, no_prompt=0.4, **others):
    return {
        "seed": seed,
        "kl": kl,
        "kl_gap_closed": 1 - kl / no_prompt,
        "query_kl": [0.5 * kl, 1.5 * kl],
        "top1_agreement": 0.8,
        "answer_rouge_l": 0.3,
        "ttft_ms": 120.0,
        "kv_bytes": 1_200_000,
        "fit_seconds": 90.0,
        "steps": 20,
        "curve": [[0, 0.5], [10, 0.3], [20, kl]],
        "norm": [[0, 100.0], [20, 150.0]],
        "reconstruction": {"token_accuracy": 0.5, "greedy_prefix_match": 0.0, "curve": [[1, 1.0], [10, 0.6]]},
        "task": {"score": 0.6, "stderr": 0.02},
        "answers": [f"First of {seed}.", f"Second of {seed}."],
        **others,
    }


def bound(name, label, tokens, kl, score):
    nothing_learned = {"steps": None, "curve": [], "norm": [], "reconstruction": None, "fit_seconds": 0.0}
    run = make_run(None, kl, task={"score": score, "stderr": 0.02}, **nothing_learned)
    return {"name": name, "label": label, "trains": False, "tokens": tokens, "bytes": 0, "runs": [run], "error": None}


@pytest.fixture
def results():
    be = {"name": "be", "label": "[BE], 1 row", "trains": True, "tokens": 1, "bytes": 2304, "error": None}
    prefix = {"name": "prefix", "label": "Prefix | 4", "trains": True, "tokens": 4, "bytes": 5_000_000, "error": None}
    return {
        "model": "some/model",
        "prompt": {"name": "pirate.txt", "tokens": 300},
        "num_queries": {"train": 8, "validation": 2, "test": 2},
        "num_answer_tokens": 20,
        "max_answer_length": 10,
        "budget": {"max_steps": 20, "max_minutes": None},
        "seeds": [1, 2, 3],
        "task": "Quiz",
        "machine": {"device": "cpu", "threads": 1},
        "versions": {"torch": "2.13.0"},
        "queries": ["Who are you?", "Is it cold?"],
        "full_answers": ["A pirate.", "Aye."],
        "methods": [
            bound("full", "Full prompt", 300, 0.0, 0.8),
            bound("none", "No prompt", 0, 0.4, 0.5),
            {**be, "runs": [make_run(seed, kl) for seed, kl in ((1, 0.1), (2, 0.16), (3, 0.13))]},
            {**prefix, "runs": [make_run(1, 0.08)]},
            {"name": "lingua", "label": "Pruned", "trains": False, "tokens": 30, "bytes": 90, "runs": [],
             "error": "The package is missing:\npip install it."},
        ],
    }  # fmt: skip


class Document(HTMLParser):
    """Parses a page, and holds that every element is closed in its order, and that no attribute leads out of the page."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.texts, self.ids = [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        assert not {"src", "srcset", "href", "xlink:href", "data", "action", "background"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
        assert "url(" not in (attributes.get("style") or "")
        self.tags.append((tag, attributes))
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.texts.append(data)
        elif "style" in self.open:
            assert "url(" not in data and "@import" not in data and "@font-face" not in data

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def sections(self):
        return [attributes["id"] for tag, attributes in self.tags if tag == "section"]


def table_of(markdown):
    """Rows of a markdown table as dicts, by label."""
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in markdown.splitlines()
        if line.startswith("|")
    ]
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def test_the_markdown_table_has_the_figures(results):
    text = markdown_table(results)
    table = table_of(text)
    assert list(table) == ["Full prompt", "No prompt", r"\[BE\], 1 row", r"Prefix \| 4"]
    be = table[r"\[BE\], 1 row"]
    mean = math.fsum((0.1, 0.16, 0.13)) / 3
    assert be == {
        "Method": r"\[BE\], 1 row",
        "Tokens": "1",
        "Compression": "300×",
        "Size": "2.30 KB",
        "KL": f"{mean:.4f} (0.1000 to 0.1600)",
        "KL gap closed": f"{1 - mean / 0.4:.3f} (0.600 to 0.750)",
        "Same top token": "0.800",
        "ROUGE-L": "0.300",
        "Quiz": "0.600 (± 0.020)",
        "Task retention": f"{0.6 / 0.8:.3f}",
        "First token": "120 ms",
        "KV cache": "1.20 MB",
        "Steps": "20",
        "Fit time": "1.5 min",
    }
    prefix = table[r"Prefix \| 4"]
    assert prefix["KL"] == "0.0800 (one seed)" and prefix["KL gap closed"] == "0.800 (one seed)"
    assert prefix["Compression"] == "75×"
    assert table["Full prompt"]["KL"] == "0.0000" and table["Full prompt"]["Compression"] == "1×"
    assert table["No prompt"]["KL gap closed"] == "0.000" and table["No prompt"]["Compression"] == "–"
    assert r"One seed only: Prefix \| 4." in text and "BE" not in text[text.index("One seed") :]
    assert "Failed: Pruned: The package is missing: pip install it." in text


def test_the_page_shows_the_same_figures(results):
    page = Document(html_report(results))
    shown = page.text.replace("\u2011", "-")
    for row in table_of(markdown_table(results)).values():
        for cell in list(row.values())[1:]:
            for part in re.split(r" \(|\)", cell):
                assert part in shown
    values = [attributes["data-value"] for tag, attributes in page.tags if tag == "td" and "data-value" in attributes]
    assert len(values) == 4 * 13 and str(math.fsum((0.1, 0.16, 0.13)) / 3)[:10] in {value[:10] for value in values}


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
    results["methods"][0]["runs"][0]["task"] = full
    results["methods"][1]["runs"][0]["task"] = none
    text = markdown_table(results)
    be = table_of(text)[r"\[BE\], 1 row"]
    assert be["Task retention"] == (f"{0.6 / full['score']:.3f}" if has_retention else "–")
    assert ("No task retention" in text) is not has_retention


def test_no_part_is_retained_of_what_is_better_when_lower(results):
    results["methods"][0]["runs"][0]["task"] = {"score": 50.0, "stderr": 1.0}
    results["methods"][1]["runs"][0]["task"] = {"score": 80.0, "stderr": 1.0}
    for lower_is_better in (False, True):
        results["task_lower_is_better"] = lower_is_better
        text = markdown_table(results)
        assert table_of(text)[r"\[BE\], 1 row"]["Task retention"] == "–"
        assert ("lower scores are better" in text) == lower_is_better


def test_texts_are_escaped(results):
    results["queries"][0] = results["full_answers"][1] = HOSTILE
    results["model"] = results["prompt"]["name"] = results["task"] = HOSTILE
    results["machine"] = {HOSTILE: HOSTILE}
    method = results["methods"][2]
    method["label"] = HOSTILE
    method["runs"][0]["answers"][0] = HOSTILE
    results["methods"][4]["error"] = HOSTILE
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
        "methods", "failed", "trade-off", "queries-kl", "answers", "curves", "norms", "reconstruction", "reading",
        "settings",
    ]  # fmt: skip
    paths = [(key,) for key in results]
    paths += [("methods", 2, key) for key in results["methods"][2]]
    paths += [("methods", i, "runs", 0, key) for i in (1, 2) for key in make_run(1, 0.1)]
    paths += [("methods", 2, "runs", 0, "reconstruction", "curve"), ("prompt", "tokens"), ("budget", "max_steps")]
    for path in paths:
        for value in (..., None):
            Document(html_report(damaged(results, path, value)))
            markdown_table(damaged(results, path, value))


@pytest.mark.parametrize(
    "key, section",
    [("curve", "curves"), ("norm", "norms"), ("reconstruction", "reconstruction"), ("query_kl", "queries-kl")],
)
def test_a_section_without_data_is_left_out(results, key, section):
    for method in results["methods"]:
        for run in method["runs"]:
            run[key] = [] if isinstance(run[key], list) else None
    sections = Document(html_report(results)).sections()
    assert section not in sections and len(sections) == 9


def test_a_failed_method_takes_no_place(results):
    results["methods"].insert(2, results["methods"].pop())
    page = Document(html_report(results))
    assert page.text.count("closer than no prompt on") == 2 and page.text.count("Pruned") == 1
    assert [tag for tag in page.tags if tag[0] == "span" and tag[1].get("class") == "pin m1"]


def test_nothing_at_all():
    for results in ({}, {"methods": []}, {"methods": [{"name": "be", "error": "It failed."}]}):
        assert "No method has a result." in markdown_table(results)
        assert "No method has a result." in Document(html_report(results)).text
    assert "Failed: be: It failed." in markdown_table(results)


def test_a_method_that_fell_apart_leaves_room_for_the_others(results):
    results["methods"][3]["runs"] = [make_run(1, 40.0), make_run(2, math.nan, query_kl=[math.nan, math.inf])]
    table = table_of(markdown_table(results))
    assert table[r"Prefix \| 4"]["KL gap closed"].startswith("−99.000")
    page = html_report(results)
    Document(page)
    assert not re.search(r"\bnan\b|\binf\b", page)
    # [BE] is still in the upper part of its chart
    chart = page[page.index('id="trade-off"') : page.index('id="queries-kl"')]
    places = dict(re.findall(r'<svg class="(\w+)" x="[\d.]+%" y="([\d.]+)%">', chart))
    assert float(places["full"]) < float(places["m1"]) < 40 < 95 < float(places["m2"]) <= 100


def test_the_charts_are_where_the_numbers_are(results):
    page = html_report(results)
    chart = page[page.index('id="trade-off"') : page.index('id="queries-kl"')]
    places = {
        css: (float(x), float(y))
        for css, x, y in re.findall(r'<svg class="(\w+)" x="([\d.]+)%" y="([\d.]+)%">', chart)
    }
    x = {"full": 1, "m1": 300, "m2": 75}
    y = {"full": 1.0, "m1": 1 - 0.13 / 0.4, "m2": 0.8}
    assert set(places) == set(x)
    # Equal ratios are equally long, and equal differences are equally high
    width = (places["m1"][0] - places["full"][0]) / math.log(300)
    assert places["m2"][0] - places["full"][0] == pytest.approx(width * math.log(x["m2"]), abs=0.1)
    height = (places["m1"][1] - places["full"][1]) / (y["full"] - y["m1"])
    assert places["m2"][1] - places["full"][1] == pytest.approx(height * (y["full"] - y["m2"]), abs=0.1)
    strip = page[page.index('id="queries-kl"') : page.index('id="answers"')]
    dots = [float(at) for at in re.findall(r'<circle class="dot none" data-query="\d" cx="([\d.]+)%"', strip)]
    assert dots == pytest.approx([0.2 / 0.6 * 100, 100], abs=0.1)
    assert "closer than no prompt on 2 of 2" in strip


@pytest.fixture
def visit(browser, tmp_path):
    """Open a report from disk without a network. No script may fail, and nothing may be asked for."""
    contexts, requests, complaints = [], [], []

    def start(results, **options):
        path = tmp_path / "report.html"
        path.write_text(html_report(results), encoding="utf-8")
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("console", lambda message: complaints.append(message.text))
        tab.goto(path.as_uri())
        return tab

    yield start
    for context in contexts:
        context.close()
    assert not complaints
    assert {url.partition(":")[0] for url in requests} == {"file"} and len(requests) == len(contexts)


def test_in_a_browser(visit, results):
    tab = visit(results)
    assert tab.locator("#trade-off .pin-dot").count() == 3
    assert tab.locator("#curves polyline:not(.other)").count() == 4
    for chart in tab.locator("svg[role=img]").all():
        box = chart.bounding_box()
        assert box["width"] > 150 and box["height"] > 30 and chart.get_attribute("aria-label")

    assert tab.locator(".query:visible").count() == 1
    assert tab.locator(".query:visible h3").inner_text() == "Who are you?"
    assert tab.get_by_label("Previous query").is_disabled()
    tab.get_by_label("Query", exact=True).select_option("1")
    assert tab.locator(".query:visible h3").inner_text() == "Is it cold?"
    answers = tab.locator(".query:visible .answer")
    assert [card.locator("p").first.inner_text() for card in answers.all()] == [
        "Aye.", "Second of None.", "Second of 1.", "Second of 1."
    ]  # fmt: skip
    assert tab.locator(".dot.chosen").count() == 3
    assert answers.nth(2).get_by_text("Second of 3.").is_hidden()
    answers.nth(2).get_by_text("2 other seeds").click()
    assert answers.nth(2).get_by_text("Second of 3.").is_visible()
    tab.get_by_label("Previous query").click()
    assert tab.locator(".query:visible h3").inner_text() == "Who are you?"
    tab.locator('.dot.m1[data-query="1"]').click()
    assert tab.locator(".query:visible h3").inner_text() == "Is it cold?"


def test_the_table_can_be_sorted(visit, results):
    tab = visit(results)

    def order():
        return tab.locator(".figures tbody th .method > span:last-child").all_inner_texts()

    given = order()
    tab.get_by_role("button", name="KL gap closed").click()
    assert order() == ["No prompt", "[BE], 1 row", "Prefix | 4", "Full prompt"]
    tab.get_by_role("button", name="KL gap closed").click()
    assert order() == ["Full prompt", "Prefix | 4", "[BE], 1 row", "No prompt"]
    assert tab.locator("[aria-sort=descending]").inner_text().startswith("KL gap")
    for _ in range(2):
        tab.get_by_role("button", name="Compression").click()
        assert order()[-1] == "No prompt"  # it has none
    assert set(order()) == set(given)


def test_hostile_texts_in_a_browser(visit, results):
    results["queries"] = [HOSTILE, HOSTILE]
    results["full_answers"] = [HOSTILE, HOSTILE]
    tab = visit(results)
    assert tab.title() == "What can stand in for 300 prompt tokens?"
    assert tab.locator(".query:visible h3").inner_text() == HOSTILE
    assert tab.locator("img").count() == 0


def test_no_script_but_its_own_would_run(browser, results, tmp_path):
    """The page's policy is a second line of defence after the escaping."""
    path = tmp_path / "report.html"
    page = html_report(results).replace("</h1>", f"</h1>{HOSTILE}")
    path.write_text(page, encoding="utf-8")
    with browser.new_context(offline=True) as context:
        tab = context.new_page()
        tab.goto(path.as_uri())
        assert tab.locator("img").count() == 1
        assert tab.title() == "What can stand in for 300 prompt tokens?"
        assert tab.locator(".query:visible").count() == 1  # its own one did


def test_without_scripts_all_answers_are_there(visit, results):
    tab = visit(results, java_script_enabled=False)
    assert tab.locator(".query:visible").count() == 2
    assert not tab.locator("#query").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_window(visit, results, width, scheme):
    results["queries"][0] = "x" * 500
    results["methods"][2]["runs"][0]["answers"][0] = "y" * 500
    results["methods"][2]["label"] = results["prompt"]["name"] = "z" * 90
    results["methods"][4]["error"] = "e" * 300
    tab = visit(results, viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    paper, ink = (
        tab.evaluate(f"getComputedStyle(document.body).{name}.match(/\\d+/g).slice(0, 3).map(Number)")
        for name in ("backgroundColor", "color")
    )
    assert (sum(paper) > sum(ink)) is (scheme == "light")
    assert contrast(paper, ink) > 7
    for pin in tab.locator(".figures .pin").all():
        colours = pin.evaluate("e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color]")
        assert contrast(*([int(part) for part in re.findall(r"\d+", colour)[:3]] for colour in colours)) > 4.5


def contrast(a, b):
    """Contrast ratio of WCAG 2."""

    def luminance(colour):
        parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_results_may_have_been_a_file(results):
    assert html_report(json.loads(json.dumps(results))) == html_report(results)
