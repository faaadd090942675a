"""Whether the page can be read and used, on any screen and by keyboard."""

import itertools

import pytest

from ..contrast import contrast
from .pages import ask, finished


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 375, 1280])
def test_nothing_is_wider_than_the_window(visit, address, width):
    tab = visit(address, viewport={"width": width, "height": 800})
    for question in ("Is it cold? " + "x" * 300, "Why?"):
        ask(tab, question)
        tab.locator(".be-question").get_by_text(question).wait_for()
        finished(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    left = [card.bounding_box()["x"] for card in tab.locator(".be-card").all()]
    assert len(set(left)) == (3 if width == 1280 else 1)
    # Each button shows its whole text, and covers no other
    boxes = []
    for button in tab.locator("button:visible").all():
        assert button.evaluate("e => e.scrollWidth <= e.clientWidth && e.scrollHeight <= e.clientHeight + 1")
        boxes.append(button.bounding_box())
        assert boxes[-1]["height"] < 60 and boxes[-1]["x"] + boxes[-1]["width"] <= width
    for a, b in itertools.combinations(boxes, 2):
        beside = a["x"] + a["width"] <= b["x"] or b["x"] + b["width"] <= a["x"]
        assert beside or a["y"] + a["height"] <= b["y"] or b["y"] + b["height"] <= a["y"]
    ask(tab, "Is it cold?", 10_000)
    error = tab.get_by_role("alert").bounding_box()
    assert error["width"] > 200
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


# Each text of the page with its colour and what is behind it, as red, green, blue; what is switched off is left out
TEXTS = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
    const paint = (colours) => {
        canvas.clearRect(0, 0, 1, 1);
        for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const found = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const element = texts.currentNode.parentElement;
        if (!texts.currentNode.data.trim() || !element.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) continue;
        if (element.closest(':disabled, [aria-disabled=true], script, style')) continue;
        const behind = ['white'];
        for (let e = element; e; e = e.parentElement) behind.splice(1, 0, getComputedStyle(e).backgroundColor);
        found.push([texts.currentNode.data.trim(), paint([...behind, getComputedStyle(element).color]), paint(behind)]);
    }
    return found;
}"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_texts_can_be_read(visit, address, scheme):
    tab = visit(address, color_scheme=scheme)
    for question in ("Is it cold?", "Why?"):
        ask(tab, question, 3)
        tab.locator(".be-question").get_by_text(question).wait_for()
        finished(tab)
    texts = tab.evaluate(TEXTS)
    ask(tab, " ")
    tab.get_by_role("alert").wait_for()
    texts += tab.evaluate(TEXTS)
    ask(tab, "Is it cold?", 200)
    tab.wait_for_selector("button:has-text('Stop'):enabled")
    tab.wait_for_timeout(500)  # Gradio's buttons fade in
    texts += tab.evaluate(TEXTS)
    assert {"Ask", "Stop", "New conversation", "Who are you?", "Cut after 3 tokens", "[BE]"} <= {
        text for text, *_ in texts
    }
    dim = {
        text: round(contrast(colour, behind), 2) for text, colour, behind in texts if contrast(colour, behind) < 4.5
    }
    assert not dim
    tab.get_by_role("button", name="Stop").click()
    tab.get_by_text("Stopped.").wait_for()


@pytest.mark.slow
@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_can_be_used_with_the_keyboard(visit, address, width):
    tab = visit(address, viewport={"width": width, "height": 800})
    tab.get_by_label("Question").focus()
    reached = []
    for _ in range(9):
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate("document.activeElement.innerText"))
    wanted = ["Who are you?", "Ask", "New conversation"]
    assert [text for text in reached if text in wanted] == wanted
    tab.get_by_role("button", name="Who are you?").focus()
    tab.keyboard.press("Enter")
    tab.locator(".be-question").get_by_text("Who are you?").wait_for()
    tab.get_by_role("button", name="Stop").click()
