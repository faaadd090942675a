"""One vLLM server with [BE] as LoRA answers as transformers does, also while adapters come, change and go under load."""

import random
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import servers

from peft_be import PromptRenderer, load_adapter, load_model
from peft_be.serving.lora import export_lora

from ..exports import save_adapter
from .engines import MAX_TOKENS, TEXTS, greedy
from .engines import QUESTIONS as SHORT_QUESTIONS


pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("vllm")]

# Longer than a block of the prefix cache, which then holds what an adapter's row made of their beginning
QUESTIONS = [
    f"{start}, and tell me why you think so? I have come a long way over the sea to ask you, and I will not leave before I know."
    for start in ("What is the best thing on this island", "Where would you hide a chest of gold", "How do I get home")
]
ROOT = Path(__file__).parents[2]


@dataclass
class Reply:
    name: str
    question: str
    start: float
    end: float
    tokens: list | None


@dataclass
class Change:
    """Of the version that a name stands for: asked for and done when; `None` stands for no adapter."""

    asked: float
    done: float
    old: str | None
    new: str | None


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """This package, installed without its dependencies: what an environment of vLLM needs for the plugin."""
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "target"))
    shutil.copytree(ROOT / "peft_be", source / "peft_be", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", target, source], check=True, timeout=300)
    return target


class Clients:
    """Threads that ask adapters at random, each one question after the other."""

    def __init__(self, answer, names, count=3):
        self.answer, self.names, self.replies = answer, names, []
        self.changes: dict[str, list[Change]] = {}
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(seed,)) for seed in range(count)]

    def run(self, seed):
        draw = random.Random(seed)
        while not self.stop.is_set():
            name, question = draw.choice(self.names), draw.choice(QUESTIONS)
            start = time.monotonic()
            try:
                tokens = self.answer(name, question)
            except Exception as error:  # a thread's own errors are not seen
                tokens = error
            self.replies.append(Reply(name, question, start, time.monotonic(), tokens))

    def wait(self, replies=10):
        enough = len(self.replies) + replies
        while len(self.replies) < enough:
            time.sleep(0.05)

    @contextmanager
    def change(self, name, old, new):
        asked = time.monotonic()
        yield
        self.changes.setdefault(name, []).append(Change(asked, time.monotonic(), old, new))
        self.wait()

    def allowed(self, reply, first):
        """The versions that a reply may be of, given each name's first one."""
        versions = {first.get(reply.name)}
        for change in self.changes.get(reply.name, ()):
            if reply.start > change.done:
                versions = {change.new}
            elif reply.end > change.asked:
                versions |= {change.new}
        return versions


@dataclass
class Serving:
    """A running server, `folder` with the LoRA adapters in `lora`, the plugin's in `served`, and their token."""

    server: servers.Server
    folder: Path
    adapters: dict[str, Path]
    token: str

    def answer(self, name, question, token=None):
        chat = [{"role": "user", "content": question}]
        if name != "base":
            chat = [{"role": "system", "content": token or self.token}, *chat]
        body = {"model": name, "messages": chat, "temperature": 0, "max_tokens": MAX_TOKENS}
        reply = self.server.post("/v1/chat/completions", {**body, "return_token_ids": True})
        return reply["choices"][0]["token_ids"]

    def load(self, name, folder, **options):
        self.server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder), **options})

    def unload(self, name):
        self.server.post("/v1/unload_lora_adapter", {"lora_name": name})


@pytest.fixture(scope="module")
def serving(vllm_server, plugin, smollm2_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    names = ("api-1", "api-2", "folder-1", "folder-2", "steady", "guest")
    texts = dict(zip(names, TEXTS.values()))
    adapters = {name: save_adapter(smollm2_dir, folder / name, 8, text=text) for name, text in texts.items()}
    lora, served = folder / "lora", folder / "served"
    token = export_lora(adapters, lora)["steady"].text
    served.mkdir()
    shutil.copytree(lora / "folder-1", served / "folder")
    options = ["--enable-lora", "--max-lora-rank", "8", "--max-loras", "4", "--max-cpu-loras", "16"]
    options += ["--lora-target-modules", "embed_tokens", "--enable-prefix-caching"]
    options += ["--lora-modules", f"steady={lora / 'steady'}", f"api={lora / 'api-1'}"]
    environment = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "PYTHONPATH": str(plugin), "PEFT_BE_LORA_DIR": str(served),
    }  # fmt: skip
    with vllm_server(smollm2_dir, *options, environment=environment) as server:
        yield Serving(server, folder, adapters, token)


