"""`peft-be lm-eval` is the harness's own command, with one model more."""

import json
import subprocess
import sys

import pytest

from ..exports import save_adapter
from ..tiny import save_tiny_llama


pytest.importorskip("lm_eval", reason="needs the lm-evaluation-harness: pip install lm-eval")

# As docs/evaluation.md has it
HARNESS = "import peft_be.evaluation.lm_eval, lm_eval.__main__ as harness; harness.cli_evaluate()"
TASK = """
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["~~~"], max_gen_toks: 4}}
metric_list: [{{metric: exact_match}}]
"""


def test_the_help_is_the_harness_own(cli):
    code, out, _ = cli("lm-eval", "--help")
    assert code == 0 and "usage: lm-eval" in out and "validate" in out
    code, out, _ = cli("lm-eval", "run", "--help")
    assert code == 0 and "--apply_chat_template" in out
    code, _, err = cli("lm-eval", "run", "--no-such-option", "-x")
    assert code == 2 and "--no-such-option" in err


def test_without_the_harness(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.api.registry", None)
    monkeypatch.delitem(sys.modules, "peft_be.evaluation.lm_eval", raising=False)
    monkeypatch.delattr("peft_be.evaluation.lm_eval", raising=False)
    code, _, err = cli("lm-eval", "--help")
    assert code == 1 and "pip install 'peft_be[eval]'" in err and "Traceback" not in err


@pytest.mark.slow
def test_a_run(cli, tmp_path, monkeypatch, tiny_tokenizer):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    adapter = save_adapter(base, tmp_path / "adapter")
    rows = [{"question": f"Which colour is number {i}?", "answer": "red"} for i in range(3)]
    (tmp_path / "colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "colours.yaml").write_text(TASK.format(data=tmp_path / "colours.jsonl"))
    run = ["lm-eval", "--model", "peft_be", "--tasks", "colours", "--include_path", tmp_path / "tasks"]
    run += ["--output_path", tmp_path / "out", "--batch_size", "2", "--model_args"]
    model = f"pretrained={base},adapter={adapter}"

    code, out, _ = cli(*run, model, "--apply_chat_template")
    assert code == 0 and "|colours|" in out
    results = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("results_*.json")]
    assert results[0]["config"]["model_args"]["adapter"] == str(adapter)

    # The harness's own command, once it knows the model
    own = [*map(str, run[1:]), model, "--apply_chat_template"]
    own[own.index(str(tmp_path / "out"))] = str(tmp_path / "own")
    done = subprocess.run([sys.executable, "-c", HARNESS, *own], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (again,) = [json.loads(path.read_text()) for path in (tmp_path / "own").rglob("results_*.json")]
    assert again["results"] == results[0]["results"] and again["config"]["model"] == "peft_be"

    code, _, err = cli(*run, model)
    last = err.strip().splitlines()
    assert code == 1 and any("--apply_chat_template" in line for line in last)
