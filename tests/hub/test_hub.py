"""The real client against a server of ours, in processes of their own: the client reads its settings when it is imported."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from peft_be import BETokenConfig, PromptJob, PromptRenderer, compress_prompts, load_adapter
from peft_be.adapters.card import is_unedited, write_card

from .server import TOKEN, Hub


PROMPT = "You are a lighthouse keeper. You answer in short sentences, and you never leave the island."
# One worker runs them all, for they share what a fixture of the module makes
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("hub")]

QUERIES = [f"What did you see on day {i}?" for i in range(6)]
FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors", "training.json"}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, tiny_tokenizer):
    """A folder with the adapters `one` and `two` of a tiny base, and the base's folder."""
    from ..tiny import save_tiny_llama

    folder = tmp_path_factory.mktemp("hub")
    base = save_tiny_llama(folder / "base", tiny_tokenizer)
    os.environ["PEFT_BE_CACHE"] = str(folder / "cache")
    jobs = [PromptJob(name, PROMPT + name, QUERIES) for name in ("one", "two")]
    compress_prompts(jobs, folder / "adapters", model=str(base), max_steps=2, max_answer_length=4)
    (folder / "adapters" / "one" / "notes.txt").write_text("not for others")
    del os.environ["PEFT_BE_CACHE"]
    return folder / "adapters", base


@pytest.fixture(scope="module")
def running_hub():
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def sessions(tmp_path_factory, running_hub):
    """Processes of somebody who pushes, with a token and without one, which run one command after the other."""
    started = {}
    for token in (TOKEN, None):
        started[token] = subprocess.Popen(
            [sys.executable, "-c", SESSION],
            env=environment_of(running_hub, tmp_path_factory.mktemp("home"), token),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    yield started
    for session in started.values():
        session.communicate(timeout=60)


@pytest.fixture
def hub(running_hub, sessions):
    """The server, empty."""
    for content in (running_hub.repos, running_hub.commits, running_hub.requests):
        content.clear()
    running_hub.sessions = sessions
    return running_hub


# Reads the arguments of `peft-be` and writes its exit code and what it printed, a line of JSON each
SESSION = """
import contextlib, io, json, logging, sys, warnings
from peft_be.cli.main import main
for line in sys.stdin:
    sys.argv, printed, code = ["peft-be", *json.loads(line)], io.StringIO(), 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), warnings.catch_warnings():
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    logging.disable(logging.NOTSET)
    print(json.dumps([code, printed.getvalue()]), flush=True)
"""


def command(hub, *arguments, token=TOKEN):
    """Run `peft-be` in one of the sessions; returns the exit code and what was printed."""
    session = hub.sessions[token]
    print(json.dumps(list(map(str, arguments))), file=session.stdin, flush=True)
    return json.loads(session.stdout.readline())


def environment_of(hub, home, token):
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "COLUMNS": "400"}
    environment["HF_HUB_DISABLE_XET"] = "1"
    environment.pop("HF_TOKEN", None)
    if token:
        environment["HF_TOKEN"] = token
    return environment


