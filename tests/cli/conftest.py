import json

import pytest

from ..tiny import save_tiny_llama


PROMPT = (
    "You are a lighthouse keeper. You answer in short sentences, and you never leave the island, whatever happens."
)
QUERIES = [f"What did you see on day {i}?" for i in range(12)]


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory, tiny_tokenizer):
    """A folder with a random Llama and the real tokenizer, as `--model` takes it."""
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", tiny_tokenizer)


@pytest.fixture
def job(tmp_path, tiny_dir, monkeypatch):
    """A folder with a prompt and queries, and the arguments of a compression that takes a second."""
    monkeypatch.setenv("PEFT_BE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "prompt.txt").write_text(PROMPT)
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps({"query": q}) + "\n" for q in QUERIES))
    (tmp_path / "held_out.txt").write_text("Who are you?\nIs it cold?\nWhat did you see on day 1?\n")
    arguments = ["compress", "--prompt", tmp_path / "prompt.txt", "--queries", tmp_path / "queries.jsonl"]
    arguments += ["--output", tmp_path / "out", "--model", tiny_dir, "--max-answer-length", "6", "--max-steps", "2"]
    return Job(tmp_path, arguments)


class Job:
    def __init__(self, folder, arguments):
        self.folder = folder
        self.arguments = [str(a) for a in arguments]

    def with_(self, **changes):
        """The arguments with some options changed, added, or (None) left out."""
        arguments = list(self.arguments)
        for name, value in changes.items():
            option = "--" + name.replace("_", "-")
            if option in arguments:
                position = arguments.index(option)
                del arguments[position : position + 2]
            if value is True:
                arguments.append(option)
            elif value is not None:
                arguments += [option, str(value)]
        return arguments
