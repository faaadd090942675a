"""A skip that nobody expected fails a run that asks for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .skips import allowed


HOOKS = "pytest_collectreport, pytest_runtest_logreport, pytest_sessionfinish, pytest_terminal_summary"
TESTS = {
    "passes": "def test_it():\n    pass",
    "engine": "import pytest\ndef test_it():\n    pytest.skip('no Chromium is installed')",
    "mark": "import pytest\n@pytest.mark.skip(reason='no time')\ndef test_it():\n    pass",
    "module": "import pytest\npytest.importorskip('no_such_package', reason='the page needs it')",
}


def run(folder, missing):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PEFT_BE_MISSING": missing}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    line = [sys.executable, "-m", "pytest", "-q", "-p", "xdist", "-n", "1", "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout


def test_a_skip_that_was_not_expected_fails_the_run(tmp_path):
    (tmp_path / "conftest.py").write_text(f"from tests.skips import {HOOKS}")
    for name, text in TESTS.items():
        (tmp_path / f"test_{name}.py").write_text(text)
    code, printed = run(tmp_path, "vllm chromium")
    _, _, named = printed.partition("not expected to be")
    assert code == 1 and "test_mark.py::test_it: no time" in named and "test_module.py: the page needs it" in named
    assert "Chromium" not in named
    for name in ("mark", "module"):
        (tmp_path / f"test_{name}.py").unlink()
    assert run(tmp_path, "vllm chromium")[0] == 0
    assert run(tmp_path, "vllm")[0] == 1


def test_what_is_missing_must_be_known():
    assert allowed("needs a GPU", "")
    with pytest.raises(ValueError, match="names \\['chrome'\\]; it knows"):
        allowed("needs a GPU", "chrome")
