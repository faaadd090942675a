"""Fetches the tests that PEFT ships in its source distribution and points them at another PEFT method."""

import contextlib
import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
import types
from pathlib import Path

import peft
import pytest


PACKAGE = "peft_upstream_tests"


def fetch_tests() -> Path:
    """
    Returns the folder with the tests of the installed version of PEFT, downloaded once into `PEFT_BE_CACHE` (default
    `~/.cache/peft_be`).

    Raises:
        `RuntimeError`: If pip cannot get the source distribution.
    """
    cache = Path(os.environ.get("PEFT_BE_CACHE") or Path.home() / ".cache" / "peft_be")
    tests = cache / f"peft-{peft.__version__}" / "tests"
    if tests.is_dir():
        return tests

    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as tmp:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-binary", ":all:", "--no-deps", "--dest", tmp]
        try:
            subprocess.run(
                [*pip, f"peft=={peft.__version__}"], check=True, capture_output=True, text=True, timeout=300
            )
        except (OSError, subprocess.SubprocessError) as error:
            output = getattr(error, "stderr", None) or error
            raise RuntimeError(
                f"pip could not download the source distribution of peft {peft.__version__}: {output}"
            ) from error
        (archive,) = Path(tmp).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(tmp, filter="data")
        try:
            os.rename(Path(tmp, f"peft-{peft.__version__}"), tests.parent)
        except OSError:  # another process was faster
            if not tests.is_dir():
                raise
    return tests


def load_test_module(name: str) -> types.ModuleType:
    """Imports a module of PEFT's tests, to run offline and on random rows."""
    if PACKAGE not in sys.modules:
        package = types.ModuleType(PACKAGE)
        package.__path__ = [str(fetch_tests())]
        sys.modules[PACKAGE] = package
    # Imported for tests of diffusion models, which are not run. The stub must not stay: other packages look for it.
    stub = types.ModuleType("diffusers")
    stub.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})
    is_stubbed = sys.modules.setdefault("diffusers", stub) is stub
    try:
        module = importlib.import_module(f"{PACKAGE}.{name}")
    finally:
        if is_stubbed:
            del sys.modules["diffusers"]
    module.hub_online_once = contextlib.nullcontext
    # Asks a method not to start as the identity. BE_TOKEN never does and has no argument for it.
    module.set_init_weights_false = lambda config_cls, kwargs: dict(kwargs)
    # Means to choose targets for BEFT, but skips Llama and Gemma 3 for every method.
    module.check_beft_config = lambda config_cls, model_id, config_kwargs: None
    return module


def skipped_test(reason: str):
    """Returns one test that is skipped, in place of one for each set of parameters."""

    @pytest.mark.skip(reason=reason)
    def test(self):
        pass

    return test


def retarget(
    test_class: type,
    values: dict[str, list],
    skips: dict | None = None,
    patches: dict | None = None,
    only: list[str] | None = None,
) -> type:
    """
    Makes a subclass of one of PEFT's test classes that runs its generic tests, those which are parametrised over the
    PEFT method, on other values. Its other tests are left out.

    Args:
        test_class (`type`): A test class of PEFT.
        values (`dict[str, list]`): The values for each set of parameter names that is to be replaced.
        skips (`dict`): The reasons for which tests are skipped, by the test's name or by the pair of the test's name
            and one of the values.
        patches (`dict[str, dict]`): For a test's name, attributes to set meanwhile: values by (object, name).
        only (`list[str]`): The tests to run where not all the parametrised ones are generic.
    """
    skips, patches = skips or {}, patches or {}
    # Misspelt or outdated names would silently skip or patch nothing.
    named = {key if isinstance(key, str) else key[0] for key in (*skips, *patches, *(only or []))}
    unknown = [name for name in named if not hasattr(test_class, name)]
    assert not unknown, f"{test_class.__name__} has no {unknown}"

    namespace = {}
    for name in dir(test_class):
        if not name.startswith("test_"):
            continue
        function = getattr(test_class, name)
        marks, is_generic = [], False
        for mark in getattr(function, "pytestmark", []):
            if mark.name == "parametrize" and mark.args[0] in values:
                is_generic |= "config" in mark.args[0]
                cases = [
                    pytest.param(value, marks=pytest.mark.skip(reason=skips[name, value]))
                    if isinstance(value, str) and (name, value) in skips
                    else value
                    for value in values[mark.args[0]]
                ]
                mark = pytest.mark.parametrize(mark.args[0], cases).mark
            marks.append(mark)
        if not is_generic or (only is not None and name not in only):
            namespace[name] = None
            continue
        if name in skips:
            namespace[name] = skipped_test(skips[name])
            continue
        copy = types.FunctionType(
            function.__code__, function.__globals__, name, function.__defaults__, function.__closure__
        )
        copy.pytestmark = marks
        copy.patches = patches.get(name, {})
        namespace[name] = copy
    return type(test_class.__name__, (test_class,), namespace)
