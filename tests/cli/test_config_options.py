"""Commands that train have the fields of their configuration as options: the same names, defaults and help texts."""

import json
from dataclasses import MISSING, fields

import pytest
from typer.main import get_command

from peft_be import AEConfig, BEDistillConfig, BenchConfig, CompressConfig, PretrainAEConfig
from peft_be.cli.config_options import ABLATIONS, SHORT
from peft_be.cli.main import app
from peft_be.runs.config import PAPER


@pytest.mark.parametrize(
    "name, config_class, without",
    [
        ("compress", CompressConfig, ABLATIONS),
        (
            "compress-many",
            CompressConfig,
            (
                *ABLATIONS,
                "max_minutes",
                "reconstruction_steps",
                "keep",
                "keep_tokens",
                "save_steps",
                "target",
                "target_metric",
                "from_adapter",
            ),
        ),
        ("pretrain-ae", PretrainAEConfig, ()),
    ],
)
def test_each_field_is_an_option(name, config_class, without):
    options = {parameter.name: parameter for parameter in get_command(app).commands[name].params}
    for field in fields(config_class):
        if field.name in without:
            assert field.name not in options
            continue
        option = options[field.name]
        assert (option.default, option.help) == (field.default, field.metadata["help"])
        assert f"--{field.name.replace('_', '-')}" in option.opts and len(option.opts) == 1 + (field.name in SHORT)


@pytest.mark.parametrize("run, trainer", [(CompressConfig, BEDistillConfig), (PretrainAEConfig, AEConfig)])
def test_runs_and_trainers_have_one_set_of_defaults(run, trainer):
    theirs = {field.name: field for field in fields(trainer)}
    shared = [field for field in fields(run) if field.name in theirs]
    assert len(shared) > 10
    for field in shared:
        assert field.default == theirs[field.name].default is not MISSING, field.name


def test_the_papers_settings_and_others_that_are_given(cli, job):
    options = {"paper": True, "kd_weight": 1, "reconstruction_interval": 32, "batch_size": 4}
    code, _, err = cli(*job.with_(**options))
    assert code == 0, err
    settings = json.loads((job.folder / "out" / "training.json").read_text())["settings"]
    given = {"kd_weight": 1.0, "reconstruction_interval": 32, "per_device_train_batch_size": 4}
    assert {name: settings[name] for name in PAPER} == {**PAPER, **given}


def test_help_shows_what_bench_measures():
    shown = {
        p.name: p.show_default for p in get_command(app).commands["bench"].params if isinstance(p.show_default, str)
    }
    config = BenchConfig()
    sizes = ",".join(map(str, config.batch_sizes))
    assert shown == {"batch_sizes": sizes, "new_tokens": str(config.new_tokens), "repeats": str(config.repeats)}
