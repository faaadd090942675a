"""
What may be skipped where everything that the tests need should be there.

`.ci/run` sets `PEFT_BE_MISSING` to the names of the engines that it could not install, often to none. Then a test that is
skipped for a reason that is not listed here fails the run: a suite that skips what it should prove must not look green.
"""

import os

import pytest


# Regardless of what is installed
ALWAYS = (
    "slow: run with -m slow",
    "needs a GPU",
    "only CUDA says where it was waited for",
    "the template does not take such a conversation",
    "an exchange is longer",
    # PEFT's own suite: tests/peft_suite/test_peft_suite.py
    "The test activates or merges two adapters with the same token ids",
    "The input contains ids of an adapter that is not active",
    "The test builds a model without an embedding",
    "The test needs modules_to_save",
    "The test needs layers_to_transform",
    "The test loads adapters from the Hub",
    "The test asserts that the output of the input embedding requires no gradient",
    "The test is specific to other methods",
)
# Where the engine, or the browser, could not be installed. tiktoken would download its file
WITHOUT = {
    "chromium": ("no Chromium is installed",),
    "llama.cpp": ("llama-cpp-python is not installed", "llama-cpp-python[server] is not installed"),
    "llama-server": ("PEFT_BE_LLAMA_SERVER does not name the program llama-server",),
    "vllm": ("PEFT_BE_VLLM does not name the interpreter of an environment with vLLM",),
    "cl100k_base": ("tiktoken can neither find nor download cl100k_base",),
}

_unexpected: list[str] = []


def allowed(reason: str, missing: str) -> bool:
    """Whether a test may be skipped for this reason where the engines in `missing`, separated by spaces, are not there."""
    unknown = set(missing.split()) - WITHOUT.keys()
    if unknown:
        raise ValueError(f"PEFT_BE_MISSING names {sorted(unknown)}; it knows {sorted(WITHOUT)}.")
    return reason.startswith((*ALWAYS, *(start for name in missing.split() for start in WITHOUT[name])))


def _look_at(report):
    if report.skipped and not hasattr(report, "wasxfail") and "PEFT_BE_MISSING" in os.environ:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not allowed(reason, os.environ["PEFT_BE_MISSING"]):
            _unexpected.append(f"{report.nodeid}: {reason}")


def pytest_runtest_logreport(report):
    _look_at(report)


def pytest_collectreport(report):
    _look_at(report)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    if _unexpected and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    if _unexpected:
        terminalreporter.section("skipped, and not expected to be (tests/skips.py)", red=True, bold=True)
        for line in _unexpected:
            terminalreporter.write_line(line)
