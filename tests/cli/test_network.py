"""No command reaches for the network by itself: sockets are watched while each works on local files."""

import json
import os
import subprocess
import sys

from .conftest import PROMPT, QUERIES


# The commands run one after another in one process, for the imports cost most. What is not of this machine is an event
DRIVER = """
import io, json, runpy, sys, traceback
events, command = [], None

def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        local = not isinstance(address, tuple) or address[0] in ("127.0.0.1", "::1", "localhost")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        local = arguments[0] in ("127.0.0.1", "::1", "localhost", None)
    else:
        return
    if not local:
        events.append([command, event, str(arguments), traceback.format_stack()])

sys.addaudithook(watch)
import huggingface_hub  # as for Python, where the command line has not turned off what libraries report
from peft_be.cli.main import main
from peft_be.serving import page
page.wait = lambda shown: shown.close(verbose=False)  # instead of Ctrl-C
codes = {}
for command, arguments in json.loads(sys.argv[1]).items():
    sys.argv = ["peft-be", *arguments]
    sys.stdin = io.StringIO("Who are you?\\n\\n")
    try:
        main()
    except SystemExit as stop:
        codes[command] = stop.code or 0
command = "ifeval"
from peft_be.evaluation.tasks import load_task
load_task("ifeval", "items.jsonl")
codes[command] = 0
import socket
try:
    command = "the watch itself"
    socket.create_connection(("192.0.2.1", 9), timeout=0.01)
except OSError:
    pass
with open("seen.json", "w") as file:
    json.dump([codes, events], file)
"""


def test_no_command_reaches_for_the_network(tmp_path, tiny_dir):
    (tmp_path / "prompt.txt").write_text(PROMPT)
    (tmp_path / "queries.txt").write_text("\n".join(QUERIES))
    (tmp_path / "held_out.txt").write_text("Who are you?\nIs it cold?\n")
    (tmp_path / "jobs.jsonl").write_text('{"name": "keeper", "prompt": "prompt.txt", "queries": "queries.txt"}\n')
    texts = (f"Night {i}: " + " ".join(f"wave {j} of night {i}" for j in range(15)) for i in range(8))
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    rule = {"prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    (tmp_path / "items.jsonl").write_text(json.dumps(rule) + "\n")
    small = f"--model {tiny_dir} --max-steps 1".split()
    short = "--max-answer-length 4".split()
    prompt, asked = "--prompt prompt.txt".split(), "--prompt prompt.txt --queries queries.txt".split()
    commands = {
        "compress": ["compress", *asked, "--output", "out", *small, *short],
        "eval": ["eval", "out", *prompt, "--queries", "held_out.txt", *short, "--card"],
        "bench": ["bench", "out", *prompt, *"--repeats 2 --new-tokens 1 --batch-sizes 1".split()],
        "chat": ["chat", "out", "--compare", "prompt.txt", "--max-new-tokens", "2"],
        "info": ["info", "out"],
        "export": ["export", "out", "--output", "merged"],
        "demo": ["demo", "out", *prompt, "--port", "7931"],
        "pretrain-ae": ["pretrain-ae", "--corpus", "corpus.jsonl", "--output", "ae", *small],
        "compress-many": ["compress-many", "jobs.jsonl", "--output", "many", *small, *short],
        "compare": ["compare", *asked, "--output", "compared", "--methods", "truncation:8", *small, *short],
        "a missing adapter": ["info", "missing"],
    }
    environment = {**os.environ, "PEFT_BE_CACHE": str(tmp_path / "cache"), "NLTK_DATA": str(tmp_path / "nltk")}
    # As a user has it: what keeps the other tests from the network is off
    for name in ("HF_HUB_OFFLINE", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(commands)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    codes, events = json.loads((tmp_path / "seen.json").read_text())
    expected = dict.fromkeys([*commands, "ifeval"], 0) | {"a missing adapter": 1}
    assert codes == expected, done.stderr[-3000:]
    assert any(command == "the watch itself" for command, *_ in events)
    unasked = [event for event in events if event[0] != "the watch itself"]
    assert not unasked, "".join(line for *_, stack in unasked for line in stack)
    assert "gemm_4bit" not in done.stderr and "Traceback" not in done.stderr
