"""Nothing of the user's is markup, and nothing that a command prints can cost its results."""

import io
import json
import re
import shlex
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .conftest import PROMPT
from .streams import broken_pipe, run_into


ODD = "[/INST] \\[b] [v1] [bold]x[/bold] :smile: [link=x] [/]"
# What a console can print: no control characters, and no white space that a table folds
LETTERS = st.characters(exclude_categories=["C", "Z"])
FRAGMENTS = ["[", "]", "/", "\\", "[/INST]", "[v1]", "[/]", "[b]", "[red]", ":smile:", ":+1:", "[@click=x]", "[#fff]"]
TEXTS = st.lists(st.one_of(st.sampled_from(FRAGMENTS), LETTERS), min_size=1).map("".join)


@pytest.fixture
def odd_job(job):
    """A job whose prompt, queries and paths look like markup and need quotes."""
    folder = job.folder / "my [v1] :smile: dir"
    folder.mkdir()
    (folder / "prompt.txt").write_text(f"{PROMPT} {ODD}")
    (folder / "held_out.txt").write_text(f"Who {ODD} are you?\nIs it cold?\n")
    return job, folder


def test_commands_print_texts_and_paths_as_they_are(cli, odd_job, monkeypatch):
    job, folder = odd_job
    prompt, adapter = folder / "prompt.txt", folder / "out [b]"
    code, out, err = cli(*job.with_(prompt=prompt, output=adapter))
    assert code == 0, err
    assert f"Compressing {prompt} with" in out and f"Saved to {adapter} (" in out
    commands = re.search(r"Next: (peft-be eval .*), or (peft-be chat .*)", out)
    assert shlex.split(commands[1])[2:5] == [str(adapter), "--prompt", str(prompt)]
    assert shlex.split(commands[2]) == ["peft-be", "chat", str(adapter)]

    queries = ["--queries", folder / "held_out.txt", "--max-answer-length", 4, "--samples", 2]
    code, out, err = cli("eval", adapter, "--prompt", prompt, *queries)
    assert code == 0, err
    assert "".join(f"Who {ODD} are you?".split()) in "".join(out.split())  # a title is broken into lines
    code, out, err = cli("info", adapter)
    assert code == 0 and str(adapter) in out, err
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{ODD}\n\n"))
    code, out, err = cli("chat", adapter, "--compare", prompt, "--max-new-tokens", 2)
    assert code == 0, err
    code, out, err = cli("info", folder / "none [v1] [/INST]")
    assert code == 1 and f"'{folder / 'none [v1] [/INST]'}'" in err
    named = adapter.rename(folder / "out")
    code, out, err = cli("export", named, "--output", folder / "merged [v1]")
    assert code == 0 and f"Saved to {folder / 'merged [v1]'}." in out, err


ESCAPES = "\x1b[2J\x1b]0;title\x07 \x9b31m \x08\x7f"


def test_no_text_steers_the_terminal(cli, job):
    """Neither queries nor paths nor what an error repeats of them."""
    (job.folder / "queries.jsonl").write_text("".join(json.dumps(f"{ESCAPES} {i}?") + "\n" for i in range(4)))
    code, out, err = cli(*job.arguments)
    assert code == 0 and "\u241b[2J" in out, err
    for text in (out, *cli("info", job.folder / f"none{ESCAPES}")[1:], *cli("info", job.folder / "out")[1:]):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)


def test_paths_that_look_like_options(cli, job, monkeypatch):
    monkeypatch.chdir(job.folder)
    code, out, err = cli(*job.with_(output="-out"))
    assert code == 0, err
    commands = re.search(r"Next: (peft-be eval .*), or (peft-be chat .*)", out)
    assert shlex.split(commands[1])[2] == shlex.split(commands[2])[2] == "./-out"


@given(TEXTS)
def test_any_text_survives_tables_and_messages(text):
    from peft_be.cli.common import console
    from peft_be.cli.evaluate import sample_table

    shown = printed(console, sample_table({"query": text, "full": text, "be": text, "no_prompt": text}))
    assert shown.count(text) >= 4


@given(TEXTS)
def test_any_text_survives_in_a_message(text):
    from peft_be.cli.common import bold, console, say

    before, console.file = console.file, io.StringIO()
    try:
        say("Saved to ", bold(text), ". Next: ", text)
        assert console.file.getvalue() == f"Saved to {text}. Next: {text}\n"
    finally:
        console.file = before


