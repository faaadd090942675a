"""In which precision and where a base model is loaded."""

import json

import pytest
import torch
from typer.main import get_command

from peft_be import load_adapter, load_model
from peft_be.adapters.load import load_base
from peft_be.cli.main import app

from ..exports import save_adapter
from .outcomes import fails


LOADING = ("audit", "bench", "chat", "demo", "eval", "export")


@pytest.fixture(scope="module")
def adapter(tiny_dir, tmp_path_factory):
    return save_adapter(tiny_dir, tmp_path_factory.mktemp("adapters") / "keeper")


def test_the_commands_that_load_a_model_ask_in_what_and_where():
    for name in LOADING:
        options = {option for parameter in get_command(app).commands[name].params for option in parameter.opts}
        assert {"--dtype", "--device"} <= options, name


def test_a_dtype_and_a_device_reach_the_model(cli, adapter, tmp_path):
    (tmp_path / "prompt.txt").write_text("You are a lighthouse keeper.")
    arguments = ["bench", adapter, "--prompt", tmp_path / "prompt.txt", "--quick", "--json", tmp_path / "figures.json"]
    for dtype in ("float32", "bfloat16"):
        code, _, err = cli(*arguments, "--dtype", dtype, "--device", "cpu")
        assert code == 0, err
        assert json.loads((tmp_path / "figures.json").read_text())["machine"]["dtype"] == dtype


def test_names_of_dtypes_are_those_of_transformers(tiny_dir, adapter):
    assert load_model(tiny_dir, "bfloat16", "cpu")[0].dtype == torch.bfloat16
    assert load_model(tiny_dir, "auto")[0].dtype == torch.float32  # of the files
    assert load_base(tiny_dir, None, "float16")[0].dtype == torch.float16
    model, _ = load_adapter(adapter, dtype="bfloat16")
    assert model.dtype == torch.bfloat16 and model.base_model.get_rows("default").dtype == torch.float32


def test_what_cannot_be_had_is_named_before_anything_is_loaded(cli, adapter, tiny_model, smollm2_tokenizer):
    fails(cli("chat", adapter, "--model", "/no/such", "--dtype", "float7"), "no dtype 'float7'", "bfloat16")
    fails(cli("chat", adapter, "--model", "/no/such", "--dtype", "int8"), "no dtype 'int8'")
    fails(cli("chat", adapter, "--model", "/no/such", "--device", "nowhere"), "device 'nowhere' cannot be used")
    if not torch.cuda.is_available():
        fails(cli("chat", adapter, "--model", "/no/such", "--device", "cuda"), "device 'cuda' cannot be used", "cpu")
    with pytest.raises(ValueError, match="has a dtype already"):
        load_base(tiny_model, smollm2_tokenizer, dtype="float32")
