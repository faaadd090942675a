"""The report in a real browser: headless Chromium, driven by Playwright."""

import re

import pytest

from peft_be.comparison.report.report import ASSETS, html_report

from ..contrast import contrast, rgb
from .reports import HOSTILE, dots_of, method_of, with_gaps


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
    assert tab.locator("#trade-off .dot").count() == 3
    # What is of interest to few is folded
    assert tab.locator("#curves").is_hidden()
    tab.locator("#research > summary").click()
    assert tab.locator("#curves polyline:not(.other)").count() == 4
    for chart in tab.locator(".plot").all():
        box = chart.bounding_box()
        assert box["width"] > 150 and box["height"] > 30 and chart.get_attribute("aria-label")

    assert tab.locator(".query:visible").count() == 1
    assert tab.locator(".query:visible h3").inner_text() == "Who are you?"
    assert tab.get_by_label("Previous query").is_disabled()
    tab.get_by_label("Query", exact=True).select_option("1")
    assert tab.locator(".query:visible h3").inner_text() == "Is it cold?"
    answers = tab.locator(".query:visible .answer")
    assert [card.locator("p").first.inner_text() for card in answers.all()] == [
        "Aye.", "Second of 1.", "Second of 1.", "Second of None."
    ]  # fmt: skip
    assert answers.nth(2).get_by_text("Second of 3.").is_hidden()
    answers.nth(2).get_by_text("2 other seeds").click()
    assert answers.nth(2).get_by_text("Second of 3.").is_visible()
    tab.get_by_label("Previous query").click()
    assert tab.locator(".query:visible h3").inner_text() == "Who are you?"


def test_the_table_can_be_sorted_with_the_best_first(visit, results):
    method_of(results, "be")["runs"][0]["fit_seconds"] = 9.0
    tab = visit(results)

    def order():
        return tab.locator(".figures tbody th .method > span:last-child").all_inner_texts()

    best_first = ["Full prompt", "cartridge, 4 tokens †", "[BE]", "No prompt"]
    assert order() == best_first
    heading = tab.get_by_role("button", name="Mean gap")
    for expected in (best_first[::-1], best_first):
        heading.click()
        assert order() == expected
    assert tab.locator("[aria-sort=descending]").inner_text().startswith("Mean gap")
    # Less is better here
    tab.get_by_role("button", name="KL", exact=True).click()
    assert order() == best_first
    tab.get_by_role("button", name="Fit time").click()
    assert order()[2:] == ["[BE]", "cartridge, 4 tokens †"]
    for _ in range(2):
        tab.get_by_role("button", name="Steps").click()
        assert set(order()[2:]) == {"Full prompt", "No prompt"}  # they have none


def test_the_dots_can_be_read_by_keyboard(visit, results):
    """Each one comes with the Tab key, says its figures, and lies over the others then."""
    tab = visit(results, viewport={"width": 375, "height": 800})
    read = set()
    for _ in range(10):
        tab.keyboard.press("Tab")
        dot = tab.locator("#trade-off .dot:focus")
        if dot.count():
            tip = dot.locator(".tip")
            assert tip.is_visible() and dot.get_attribute("aria-label") == tip.inner_text()
            read.add(tip.inner_text())
            box = tip.bounding_box()
            assert 0 <= box["x"] and box["x"] + box["width"] <= 375
            assert tab.evaluate("document.documentElement.scrollWidth") == 375
            middle = [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2]
            assert tip.evaluate("(tip, at) => tip.contains(document.elementFromPoint(...at))", middle)
    assert len(read) == 3 and read == {text for _, _, text in dots_of(html_report(results)).values()}


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
@pytest.mark.parametrize("width", [320, 375, 760, 1180, 1280])
def test_nothing_is_wider_than_the_window(visit, results, width, scheme):
    with_gaps(results)  # all columns
    results["queries"][0] = "x" * 500
    be = method_of(results, "be")
    be["runs"][0]["answers"][0] = "y" * 500
    be["name"] = results["prompt"]["name"] = "z" * 90
    results["settings"]["model"] = "w" * 90
    method_of(results, "llmlingua-2")["error"] = "e" * 300
    tab = visit(results, viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab.locator("#research > summary").click()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    # The figures do not leave the page's column either, nor the cards that they are where that is narrow
    for part in tab.locator(".figures, .figures tr, .card, pre, .settings").all():
        assert part.evaluate(
            "e => e.scrollWidth <= e.clientWidth + 1 && e.getBoundingClientRect().right <= innerWidth"
        )
    left = {round(row.bounding_box()["x"]) for row in tab.locator(".figures tbody tr").all()}
    assert len(left) == {320: 1, 375: 1, 760: 2, 1180: 3, 1280: 1}[width]
    assert tab.locator(".figures thead").is_visible() is (width == 1280)
    paper, ink = (
        tab.evaluate(f"getComputedStyle(document.body).{name}.match(/\\d+/g).slice(0, 3).map(Number)")
        for name in ("backgroundColor", "color")
    )
    assert (sum(paper) > sum(ink)) is (scheme == "light")
    assert contrast(paper, ink) > 7


def test_the_colours_can_be_told_from_what_is_behind_them():
    """By the contrast of WCAG 2, in the light, the dark and the printed page."""
    schemes = re.findall(r":root \{(.*?)\}", (ASSETS / "page.css").read_text(), re.DOTALL)
    assert len(schemes) == 3
    for scheme in schemes:
        colours = {name: rgb(value) for name, value in re.findall(r"--([\w-]+): #(\w+)", scheme)}
        series = ["full", "none", *(f"m{number}" for number in range(1, 9))]
        for name in ("ink", "soft", "accent", "warn", *series):
            assert contrast(colours[name], colours["paper"]) > 4.5 and contrast(colours[name], colours["card"]) > 4.5
        assert contrast(colours["warn"], colours["warn-paper"]) > 4.5
        assert contrast(colours["ink"], colours["warn-paper"]) > 4.5
        for name in series:
            assert contrast(colours["on-pin"], colours[name]) > 4.5
