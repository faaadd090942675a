"""The page in a real browser: headless Chromium, driven by Playwright."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from peft_be import PromptRenderer, load_prompt
from peft_be.adapters.load import load_adapter
from peft_be.serving.side_by_side import PromptComparison

from ..exports import PROMPTS, save_adapter
from ..tiny import save_tiny_llama


pytest.importorskip("gradio", reason="the page needs gradio")
sync_api = pytest.importorskip("playwright.sync_api", reason="the page is tested with playwright")

TITLES = {"full": "Full prompt", "be": "[BE]", "no_prompt": "No prompt"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("page")
    base = save_tiny_llama(folder / "base", tiny_tokenizer)
    return [save_adapter(base, folder / "keeper", k=1), save_adapter(base, folder / "seller.v2", k=3)]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def serve(folders):
    """Serve the page of some prompts; returns its address."""
    from peft_be.serving.page import launch_page

    pages = []

    def start(prompts):
        comparison = PromptComparison(folders, prompts)
        # No faster than a real model, or long answers would be over before the browser sees them
        comparison.model.get_base_model().register_forward_pre_hook(lambda *_: time.sleep(0.05))
        pages.append(launch_page(comparison, port=free_port()))
        return pages[-1].local_url

    yield start
    for page in pages:
        page.close(verbose=False)


@pytest.fixture(scope="module")
def address(serve):
    return serve(PROMPTS)


@pytest.fixture
def visit(browser):
    """Open an address in a new tab. No request may leave this machine, and no script may fail."""
    tabs, requests, errors = [], [], []

    def start(address, **options):
        tab = browser.new_page(**options)
        tab.set_default_timeout(120_000)
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(address)
        tab.wait_for_selector("#form-be .be-card")
        tabs.append(tab)
        return tab

    yield start
    for tab in tabs:
        tab.close()
    assert requests and not errors
    assert {re.match(r"(?:https?://|data:|blob:http://)(127\.0\.0\.1|)", url)[1] for url in requests} <= {
        "127.0.0.1",
        "",
    }
    assert not [url for url in requests if url.startswith("http") and not url.startswith("http://127.0.0.1:")]


def ask(tab, question, length=4):
    tab.get_by_label("Longest answer").fill(str(length))
    tab.get_by_label("Question").fill(question)
    tab.get_by_role("button", name="Ask").click()


def finished(tab):
    """Wait until all is answered and the page takes the next question."""
    tab.wait_for_function("[...document.querySelectorAll('.be-card')].every(c => !c.innerText.includes('–'))")
    sync_api.expect(tab.get_by_role("button", name="Ask")).to_be_enabled(timeout=120_000)


def columns(tab):
    """Title, answer and figures of each column."""
    result = {}
    for card in tab.locator(".be-card").all():
        rows = [row.locator("th,td").all_inner_texts() for row in card.locator("tr").all()]
        title = card.locator("h3").inner_text()
        result[title] = {"answer": card.locator(".be-answer").inner_text(), **dict(rows)}
        size = card.locator("[title]")
        result[title]["bytes"] = int(size.get_attribute("title").split()[0].replace(",", "")) if size.count() else None
    return result


def check_figures(shown, renderer, question, forms):
    """The figures are there and fit: tokens as rendered, a cache that grows with them, no KL of the full prompt to itself."""
    assert list(shown) == [TITLES[form] for form in forms]
    for form in forms:
        column = shown[TITLES[form]]
        assert int(column["Input tokens"].replace(",", "")) == len(getattr(renderer, form)(question))
        assert int(column["Answer tokens"]) >= 1
        assert re.fullmatch(r"[\d,]+ ms", column["First token"])
        assert re.fullmatch(r"[\d.]+ MB", column["KV cache"])
        if "full" in forms:
            nats = float(re.fullmatch(r"(\d+\.\d{3}) nats/token", column["KL"])[1])
            assert nats == 0 or form != "full"
        else:
            assert "KL" not in column
    sizes = {form: shown[TITLES[form]]["bytes"] / len(getattr(renderer, form)(question)) for form in forms}
    assert len(set(sizes.values())) == 1
    if "full" in forms:
        assert shown["Full prompt"]["bytes"] > shown["[BE]"]["bytes"]


def renderer_of(folder, prompt=None):
    model, tokenizer = load_adapter(folder)
    return PromptRenderer.for_adapter(model.peft_config["default"], tokenizer, prompt)


def test_a_question_and_another_adapter(visit, address, folders):
    question = "Is it <b>cold</b>, ${1+1} and {{dry}}?"
    tab = visit(address)
    assert {column["answer"] for column in columns(tab).values()} == {"No answer."}
    ask(tab, question)
    finished(tab)
    keeper = columns(tab)
    check_figures(keeper, renderer_of(folders[0], PROMPTS[0]), question, tuple(TITLES))
    assert "keeper, 1 learned token stands for a prompt of" in tab.inner_text("body")

    tab.get_by_label("Adapter").click()
    tab.get_by_role("option", name="seller.v2").click()
    tab.get_by_text("seller.v2, 3 learned tokens stand for").wait_for()
    assert {column["answer"] for column in columns(tab).values()} == {"No answer."}
    tab.get_by_label("Question").press("Enter")
    finished(tab)
    seller = columns(tab)
    check_figures(seller, renderer_of(folders[1], PROMPTS[1]), question, tuple(TITLES))
    assert seller["No prompt"]["answer"] == keeper["No prompt"]["answer"]
    assert int(seller["[BE]"]["Input tokens"]) == int(keeper["[BE]"]["Input tokens"]) + 2


def test_without_the_prompt(visit, serve, folders):
    tab = visit(serve(None))
    ask(tab, "Is it cold?")
    finished(tab)
    check_figures(columns(tab), renderer_of(folders[0]), "Is it cold?", ("be", "no_prompt"))
    assert "The full prompt and the KL are missing" in tab.inner_text("body")


def test_what_cannot_be_answered_is_said_on_the_page(visit, address):
    tab = visit(address)
    for question, length, message in (
        (" ", 4, "The question is empty"),
        ("Is it cold?", 10_000, "context is 512"),
    ):
        ask(tab, question, length)
        tab.get_by_role("alert").filter(has_text=message).wait_for()
        assert {column["answer"] for column in columns(tab).values()} == {"No answer."}
    ask(tab, "Is it cold?")
    finished(tab)
    assert tab.get_by_role("alert").count() == 0


def test_an_answer_can_be_stopped(visit, address):
    tab, other = visit(address), visit(address)
    ask(tab, "Is it cold?", 200)
    tab.wait_for_function("/Answer tokens\\s+\\d/.test(document.querySelector('#form-full').innerText)")
    assert tab.get_by_role("button", name="Ask").is_disabled()
    ask(other, "Is it warm?")
    other.get_by_text("Another question is being answered").wait_for()
    tab.get_by_role("button", name="Stop").click()
    tab.get_by_text("Stopped.").wait_for()
    finished(other)
    shown = columns(tab)
    assert int(shown["Full prompt"]["Answer tokens"]) >= 1
    assert shown["No prompt"]["Answer tokens"] != "200" and shown["Full prompt"]["KL"] == "–"
    ask(tab, "Is it cold?")
    finished(tab)


def test_a_closed_tab_leaves_the_model_to_the_next_one(visit, address):
    tab = visit(address)
    ask(tab, "Is it cold?", 200)
    tab.wait_for_function("/Answer tokens\\s+\\d/.test(document.querySelector('#form-full').innerText)")
    tab.close()
    other = visit(address)
    ask(other, "Is it warm?")
    finished(other)


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(visit, address, width):
    tab = visit(address, viewport={"width": width, "height": 800})
    ask(tab, "Is it cold? " + "x" * 300)
    finished(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    left = [card.bounding_box()["x"] for card in tab.locator(".be-card").all()]
    assert len(set(left)) == (1 if width == 390 else 3)
    ask(tab, "Is it cold?", 10_000)
    error = tab.get_by_role("alert").bounding_box()
    assert error["width"] > 280 and tab.get_by_role("button", name="Ask").bounding_box()["height"] < 60
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_the_command_with_the_real_model(visit, tmp_path, smollm2_dir):
    example = Path(__file__).parents[2] / "examples" / "demo" / "prompt.txt"
    folder = save_adapter(smollm2_dir, tmp_path / "adapter")
    port = free_port()
    command = [sys.executable, "-m", "peft_be.cli", "demo", folder, "--prompt", example, "--port", port]
    with subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # Where the tests run in the background of a shell, SIGINT is ignored, and children would inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            # Libraries may say something about the machine first
            assert any(f"http://127.0.0.1:{port}" in line for line in iter(process.stdout.readline, ""))
            tab = visit(f"http://127.0.0.1:{port}")
            tab.set_default_timeout(400_000)
            ask(tab, "Who are you?", 12)
            finished(tab)
            shown = columns(tab)
            check_figures(shown, renderer_of(folder, load_prompt(example)), "Who are you?", tuple(TITLES))
            assert shown["[BE]"]["KL"] > "0.000" and shown["No prompt"]["KL"] > "0.000"
            assert shown["Full prompt"]["bytes"] > 20 * shown["[BE]"]["bytes"]
            # Ctrl-C in the middle of an answer
            ask(tab, "Who are you?", 500)
            tab.wait_for_function("/Answer tokens\\s+\\d/.test(document.querySelector('#form-full').innerText)")
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=300) == 0
            assert process.stdout.read() == ""
        finally:
            process.kill()
