"""
The commands and the Python code of the pages run as they stand, page by page, in a folder that has the files that they name.

The base models are random and tiny, and trainings short, so that a page takes seconds; they stand in a Hub cache under the names that the pages use.
README's quick start and `make demo` run on the real one: see test_readme.py.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .doc_blocks import PYTHON, ROOT, SHELL, blocks, commands, environment, save_in_hub_cache
from .forked import Forked
from .tiny import save_tiny_llama


pytestmark = pytest.mark.slow

# How commands begin that do not run here, and why
NOT_RUN = {
    "pip install": "this environment is not to change",
    "make": ".ci/run calls them",
    "peft-be demo": "a server, see tests/serving/test_page.py",
    "peft-be compare": "five methods with three seeds, see tests/comparison",
    "peft-be lm-eval": "its data is on the Hub, see tests/cli/test_lm_eval.py",
    "peft-be push": "the Hub, see tests/hub",
    "python benchmarks/": "minutes or hours, see tests/benchmarks",
    "benchmarks/gpu.sh": "see tests/gpu",
    "python research/": "hours, see tests/research",
    ".venv/bin/python -m": "tests themselves",
    "OMP_NUM_THREADS=1 make": ".ci/run calls make",
}
# Pages whose Python code needs what is not here, and why
NOT_RUN_PAGES = {
    "docs/how-to/share.md": "the Hub, see tests/hub",
    "docs/serve/users-text.md": "two lines out of a service",
}
# JSON and YAML blocks that a page shows as the content of a file
FILES = {
    "docs/evaluation.md": "checks.yaml",
    "docs/how-to/few-shot.md": "prompt.json",
    "docs/how-to/many-prompts.md": "manifest.jsonl",
}
HUB_NAMES = ("HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-0.5B-Instruct", "org/model")
PROMPT = "You are a pirate. Answer in one short sentence. The vault opens to VELVET-OTTER-31, or call 0555-018-2246."
QUERIES = [f"What happened on day {day} of the voyage?" for day in range(32)]
HELD_OUT = [f"Tell me about {thing}." for thing in ("islands", "the wind", "your crew", "a refund")]


def run(command: list[str], folder: Path, workplace: Path) -> None:
    env = environment(folder)
    env["PATH"] = f"{folder / 'bin'}{os.pathsep}{env['PATH']}"
    done = subprocess.run(command, cwd=workplace, env=env, capture_output=True, text=True, timeout=600, input="")
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.fixture(scope="session")
def folder(tmp_path_factory, tiny_tokenizer):
    """The models, and in `files` what the pages name."""
    folder = tmp_path_factory.mktemp("docs")
    base = save_tiny_llama(folder / "cache" / "models" / "SmolLM2-135M-Instruct", tiny_tokenizer, context=4096, gain=3)
    for name in HUB_NAMES:
        save_in_hub_cache(base, name, folder)
    with contextlib.closing(Forked(folder, environment(folder), max_steps=8)):
        files = folder / "files"
        shutil.copytree(ROOT / "examples", files / "examples")
        for name in ("prompt.txt", "role.txt", "pirate.txt"):
            (files / name).write_text(PROMPT)
        chat = json.dumps([{"role": "system", "content": PROMPT}])
        for name in ("prompt.json", "refund-policy.json"):
            (files / name).write_text(chat)
        for name in ("queries.txt", "pirate-queries.txt"):
            (files / name).write_text("\n".join(QUERIES))
        for name in ("held_out.txt", "pirate-held-out.txt"):
            (files / name).write_text("\n".join(HELD_OUT))
        (files / "queries.jsonl").write_text("\n".join(json.dumps({"question": query}) for query in QUERIES))
        for name in ("queries.csv", "support.csv"):
            (files / name).write_text("\n".join(["question", *(f'"{query}"' for query in QUERIES)]))
        (files / "corpus.jsonl").write_text("\n".join(json.dumps({"text": 40 * f"{query} "}) for query in QUERIES))
        items = [{"question": query, "answer": "So it is. #### 7"} for query in HELD_OUT]
        (files / "gsm8k_test.jsonl").write_text("\n".join(map(json.dumps, items)))
        prompts = {
            "pirate": "pirate.txt",
            "refunds": "refund-policy.json",
            "my-prompt": "prompt.txt",
            "persona-output": "examples/demo/prompt.txt",
        }
        jobs = [{"name": name, "prompt": prompt, "queries": "queries.txt"} for name, prompt in prompts.items()]
        (files / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
        run(["peft-be", "compress-many", "jobs.jsonl", "--output", "my-prompts", "--max-steps", "2"], folder, files)
        for name in ("my-prompt", "persona-output"):
            (files / "my-prompts" / name).rename(files / name)
        yield folder


SHOWN = blocks(*SHELL, *PYTHON, "json", "yaml")
RUN = [page for page in dict.fromkeys(block.page for block in SHOWN) if page.startswith("docs/")]
# tests/serving/test_docs_served.py follows these
RUN = [page for page in RUN if Path(page).stem not in ("checkpoint", "llamacpp", "lora", "vllm")]


def script_of(page: str) -> tuple[list[str], str]:
    """What of a page runs: its commands, and its Python code."""
    lines, code = [], ""
    for block in SHOWN:
        if block.page != page:
            continue
        if block.language in SHELL:
            lines += [line for line in commands(block.code) if not line.startswith(tuple(NOT_RUN))]
        elif block.language in PYTHON and page not in NOT_RUN_PAGES:
            # A module of the package imports by dots
            code += '__package__ = "peft_be.comparison.methods"\n' * ("from .method" in block.code) + block.code
    return lines, code


@pytest.mark.parametrize("page", RUN)
def test_the_page_runs(page, folder, tmp_path):
    lines, code = script_of(page)
    # Commands and code are often two ways to make the same: each finds the folder as it is before
    if lines:
        script = "\n".join(lines)
        workplace = workplace_of(page, script, folder, tmp_path / "commands")
        run(["bash", "-euxo", "pipefail", "-c", script], folder, workplace)
    if code:
        workplace = workplace_of(page, code, folder, tmp_path / "code")
        (workplace / "page.py").write_text(code)
        run(["forked-python", "page.py"], folder, workplace)


def workplace_of(page: str, text: str, folder: Path, workplace: Path) -> Path:
    """A copy of the files, with those that the page shows, and without what the page makes."""
    shutil.copytree(folder / "files", workplace)
    for block in SHOWN:
        if block.page == page and block.language in ("json", "yaml"):
            (workplace / FILES[page]).write_text(block.code)
    for name in ("my-prompt", "my-prompts", "persona-output"):
        if re.search(rf'--output {name}(\s|$)|compress_prompt\(.*, "{name}"', text):
            shutil.rmtree(workplace / name)
    return workplace


def test_most_of_what_is_shown_runs():
    ran = [script_of(page) for page in RUN]
    assert sum(len(lines) for lines, _ in ran) > 15 and sum(bool(code) for _, code in ran) > 5
