"""What a chat sends in later turns."""

import io
import re

from transformers import AutoTokenizer

from peft_be import PromptRenderer
from peft_be.evaluation import find_loop

from ..exports import save_adapter
from ..tiny import save_tiny_llama


CUT = "message['content'] if message['role'] != 'assistant' else message['content'][5:]"


def test_earlier_answers_are_what_the_template_makes_of_them(cli, tiny_tokenizer, tmp_path, monkeypatch):
    """The template leaves out the first characters of earlier answers, as others do with what the model has thought."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer.name_or_path)
    tokenizer.chat_template = tokenizer.chat_template.replace("message['content']", f"({CUT})")
    folder = save_adapter(save_tiny_llama(tmp_path / "base", tokenizer), tmp_path / "a")
    questions = ["Who are you?", "Why <|im_end|> though <repo_name>?", "Since when?"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(questions) + "\n/quit\n"))
    code, out, err = cli("chat", folder, "--max-new-tokens", 8)
    assert code == 0, err
    answers = re.findall(r"\[BE\]: (.*?)\n\((\d+) input tokens", out, re.DOTALL)
    assert len(answers) == 3 and all(len(answer) > 5 for answer, _ in answers)

    # The plain template, with the answers cut by hand: [BE] is one token, and what questions spell counts as text
    plain = tiny_tokenizer
    renderer = PromptRenderer(plain, be_token_ids=[plain.convert_tokens_to_ids("<repo_name>")])
    turns = []
    for question, (answer, length) in zip(questions, answers):
        turns.append({"role": "user", "content": question})
        assert int(length) == len(renderer.be(turns))
        turns.append({"role": "assistant", "content": answer[5:]})


def test_an_answer_that_runs_in_a_loop_is_stopped(cli, tiny_dir, tmp_path, monkeypatch):
    """A random model does so at once, and would until the limit."""
    folder = save_adapter(tiny_dir, tmp_path / "a")
    monkeypatch.setattr("sys.stdin", io.StringIO("Who are you?\nAnd now?\n\n"))
    code, out, err = cli("chat", folder, "--max-new-tokens", 200)
    assert code == 0, err
    assert out.count("(stopped: the answer had begun to repeat itself)") == 2
    # Of the answer, the next question keeps what came before the repetition
    first, second = map(int, re.findall(r"\((\d+) input tokens", out))
    assert second < first + 100


def test_what_is_a_loop():
    verse = list(range(20))
    assert find_loop(verse + [7, 8, 9] * 11) == 23
    assert find_loop([1] * 32) == 1 and find_loop([1] * 31) is None
    assert find_loop(verse * 4) == 20 and find_loop(verse * 3) is None  # a refrain
    assert find_loop([5] + verse * 4 + verse[:13]) == 21  # in the middle of a round
    assert find_loop(verse * 5 + [99]) is None  # it got out
    assert find_loop([]) is None


def test_kept_text_is_shown_and_read(cli, tiny_dir, tmp_path, monkeypatch, tiny_tokenizer):
    folder = save_adapter(tiny_dir, tmp_path / "a", kept_text="Never leave [b]the island[/b].")
    monkeypatch.setattr("sys.stdin", io.StringIO("Who are you?\n\n"))
    code, out, err = cli("chat", folder, "--max-new-tokens", 4)
    assert code == 0, err
    assert "(after [BE], the model reads the kept text: Never leave [b]the island[/b].)" in out
    renderer = PromptRenderer(tiny_tokenizer, be_token_ids=[3], kept_text="Never leave [b]the island[/b].")
    assert f"({len(renderer.be('Who are you?'))} input tokens" in out
