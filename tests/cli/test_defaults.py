"""The defaults that the help shows are those that hold."""

import pytest
from typer.main import get_command

from peft_be import AEConfig, BEDistillConfig, BenchConfig
from peft_be.cli.main import app


# Where the option has another name than the field
FIELDS = {"batch_size": "per_device_train_batch_size"}


@pytest.mark.parametrize(
    "name, config", [("compress", BEDistillConfig), ("compress-many", BEDistillConfig), ("pretrain-ae", AEConfig)]
)
def test_help_shows_the_defaults_of_the_configuration(name, config, tmp_path):
    fields = vars(config(str(tmp_path)))
    shown = {
        FIELDS.get(parameter.name, parameter.name): parameter.show_default
        for parameter in get_command(app).commands[name].params
        if parameter.default is None and isinstance(parameter.show_default, str)
    }
    assert len(shown) > 2
    for field, default in shown.items():
        assert default == fields[field] or float(default) == fields[field], field


def test_help_shows_what_bench_measures():
    shown = {
        p.name: p.show_default for p in get_command(app).commands["bench"].params if isinstance(p.show_default, str)
    }
    config = BenchConfig()
    sizes = ",".join(map(str, config.batch_sizes))
    assert shown == {"batch_sizes": sizes, "new_tokens": str(config.new_tokens), "repeats": str(config.repeats)}