def peft_be(hub, home, *arguments, token=TOKEN, code=None):
    """Run `peft-be`, or Python code, in a process of its own, with a cache in `home`."""
    line = ["-c", code] if code else ["-m", "peft_be.cli", *map(str, arguments)]
    environment = environment_of(hub, home, token)
    done = subprocess.run([sys.executable, *line], env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_push_list_and_load(hub, adapters, tmp_path):
    folder, base = adapters
    push = ["push", folder / "one", "me/keeper", "--base-model", "org/tiny", "--license", "mit"]
    code, plan = command(hub, *push, "--dry-run", token=None)
    assert code == 0 and not hub.repos and not hub.requests, plan
    code, out = command(hub, *push)
    assert code == 0, out
    assert set(hub.repos["me/keeper"]) == FILES  # and nothing else of the folder
    planned = re.findall(r"│ (\S+) +│ +([\d,]+) │", plan)
    assert planned == sorted((name, f"{len(content):,}") for name, content in hub.repos["me/keeper"].items())
    card = ModelCard(hub.repos["me/keeper"]["README.md"].decode())
    assert card.data.license == "mit" and card.data.base_model == "org/tiny" and card.data.library_name == "peft"
    assert "peft_be" in card.data.tags and "import peft_be" in card.text and "Not a secret" in card.text
    assert 'load_adapter("me/keeper")' in card.text and card.data.eval_results[0].metric_type == "kl_gap_closed"
    assert str(base) not in "".join(content.decode(errors="ignore") for content in hub.repos["me/keeper"].values())

    # A reader with nothing of ours
    script = f"""
import peft_be
from huggingface_hub import HfApi, ModelCard
from peft import PeftModel
from safetensors.torch import save_file
assert [model.id for model in HfApi().list_models(filter=["peft", "peft_be"])] == ["me/keeper"]
assert not list(HfApi().list_models(filter="lora"))
print("FILES", *sorted(HfApi().list_repo_files("me/keeper")))
ModelCard.load("me/keeper").validate()
model, tokenizer = peft_be.load_model({str(base)!r})
model = PeftModel.from_pretrained(model, "me/keeper")
save_file({{"rows": model.base_model.get_rows("default")}}, {str(tmp_path / "rows.safetensors")!r})
model, _ = peft_be.load_adapter("me/keeper", model={str(base)!r})
save_file({{"rows": model.base_model.get_rows("default")}}, {str(tmp_path / "again.safetensors")!r})
"""
    code, out = peft_be(hub, tmp_path / "reader", code=script, token=None)
    assert code == 0, out
    assert f"FILES {' '.join(sorted(FILES))}" in out
    (expected,) = load_file(folder / "one" / "adapter_model.safetensors").values()
    for name in ("rows", "again"):
        assert (load_file(tmp_path / f"{name}.safetensors")["rows"] == expected).all()

    code, out = peft_be(hub, tmp_path / "reader", "info", "me/keeper", token=None)
    assert code == 0 and "org/tiny" in out
    # Again: the repository is there
    code, out = command(hub, "push", folder / "one", "me/keeper", "--base-model", "org/tiny")
    assert code == 0, out


@pytest.mark.parametrize("edited", [False, True])
def test_the_base_is_renamed_where_it_is_named(hub, adapters, tmp_path, edited):
    """A base called `model` here, as much else in a card is."""
    shutil.copytree(adapters[0] / "one", tmp_path / "one")
    config = BETokenConfig.from_pretrained(tmp_path / "one")
    config.base_model_name_or_path = "model"
    config.save_pretrained(tmp_path / "one")
    write_card(tmp_path / "one", config)
    if edited:
        card = tmp_path / "one" / "README.md"
        card.write_text(card.read_text() + "\nMine, for a model of `model`.\n")
    code, out = command(hub, "push", tmp_path / "one", "me/keeper", "--base-model", "org/model")
    assert code == 0, out
    text = ModelCard(hub.repos["me/keeper"]["README.md"].decode()).text
    assert "Input embeddings of `org/model`, trained" in text and "model, tokenizer = peft_be.load_adapter(" in text
    assert ("Mine, for a model of `org/model`." in text) == edited and "org/org" not in text


def test_many_adapters_in_one_repository(hub, adapters, tmp_path):
    folder, base = adapters
    code, out = command(hub, "push", folder, "me/prompts", "--base-model", "org/tiny")
    assert code == 0, out
    expected = {"README.md"} | {f"{name}/{file}" for name in ("one", "two") for file in FILES}
    assert set(hub.repos["me/prompts"]) == expected
    card = ModelCard(hub.repos["me/prompts"]["README.md"].decode())
    assert card.data.base_model == ["org/tiny"] and "me/prompts/one" in card.text and "`two`" in card.text
    script = f"""
import peft_be
model, _ = peft_be.load_adapter("me/prompts/two", model={str(base)!r})
print("ROWS", model.base_model.get_rows("default").tolist())
"""
    code, out = peft_be(hub, tmp_path / "reader", code=script, token=None)
    assert code == 0, out
    (rows,) = load_file(folder / "two" / "adapter_model.safetensors").values()
    (line,) = (line for line in out.splitlines() if line.startswith("ROWS "))
    assert json.loads(line.removeprefix("ROWS ")) == rows.tolist()
    # Only what was asked for was downloaded
    assert not any("one/adapter_model" in request for request in hub.requests if request.startswith("GET"))


@pytest.mark.parametrize("native", [False, True])
def test_a_lora_adapter_is_loaded_as_its_card_says(hub, adapters, tmp_path, native):
    folder, base = adapters
    push = ["push", folder / "one", "me/keeper", "--base-model", base, "--license", "mit", "--format", "lora"]
    code, out = command(hub, *push, *(["--format", "native"] if native else []))
    assert code == 0, out
    files = hub.repos["me/keeper"]
    exported = {"adapter_config.json", "adapter_model.safetensors", "be_token.json", "chat_template.jinja"}
    assert set(files) == (FILES | {f"lora/{name}" for name in exported} if native else {"README.md", *exported})
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "mit" and {"lora", "peft_be"} <= set(card.data.tags) and card.data.eval_results
    assert is_unedited(card.text) == native and "Not a secret" in card.text

    # The card's own lines, in a Python that knows nothing of this package
    (lines,) = re.findall(r"^```python\n(from peft.*?)^```", card.text, re.DOTALL | re.MULTILINE)
    lines = lines.replace("max_new_tokens=128", "max_new_tokens=12, do_sample=False")
    lines += "import sys\nassert 'peft_be' not in sys.modules\nprint('IDS', answer[0].tolist())"
    code, out = peft_be(hub, tmp_path / "reader", code=lines, token=None)
    assert code == 0, out
    written = json.loads(re.search(r"^IDS (.*)$", out, re.MULTILINE)[1])
    model, tokenizer = load_adapter(folder / "one")
    config = model.peft_config["default"]
    ids = torch.tensor([PromptRenderer.for_adapter(config, tokenizer).be("A question?")])
    expected = model.generate(input_ids=ids, max_new_tokens=12, do_sample=False)[0].tolist()
    assert written == expected  # [BE] and the token have the same id here

    # What the card has vLLM read
    download = re.search(r"^hf (download .*) --local-dir keeper$", card.text, re.MULTILINE)[1]
    run = [Path(sys.executable).parent / "hf", *shlex.split(download), "--local-dir", tmp_path / "keeper"]
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "vllm"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(run, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    local = tmp_path / "keeper" / "lora" if native else tmp_path / "keeper"
    assert exported <= {path.name for path in local.iterdir()}
    assert json.loads((local / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)


def test_many_lora_adapters_in_one_repository(hub, adapters, tmp_path):
    folder, base = adapters
    code, out = command(hub, "push", folder, "me/prompts", "--base-model", "org/tiny", "--format", "lora")
    assert code == 0, out
    files = hub.repos["me/prompts"]
    assert str(base) not in "".join(content.decode(errors="ignore") for content in files.values())
    card = ModelCard(files["README.md"].decode())
    assert "lora" in card.data.tags and "import peft_be" not in card.text
    assert '"me/prompts", subfolder="two"' in files["two/README.md"].decode()
    script = f"""
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({str(base)!r}), "me/prompts", subfolder="two")
print("TYPE", model.peft_config["default"].peft_type.value)
"""
    code, out = peft_be(hub, tmp_path / "reader", code=script, token=None)
    assert code == 0 and "TYPE LORA" in out, out


def test_one_kind_of_adapter_does_not_replace_the_other(hub, adapters, tmp_path):
    folder, _ = adapters
    push = ["push", folder / "one", "me/keeper", "--base-model", "org/tiny"]
    both = ["--format", "native", "--format", "lora"]
    code, out = command(hub, *push)
    assert code == 0, out
    before = dict(hub.repos["me/keeper"])
    code, out = command(hub, *push, "--format", "lora")
    assert code == 1 and "has a native adapter where the LoRA one would go" in out and " ".join(both) in out
    assert hub.repos["me/keeper"] == before
    code, out = command(hub, *push, *both)
    assert code == 0 and before.keys() < hub.repos["me/keeper"].keys(), out
    # The native one alone would leave the rows in lora/ as they are
    before = dict(hub.repos["me/keeper"])
    code, out = command(hub, *push)
    assert code == 1 and "'me/keeper' also has a LoRA adapter in lora/: push both" in out, out
    assert hub.repos["me/keeper"] == before
    code, out = command(hub, *push, *both)
    assert code == 0, out


def test_a_lora_adapter_alone_makes_no_room_for_a_native_one(hub, adapters, tmp_path):
    folder, _ = adapters
    push = ["push", folder / "one", "me/keeper", "--base-model", "org/tiny"]
    code, out = command(hub, *push, "--format", "lora")
    assert code == 0, out
    before = dict(hub.repos["me/keeper"])
    for formats in ([], ["--format", "native", "--format", "lora"]):
        code, out = command(hub, *push, *formats)
        assert code == 1 and "has a LoRA adapter where the native one would go" in out, out
        assert "push to another repository." in out and hub.repos["me/keeper"] == before


def test_many_native_adapters_do_not_leave_their_lora_adapters(hub, adapters, tmp_path):
    folder, _ = adapters
    shutil.copytree(folder / "two", tmp_path / "prompts" / "two")
    code, out = command(hub, "push", folder, "me/prompts", "--base-model", "org/tiny")
    assert code == 0, out
    push = ["push", tmp_path / "prompts", "me/prompts", "--base-model", "org/tiny"]
    code, out = command(hub, *push, "--format", "native", "--format", "lora")
    assert code == 0 and "two/lora/adapter_config.json" in hub.repos["me/prompts"], out
    # Of two adapters, the second has one
    code, out = command(hub, "push", folder, "me/prompts", "--base-model", "org/tiny")
    assert code == 1 and "also has a LoRA adapter in two/lora/: push both" in out, out


def test_bad_pushes_and_loads(hub, adapters, tmp_path):
    folder, base = adapters
    code, out = command(hub, "push", folder / "one", "me/keeper")
    assert code == 1 and "--base-model" in out and not hub.repos
    code, out = command(hub, "push", tmp_path, "me/keeper")
    assert code == 1 and "no finished adapter" in out
    code, out = command(hub, "push", folder / "one", "me/keeper", "--base-model", "org/tiny", token=None)
    assert code == 1 and "Hub refused" in out and not hub.repos
    code, out = command(hub, "info", "me/nothing")
    assert code == 1 and "no repository 'me/nothing'" in out

    class Gone:
        url = "http://127.0.0.1:9"

    code, out = peft_be(Gone, tmp_path, "info", "me/nothing")
    assert code == 1 and "check path and network" in out


def test_a_trainer_and_a_model_push_the_adapter_with_its_card(hub, adapters, tmp_path):
    _, base = adapters
    script = f"""
import peft_be
from datasets import Dataset
from peft_be import BEDistillConfig, BEDistillTrainer
model, tokenizer = peft_be.load_model({str(base)!r})
queries = Dataset.from_dict({{"query": {QUERIES!r}}})
# What an unpatched Trainer would upload, too
args = BEDistillConfig({str(tmp_path / "out")!r}, kd_weight=1.0, max_steps=2, eval_steps=1, save_steps=1, max_answer_length=4)
args.push_to_hub, args.hub_model_id = True, "me/trained"
model.name_or_path = model.config._name_or_path = "org/tiny"
trainer = BEDistillTrainer(
    model, args, {PROMPT!r}, train_dataset=queries, eval_dataset=queries.select([0]), processing_class=tokenizer
)
trainer.train()
trainer.push_to_hub(license="mit", tags="lighthouse")
peft_be.push_adapters(trainer.model, "me/model")
"""
    code, out = peft_be(hub, tmp_path, code=script)
    assert code == 0, out
    expected = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for name, files in hub.repos.items():
        assert set(files) == FILES - {"training.json"}, name
        (tmp_path / "rows").write_bytes(files["adapter_model.safetensors"])
        assert all((load_file(tmp_path / "rows")[key] == rows).all() for key, rows in expected.items())
        card = ModelCard(files["README.md"].decode())
        assert card.text.startswith("# A prompt of ") and f'load_adapter("{name}")' in card.text
        assert "2 steps on 6 queries" in card.text and card.data.eval_results[0].dataset_name == "validation queries"
        assert json.loads(files["adapter_config.json"])["provenance"]["tokenizer_sha256"]
    card = ModelCard(hub.repos["me/trained"]["README.md"].decode())
    assert card.data.license == "mit" and "lighthouse" in card.data.tags
    # At both saves, and at the end
    assert sum("me/trained/commit" in request for request in hub.requests) == 3


ROUTES = {
    "PEFT": "from peft import PeftModel; model = PeftModel.from_pretrained(base(), 'me/keeper')",
    "AutoPeft": "from peft import AutoPeftModelForCausalLM as Auto; model = Auto.from_pretrained('me/keeper')",
    "transformers": "model = AutoModelForCausalLM.from_pretrained('me/keeper')",
    "load_adapter": "model = base(); model.load_adapter('me/keeper')",
    "pipeline": "from transformers import pipeline; model = pipeline('text-generation', 'me/keeper', tokenizer=BASE).model",
}


def test_every_loader_works_behind_the_import_and_names_it_without(hub, adapters, tmp_path):
    folder, base = adapters
    code, out = command(hub, "push", folder / "one", "me/keeper", "--base-model", str(base))
    assert code == 0, out
    (expected,) = load_file(folder / "one" / "adapter_model.safetensors").values()
    head = f"""
from transformers import AutoModelForCausalLM
BASE = {str(base)!r}
base = lambda: AutoModelForCausalLM.from_pretrained(BASE)
def rows(model):
    return next(p for name, p in model.named_parameters() if "be_token_embedding" in name).flatten().tolist()
"""
    tries = "".join(
        f"""
try:
    {line}
    print("ROUTE {name}", rows(model) == {expected.flatten().tolist()})
except KeyError as error:
    print("ROUTE {name}", error)
"""
        for name, line in ROUTES.items()
    )
    code, out = peft_be(hub, tmp_path / "reader", code=head + tries, token=None)
    assert code == 0, out
    assert all(f"ROUTE {name} 'BE_TOKEN'" in out for name in ROUTES), out
    code, out = peft_be(hub, tmp_path / "reader", code="import peft_be\n" + head + tries, token=None)
    assert code == 0 and all(f"ROUTE {name} True" in out for name in ROUTES), out
