"""What the page does, in a real browser."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from peft_be import load_prompt

from ..exports import PROMPTS, save_adapter
from .pages import ANSWER, TITLES, ask, check_figures, columns, finished, free_port, renderer_of


pytest.importorskip("gradio", reason="the page needs gradio")
pytestmark = pytest.mark.slow


def test_a_question_and_another_adapter(visit, address, page_folders):
    question = "Is it <b>cold</b>, ${1+1} and {{dry}}?"
    tab = visit(address)
    assert {column["answer"] for column in columns(tab).values()} == {"No answer."}
    ask(tab, question)
    finished(tab)
    keeper = columns(tab)
    check_figures(keeper, renderer_of(page_folders[0], PROMPTS[0]), question, tuple(TITLES))
    assert "keeper, 1 learned token stands for a prompt of" in tab.inner_text("body")

    tab.get_by_label("Adapter").click()
    tab.get_by_role("option", name="seller.v2").click()
    tab.get_by_text("seller.v2, 3 learned tokens stand for").wait_for()
    assert {column["answer"] for column in columns(tab).values()} == {"No answer."}
    tab.get_by_label("Question").press("Enter")
    finished(tab)
    seller = columns(tab)
    check_figures(seller, renderer_of(page_folders[1], PROMPTS[1]), question, tuple(TITLES))
    assert seller["No prompt"]["answer"] == keeper["No prompt"]["answer"]
    assert int(seller["[BE]"]["Input tokens"]) == int(keeper["[BE]"]["Input tokens"]) + 2


def test_the_figures_at_a_glance_are_those_of_the_answers(visit, address):
    tab = visit(address)
    assert tab.locator(".be-figures").count() == 0
    ask(tab, "Is it cold?")
    finished(tab)
    shown = columns(tab)
    full, be = shown["Full prompt"], shown["[BE]"]
    assert tab.locator(".be-question").inner_text() == "Is it cold?"
    parts = tab.locator(".be-figures li").all_inner_texts()
    milliseconds = [float(column["First token"].removesuffix(" ms").replace(",", "")) for column in (full, be)]
    ratio, word = re.fullmatch(r"([\d.]+)× (faster|slower)\n.* ms → .* ms", parts[0]).groups()
    expected = milliseconds[0] / milliseconds[1]
    assert float(ratio) == pytest.approx(expected if word == "faster" else 1 / expected, rel=0.1)
    assert f"{full['First token']} → {be['First token']}" in parts[0]
    assert parts[1].startswith(f"{full['bytes'] / be['bytes']:.1f}× less KV\n")
    assert f"{full['Input tokens']} → {be['Input tokens']} tokens" in parts[1]
    kl = {title: float(column["KL"].split()[0]) for title, column in shown.items()}
    if kl["No prompt"] > 0.01:  # shown with three digits
        closed = 1 - kl["[BE]"] / kl["No prompt"]
        assert float(parts[2].split()[0]) == pytest.approx(closed, abs=0.02 + 0.1 * abs(closed))


def test_a_click_on_an_example_asks_it(visit, address):
    from peft_be.serving.page import EXAMPLES

    tab = visit(address)
    tab.get_by_label("Longest answer").fill("2")
    for question in EXAMPLES[:2]:
        tab.get_by_role("button", name=question).click()
        tab.locator(".be-question").get_by_text(question).wait_for()
        finished(tab)
        assert tab.get_by_label("Question").input_value() == question
        tab.get_by_role("button", name="New conversation").click()
        tab.wait_for_selector(".be-question", state="detached")


def test_the_conversation_stays_in_view(visit, address, page_folders):
    tab = visit(address)
    questions = ["Is it <b>cold</b>?", "Why?", "Since when?"]
    answers = []
    for question in questions:
        ask(tab, question, 3)
        tab.locator(".be-question").get_by_text(question).wait_for()
        finished(tab)
        answers.append(columns(tab))
    turns = tab.locator(".be-turn")
    assert turns.locator("h4").all_inner_texts() == questions[1::-1]
    for turn, earlier in zip(turns.all(), answers[1::-1]):
        texts = turn.locator(".be-answer").evaluate_all(f"parts => parts.map({ANSWER})")
        assert texts == [column["answer"] for column in earlier.values()]
    # And the model reads it: in each column its own answers
    for form, title in TITLES.items():
        dialogue = []
        for question, earlier in zip(questions, answers):
            dialogue += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": earlier[title]["answer"]},
            ]
        renderer = renderer_of(page_folders[0], PROMPTS[0])
        assert int(answers[-1][title]["Input tokens"]) == len(getattr(renderer, form)(dialogue[:-1]))

    tab.get_by_role("button", name="New conversation").click()
    tab.wait_for_selector(".be-question", state="detached")
    assert turns.count() == 0
    ask(tab, questions[0], 3)
    finished(tab)
    assert columns(tab)["[BE]"]["Input tokens"] == answers[0]["[BE]"]["Input tokens"]


def test_what_is_computed_is_said(visit, slow_address):
    tab = visit(slow_address)
    tab.evaluate(
        """() => {
            window.said = [];
            new MutationObserver(() => {
                const text = document.querySelector('#status').innerText;
                if (text && text !== window.said.at(-1)) window.said.push(text);
            }).observe(document.querySelector('#status'), {childList: true, subtree: true, characterData: true});
        }"""
    )
    ask(tab, "Is it cold?", 8)
    tab.get_by_text("Done.").wait_for()
    said = tab.evaluate("window.said")
    expected = [f"{title}, {number} of 3: writing" for number, title in enumerate(TITLES.values(), start=1)]
    assert [text[: text.index(" the")] for text in said if "writing" in text] == expected
    assert any(re.fullmatch(r"Full prompt, 1 of 3: reading \d+ tokens …", text) for text in said)
    assert said[-1] == "Done." and all(text != said[-1] for text in said[:-1])


def test_a_cut_answer_says_so(visit, address):
    tab = visit(address)
    ask(tab, "Is it cold?", 3)
    finished(tab)
    marks = tab.locator(".be-card .be-cut")
    assert marks.count() > 0 and set(marks.all_inner_texts()) == {"Cut after 3 tokens"}
    for card in tab.locator(".be-card").all():
        tokens = card.locator("tr", has_text="Answer tokens").locator("td").inner_text()
        assert tokens == "3" if card.locator(".be-cut").count() else int(tokens) <= 3


def test_without_the_prompt(visit, serve, page_folders):
    tab = visit(serve(None))
    ask(tab, "Is it cold?")
    finished(tab)
    check_figures(columns(tab), renderer_of(page_folders[0]), "Is it cold?", ("be", "no_prompt"))
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


def test_an_answer_can_be_stopped(visit, slow_address):
    tab, other = visit(slow_address), visit(slow_address)
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


def test_a_closed_tab_leaves_the_model_to_the_next_one(visit, slow_address):
    tab = visit(slow_address)
    ask(tab, "Is it cold?", 200)
    tab.wait_for_function("/Answer tokens\\s+\\d/.test(document.querySelector('#form-full').innerText)")
    tab.close()
    other = visit(slow_address)
    ask(other, "Is it warm?")
    finished(other)


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
            # Ctrl-C in the middle of an answer; the figures of the first one are there for a moment longer
            ask(tab, "Who are you?", 500)
            tab.get_by_text("Full prompt, 1 of 3: writing").wait_for()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=300) == 0
            assert process.stdout.read() == ""
        finally:
            process.kill()