def of_transformers(smollm2_dir, adapters, questions):
    """The answers of the base model and of each adapter to each question."""
    base, tokenizer = load_model(smollm2_dir)
    answers = {("base", q): greedy(base, PromptRenderer(tokenizer).no_prompt(q)) for q in questions}
    for name, folder in adapters.items():
        model, _ = load_adapter(folder)
        renderer = PromptRenderer.for_adapter(model.peft_config["default"], tokenizer)
        answers |= {(name, q): greedy(model, renderer.be(q)) for q in questions}
    return answers


def test_it_answers_with_every_adapter(serving, smollm2_dir, tmp_path):
    """Mixed with requests to the base model and each twice, for the prefix cache; one adapter comes later."""
    adapters = {name: save_adapter(smollm2_dir, tmp_path / name, k) for name, k in (("a", 1), ("b", 1), ("c", 2))}
    tokens = export_lora(adapters, tmp_path / "lora")
    expected = of_transformers(smollm2_dir, adapters, SHORT_QUESTIONS)

    def answer(name, question):
        return serving.answer(name, question, tokens[name].text if name in tokens else None)

    for name in ("a", "b"):
        serving.load(name, tmp_path / "lora" / name)
    for _ in range(2):
        for (name, question), wanted in expected.items():
            if name != "c":
                assert answer(name, question) == wanted, (name, question)
    with pytest.raises(RuntimeError, match="does not exist"):
        answer("c", SHORT_QUESTIONS[0])
    serving.load("c", tmp_path / "lora" / "c")
    for (name, question), wanted in expected.items():
        assert answer(name, question) == wanted, (name, question)
    for name in adapters:
        serving.unload(name)
        with pytest.raises(RuntimeError, match="does not exist"):
            answer(name, SHORT_QUESTIONS[0])
    # Without the adapters, the base model answers as ever
    assert answer("base", SHORT_QUESTIONS[0]) == expected["base", SHORT_QUESTIONS[0]]


def test_adapters_come_change_and_go_under_load(serving, smollm2_dir):
    expected = of_transformers(smollm2_dir, serving.adapters, QUESTIONS)
    for name in ("api", "folder"):
        assert any(expected[f"{name}-1", q] != expected[f"{name}-2", q] for q in QUESTIONS)
    lora, served, answer = serving.folder / "lora", serving.folder / "served", serving.answer
    clients = Clients(answer, ["base", "steady", "api", "folder"])
    for thread in clients.threads:
        thread.start()
    try:
        clients.wait()
        serving.load("guest", lora / "guest")
        clients.names = [*clients.names, "guest"]
        clients.wait()
        with clients.change("api", "api-1", "api-2"):
            serving.load("api", lora / "api-2", load_inplace=True)
        with clients.change("folder", "folder-1", "folder-2"):
            shutil.rmtree(served / "folder")
            shutil.copytree(lora / "folder-2", served / "folder")
            serving.unload("folder")
        with clients.change("guest", "guest", None):
            serving.unload("guest")
    finally:
        clients.stop.set()
        for thread in clients.threads:
            thread.join()
    first = {"base": "base", "steady": "steady", "guest": "guest", "api": "api-1", "folder": "folder-1"}
    for reply in clients.replies:
        versions = clients.allowed(reply, first)
        if isinstance(reply.tokens, Exception):
            assert None in versions and "does not exist" in str(reply.tokens), reply
        else:
            wanted = [expected[version, reply.question] for version in versions - {None}]
            assert reply.tokens in wanted, (reply, versions, wanted)
    assert {reply.name for reply in clients.replies} == {"base", "steady", "api", "folder", "guest"}
    for name, version in (("api", "api-2"), ("folder", "folder-2")):
        assert all(answer(name, q) == expected[version, q] for q in QUESTIONS)
    for name in ("../lora/steady", "folder@1", "nobody"):
        with pytest.raises(RuntimeError, match="does not exist"):
            answer(name, QUESTIONS[0])

    # What docs/serve/lora.md warns of: vLLM keeps what the old weights at this path left in its prefix cache
    shutil.rmtree(lora / "api-2")
    shutil.copytree(lora / "api-1", lora / "api-2")
    serving.load("api", lora / "api-2", load_inplace=True)
    assert all(answer("api", q) == expected["api-2", q] for q in QUESTIONS)
    # And that it reads the folder of `load_inplace` again for every token
    shutil.rmtree(lora / "api-2")
    with pytest.raises((RuntimeError, OSError)):
        answer("api", QUESTIONS[0])
