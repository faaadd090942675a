"""What the README and the docs say is so."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_python_quick_start_runs_as_it_stands(tmp_path, smollm2_dir):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    (tmp_path / "quick_start.py").write_text(code)
    shutil.copytree(ROOT / "examples" / "redbeard", tmp_path / "examples" / "redbeard")
    done = subprocess.run(
        [sys.executable, "quick_start.py"], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    # What the prompt asks for, as the README says
    assert done.stdout.strip().splitlines()[-1].startswith("Arr")
    assert (tmp_path / "redbeard" / "adapter_model.safetensors").stat().st_size < 8192


def test_the_tests_that_the_docs_name_exist():
    for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs" / "reliability.md").read_text()):
        assert not name or f"def {name}(" in (ROOT / file).read_text(), f"{file}::{name}"


def test_the_guide_names_the_commands_options():
    from typer.main import get_command

    from peft_be.cli.main import app

    options = {o for p in get_command(app).commands["compress"].params for o in p.opts if o.startswith("--")}
    guide = (ROOT / "docs" / "guide.md").read_text()
    named = set(re.findall(r"`(--[a-z-]+)", guide))
    assert options <= named | {"--help", "--prompt", "--queries", "--output"}


def test_the_demos_queries_are_disjoint():
    from peft_be.data import load_queries, query_key
    from peft_be.prompting import load_prompt

    demo = ROOT / "examples" / "demo"
    train, test = (load_queries(demo / f"{name}_queries.jsonl") for name in ("train", "test"))
    assert not {query_key(q) for q in train} & {query_key(q) for q in test}
    prompt = load_prompt(demo / "prompt.txt").casefold()
    assert not any(query.casefold() in prompt for query in train + test)
