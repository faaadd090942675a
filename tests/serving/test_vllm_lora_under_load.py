"""Adapters come, change and go in a vLLM server that is busy: no wrong answer, and none missing."""

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

from peft_be import PromptRenderer, load_adapter, load_model
from peft_be.serving.lora import export_lora

from ..exports import save_adapter
from .engines import MAX_TOKENS, TEXTS, greedy


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


def test_adapters_come_change_and_go_under_load(vllm_server, plugin, smollm2_dir, tmp_path):
    base, tokenizer = load_model(smollm2_dir)
    names = ("api-1", "api-2", "folder-1", "folder-2", "steady", "guest")
    texts = dict(zip(names, TEXTS.values()))
    adapters = {name: save_adapter(smollm2_dir, tmp_path / name, 8, text=text) for name, text in texts.items()}
    token = export_lora(adapters, tmp_path / "lora")["steady"].text
    expected = {("base", q): greedy(base, PromptRenderer(tokenizer).no_prompt(q)) for q in QUESTIONS}
    for version, folder in adapters.items():
        model, _ = load_adapter(folder)
        renderer = PromptRenderer.for_adapter(model.peft_config["default"], tokenizer)
        expected |= {(version, q): greedy(model, renderer.be(q)) for q in QUESTIONS}
    for name in ("api", "folder"):
        assert any(expected[f"{name}-1", q] != expected[f"{name}-2", q] for q in QUESTIONS)
    lora, served = tmp_path / "lora", tmp_path / "served"
    served.mkdir()
    shutil.copytree(lora / "folder-1", served / "folder")
    options = ["--enable-lora", "--max-lora-rank", "8", "--max-loras", "4", "--max-cpu-loras", "16"]
    options += ["--lora-target-modules", "embed_tokens", "--enable-prefix-caching"]
    options += ["--lora-modules", f"steady={lora / 'steady'}", f"api={lora / 'api-1'}"]
    environment = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "PYTHONPATH": str(plugin), "PEFT_BE_LORA_DIR": str(served),
    }  # fmt: skip
    with vllm_server(smollm2_dir, *options, environment=environment) as server:

        def answer(name, question):
            chat = [{"role": "user", "content": question}]
            if name != "base":
                chat = [{"role": "system", "content": token}, *chat]
            body = {"model": name, "messages": chat, "temperature": 0, "max_tokens": MAX_TOKENS}
            reply = server.post("/v1/chat/completions", {**body, "return_token_ids": True})
            return reply["choices"][0]["token_ids"]

        def load(name, version, **options):
            server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(lora / version), **options})

        clients = Clients(answer, ["base", "steady", "api", "folder"])
        for thread in clients.threads:
            thread.start()
        try:
            clients.wait()
            load("guest", "guest")
            clients.names = [*clients.names, "guest"]
            clients.wait()
            with clients.change("api", "api-1", "api-2"):
                load("api", "api-2", load_inplace=True)
            with clients.change("folder", "folder-1", "folder-2"):
                shutil.rmtree(served / "folder")
                shutil.copytree(lora / "folder-2", served / "folder")
                server.post("/v1/unload_lora_adapter", {"lora_name": "folder"})
            with clients.change("guest", "guest", None):
                server.post("/v1/unload_lora_adapter", {"lora_name": "guest"})
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
        load("api", "api-2", load_inplace=True)
        assert all(answer("api", q) == expected["api-2", q] for q in QUESTIONS)
        # And that it reads the folder of `load_inplace` again for every token
        shutil.rmtree(lora / "api-2")
        with pytest.raises((RuntimeError, OSError)):
            answer("api", QUESTIONS[0])
