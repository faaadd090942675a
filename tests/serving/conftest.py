"""The page in a real browser: headless Chromium, driven by Playwright; and vLLM and llama.cpp."""

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
import servers

from peft_be.serving.side_by_side import PromptComparison

from ..exports import PROMPTS, save_adapter
from ..tiny import save_tiny_llama
from .pages import free_port


@pytest.fixture(scope="module")
def page_folders(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("page")
    base = save_tiny_llama(folder / "base", tiny_tokenizer)
    return [save_adapter(base, folder / "keeper", k=1), save_adapter(base, folder / "seller.v2", k=3)]


@pytest.fixture(scope="module")
def serve(page_folders):
    """Serve the page of some prompts, whose model takes `seconds` more for each token; returns its address."""
    pytest.importorskip("gradio", reason="the page needs gradio")
    from peft_be.serving.page import launch_page

    pages = []

    def start(prompts, seconds=0.02):
        comparison = PromptComparison(page_folders, prompts)
        comparison.model.get_base_model().register_forward_pre_hook(lambda *_: time.sleep(seconds))
        pages.append(launch_page(comparison, port=free_port()))
        return pages[-1].local_url

    yield start
    for page in pages:
        page.close(verbose=False)


@pytest.fixture(scope="module")
def address(serve):
    return serve(PROMPTS)


@pytest.fixture(scope="module")
def slow_address(serve):
    """For long answers, which a browser on a busy machine would else see too late, and draw all day."""
    return serve(PROMPTS, 0.25)


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


@pytest.fixture(scope="module")
def llama_server():
    """Starts servers of llama.cpp with the program that PEFT_BE_LLAMA_SERVER names (`make llama-server`)."""
    if not os.environ.get("PEFT_BE_LLAMA_SERVER"):
        pytest.skip("PEFT_BE_LLAMA_SERVER does not name the program llama-server")
    options = ("--ctx-size", "1024", "--parallel", "1", "--threads", "1")
    return lambda model, *more: servers.llama_server(os.environ["PEFT_BE_LLAMA_SERVER"], model, *options, *more)


@pytest.fixture(scope="module")
def vllm_python():
    """The interpreter that PEFT_BE_VLLM names: vLLM has its own environment (`make vllm`)."""
    if not os.environ.get("PEFT_BE_VLLM"):
        pytest.skip("PEFT_BE_VLLM does not name the interpreter of an environment with vLLM")
    return os.environ["PEFT_BE_VLLM"]


@pytest.fixture(scope="module")
def vllm_server(vllm_python):
    """Starts vLLM servers."""
    options = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--block-size", "32")
    return lambda model, *more, **how: servers.vllm_server(vllm_python, model, *options, *more, **how)


@pytest.fixture(scope="module")
def vllm_in_turn(vllm_python, tmp_path_factory):
    """Runs vllm_in_turn.py, next to this file."""
    folder = tmp_path_factory.mktemp("vllm")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}

    def run(jobs):
        (folder / "jobs.json").write_text(json.dumps(jobs))
        script = Path(__file__).with_name("vllm_in_turn.py")
        command = [vllm_python, script, folder / "jobs.json", folder / "answers.json"]
        subprocess.run(command, env=environment, check=True, timeout=3000)
        return json.loads((folder / "answers.json").read_text())

    return run
