"""Questions to the page, and what it shows then."""

import functools
import re
import socket

from peft_be import PromptRenderer
from peft_be.adapters.load import load_adapter


# Without the mark of one that is not whole
ANSWER = "answer => [...answer.childNodes].filter(node => node.className !== 'be-cut').map(node => node.textContent).join('')"
TITLES = {"full": "Full prompt", "be": "[BE]", "no_prompt": "No prompt"}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def ask(tab, question, length=4):
    tab.get_by_label("Longest answer").fill(str(length))
    tab.get_by_label("Question").fill(question)
    tab.get_by_role("button", name="Ask", exact=True).click()


def finished(tab):
    """Wait until all is answered and the page takes the next question."""
    tab.wait_for_function("[...document.querySelectorAll('.be-card')].every(c => !c.innerText.includes('–'))")
    tab.wait_for_function("[...document.querySelectorAll('button')].some(b => b.innerText === 'Ask' && !b.disabled)")


def columns(tab):
    """Title, answer and figures of each column."""
    result = {}
    for card in tab.locator(".be-card").all():
        rows = [row.locator("th,td").all_inner_texts() for row in card.locator("tr").all()]
        title = card.locator("h3").inner_text()
        result[title] = {"answer": card.locator(".be-answer").evaluate(ANSWER), **dict(rows)}
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


@functools.cache
def adapter_of(folder):
    model, tokenizer = load_adapter(folder)
    return model.peft_config["default"], tokenizer


def renderer_of(folder, prompt=None):
    return PromptRenderer.for_adapter(*adapter_of(folder), prompt)