@given(TEXTS)
def test_any_text_survives_as_the_name_of_a_part(text):
    from rich.console import Console

    from peft_be.cli.progress import progress_bars

    for terminal in (False, True):
        to = Console(file=io.StringIO(), width=2000, force_terminal=terminal, color_system=None)
        with progress_bars(to) as update:
            update(f"stage 2: {text[:20]}", 1, 2, {})
        assert f"stage 2: {text[:20]}" in to.file.getvalue()


@given(text=TEXTS)
def test_any_text_survives_in_an_error(text):
    import typer

    from peft_be.cli.common import run_cleanly

    app = typer.Typer()

    @app.command()
    def broken():
        raise ValueError(f"There is no '{text}'.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["peft-be"])
        patch.setattr(sys, "stderr", io.StringIO())
        with pytest.raises(SystemExit):
            run_cleanly(app)
        assert sys.stderr.getvalue() == f"Error: There is no '{text}'.\n"


def test_long_words_are_not_cut(cli, job, monkeypatch):
    assert cli(*job.arguments)[0] == 0
    config = job.folder / "out" / "adapter_config.json"
    settings = json.loads(config.read_text())
    settings["base_model_name_or_path"] = "a" * 150
    config.write_text(json.dumps(settings))
    stream = io.StringIO()
    assert run_into(monkeypatch, stream, "info", job.folder / "out") == 0
    assert stream.getvalue().count("a" * 40) >= 3 and "…" not in stream.getvalue()


def printed(console, what) -> str:
    before, console.file = console.file, io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "2000")
        try:
            console.print(what)
            return console.file.getvalue()
        finally:
            console.file = before


@pytest.fixture
def results(job):
    """What each command is run with, and the files that it has to leave."""
    out, prompt = job.folder / "out", job.folder / "prompt.txt"
    held_out = job.folder / "held_out.txt"
    (job.folder / "jobs.jsonl").write_text(
        json.dumps({"name": "keeper", "prompt": "prompt.txt", "queries": "queries.jsonl"})
    )
    small = ["--model", job.arguments[job.arguments.index("--model") + 1], "--max-steps", 2, "--max-answer-length", 4]
    measure = ["--repeats", 2, "--new-tokens", 2, "--batch-sizes", 1]
    score = ["--queries", held_out, "--max-answer-length", 4, "--samples", 1]
    many, compared = job.folder / "many", job.folder / "compared"
    methods = ["--methods", "truncation:8", "--test-queries", held_out]
    return {
        "compress": (job.arguments, [out / "adapter_model.safetensors", out / "training.json"]),
        "eval": (["eval", out, "--prompt", prompt, *score, "--json", job.folder / "s"], [job.folder / "s"]),
        "bench": (["bench", out, "--prompt", prompt, *measure, "--json", job.folder / "b"], [job.folder / "b"]),
        "compress-many": (
            ["compress-many", job.folder / "jobs.jsonl", "--output", many, *small],
            [many / "keeper" / "adapter_model.safetensors"],
        ),
        "compare": (
            ["compare", "--prompt", prompt, "--queries", job.folder / "queries.jsonl", "--output", compared]
            + [*methods, *small],
            [compared / "results.json", compared / "report.html"],
        ),
    }


def test_results_are_there_though_nobody_reads_what_is_printed(results, monkeypatch):
    for arguments, files in results.values():
        with broken_pipe() as stream:
            assert run_into(monkeypatch, stream, *arguments) == 0, arguments
        for file in files:
            assert file.stat().st_size, file


def test_an_encoding_without_the_letters_costs_nothing(results, monkeypatch, job):
    (job.folder / "held_out.txt").write_text("Où est la mer, 海?\n", encoding="utf-8")
    for name in ("compress", "eval"):
        arguments, files = results[name]
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        assert run_into(monkeypatch, stream, *arguments) == 0, name
        assert all(file.stat().st_size for file in files)
    assert rb"O\xf9 est la mer, \u6d77?" in stream.buffer.getvalue()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_what_is_printed_onto_a_full_disk_is_an_error_after_the_work(results, monkeypatch, capsys):
    arguments, files = results["compress"]
    with open("/dev/full", "w") as stream:
        assert run_into(monkeypatch, stream, *arguments) == 1
    assert "No space left" in capsys.readouterr().err
    assert all(file.stat().st_size for file in files)


def test_a_json_file_that_cannot_be_written_is_refused_before_the_work(cli, job):
    options = ["--prompt", job.folder / "prompt.txt", "--queries", job.folder / "held_out.txt"]
    code, _, err = cli("eval", job.folder, *options, "--json", job.folder)
    assert code == 1 and "is a folder" in err
