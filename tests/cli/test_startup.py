"""`--help` and `--version` load nothing heavy, and show all that they have to say."""

import json
import subprocess
import sys

import pytest

from peft_be.cli.main import app


HELP = """
import io, json, os, sys
os.environ["COLUMNS"] = "1000"
from peft_be.cli.main import app, main
shown = {}
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["peft-be", *arguments]
    sys.stdout = io.StringIO()
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, arguments
    shown[" ".join(arguments)] = sys.stdout.getvalue()
sys.stdout = sys.__stdout__
print(json.dumps([shown, sorted({"torch", "transformers", "peft", "trl", "datasets", "numpy"} & sys.modules.keys())]))
"""


@pytest.fixture(scope="module")
def commands():
    from typer.main import get_command

    found = get_command(app).commands
    return {name: command for name, command in found.items() if command.get_help_option_names is not None}


@pytest.fixture(scope="module")
def shown_and_heavy(commands):
    # What follows `lm-eval` is the harness's
    calls = [["--help"], ["--version"], *([name, "--help"] for name in commands if name != "lm-eval")]
    done = subprocess.run([sys.executable, "-c", HELP, json.dumps(calls)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return json.loads(done.stdout)


def test_help_loads_nothing_heavy(shown_and_heavy):
    shown, heavy = shown_and_heavy
    assert len(shown) > 12 and all(shown.values())
    assert heavy == []


def test_help_says_all_that_it_has_to_say(shown_and_heavy, commands):
    shown, _ = shown_and_heavy
    for name, command in commands.items():
        assert " ".join(command.help.split()) in " ".join(shown["--help"].split()), name
        if name == "lm-eval":
            continue
        for parameter in command.params:
            if getattr(parameter, "help", None) and not parameter.hidden:
                assert parameter.help in shown[f"{name} --help"], (name, parameter.name)


def test_version(shown_and_heavy):
    from peft_be import __version__

    assert shown_and_heavy[0]["--version"] == f"peft-be {__version__}\n"
