"""
Runs that are killed at random moments and resumed: do they end bit-equal to one that nobody disturbed?

    python -m tests.crashes.kills --kills 20 --json kills.json

One process imports everything and forks a child for each run, which saves the imports. Half of the kills come after a random
time, the other half right before a random file operation, where a run is most easily hurt; each third run is killed again while
it is resumed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path


if __name__ == "__main__":
    # Read by torch and tokenizers when they are imported. With threads, a child of a fork could wait for ever
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

from safetensors import safe_open  # noqa: E402

from peft_be import compress_prompt, compress_prompts, pretrain_ae  # noqa: E402
from peft_be.comparison.compare import compare_methods  # noqa: E402
from peft_be.runs.manifest import PromptJob  # noqa: E402

from ..prompting.chat_tokenizers import build_tokenizer  # noqa: E402
from ..tiny import save_tiny_llama  # noqa: E402


PROMPT = (
    "You are a lighthouse keeper. You answer in short sentences, and you never leave the island, whatever happens."
)
QUERIES = [f"What did you see on day {i}?" for i in range(12)]
TEXTS = [f"{query} The sea is wide, and day {i} was long. " * 8 for i, query in enumerate(QUERIES)]
# Overshoots, so that training stops early
STEPS = {"learning_rate": 0.5, "lr_scheduler_type": "constant", "warmup_steps": 0, "max_answer_length": 6}
STEPS |= {"max_steps": 17, "eval_steps": 2, "save_steps": 2, "logging_steps": 2}
# The audit events of what changes files
OPERATIONS = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree", "os.truncate"}
# Of the records, what is measured and differs from run to run
MEASURED = {"seconds", "eval_runtime", "ttft_ms", "fit_seconds", "machine", "versions"}


def run_pretrain_ae(folder: Path, shared: Path, **options) -> None:
    steps = {"max_steps": 13, "eval_steps": 3, "save_steps": 3, "logging_steps": 3, "max_passage_length": 64}
    pretrain_ae(TEXTS, folder, model=str(shared / "tiny"), num_validation=3, **steps, **options)


def run_compress(folder: Path, shared: Path, **options) -> None:
    stages = {"ae": shared / "ae", "kd_weight": 0.9, "reconstruction_steps": 7}
    compress_prompt(PROMPT, QUERIES, folder, model=str(shared / "tiny"), **stages, **STEPS, **options)


def run_compress_many(folder: Path, shared: Path, **options) -> None:
    jobs = [PromptJob(f"day{i}", f"{PROMPT} It is day {i}.", QUERIES[i:]) for i in range(3)]
    jobs.append(PromptJob("long", "word " * 600, QUERIES))
    compress_prompts(jobs, folder, model=str(shared / "tiny"), group_size=2, **STEPS, **options)


def run_compare(folder: Path, shared: Path, **options) -> None:
    methods = [
        "be",
        "distillation",
        "memory-token",
        "soft-prompt",
        "cartridge:4",
        "truncation:8",
        "self-information:8",
    ]
    args = {"max_steps": 6, "max_answer_length": 6, "seeds": (1, 2)}
    compare_methods(PROMPT, QUERIES, folder, methods, model=str(shared / "tiny"), **args, **options)


COMMANDS = {
    "pretrain-ae": run_pretrain_ae,
    "compress": run_compress,
    "compress-many": run_compress_many,
    "compare": run_compare,
}


def quiet() -> None:
    import warnings

    import datasets
    import transformers

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def watch_files(folder: Path, kill_at: int | None, record: Path) -> None:
    """Count what changes files below `folder`, and die right before the operation number `kill_at`."""
    count = 0

    def hook(event: str, args: tuple) -> None:
        nonlocal count
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if event not in OPERATIONS and not writes:
            return
        if not isinstance(args[0], (str, os.PathLike)) or not os.path.abspath(args[0]).startswith(str(folder)):
            return
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    import atexit

    atexit.register(lambda: record.write_text(str(count)))


def start(command: str, folder: Path, shared: Path, kill_at: int | None = None, **options) -> int:
    """Fork a child that runs a command in `folder`; gives its process id."""
    folder.mkdir(exist_ok=True)
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ["PEFT_BE_CACHE"] = str(folder / "cache")
        quiet()
        watch_files(folder, kill_at, folder.with_suffix(".count"))
        COMMANDS[command](folder / "out", shared, **options)
        import atexit

        atexit._run_exitfuncs()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def without_measured(value):
    if isinstance(value, dict):
        return {
            name: without_measured(v) for name, v in value.items() if name not in MEASURED and "per_second" not in name
        }
    return [without_measured(item) for item in value] if isinstance(value, list) else value


def contents(folder: Path) -> dict[str, object]:
    """What a run left behind, without what is measured: tensors as bytes, records as values."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                found[name] = {key: file.get_tensor(key).numpy().tobytes() for key in file.keys()}
        elif path.suffix == ".json":
            found[name] = without_measured(json.loads(path.read_text()))
        else:
            found[name] = None
    return found


@dataclass
class Outcome:
    """What became of a run that was killed."""

    command: str
    kills: list[str] = field(default_factory=list)
    resumed: bool = False
    equal: bool = False
    differs: list[str] = field(default_factory=list)


class Killer:
    """
    Kills runs in a folder of its own.

    Args:
        folder (`Path`): for everything.
        seed (`int`): of the moments.
    """

    def __init__(self, folder: Path, seed: int):
        self.folder = folder
        self.random = {command: random.Random(f"{seed} {command}") for command in COMMANDS}
        self.alone: dict[str, tuple[dict, float, int]] = {}
        gc.collect()
        gc.freeze()  # or each child's collector would copy all pages of this process
        pid = os.fork()  # torch works in children only
        if pid == 0:
            save_tiny_llama(folder / "tiny", build_tokenizer("smollm2"))  # reading a real one takes longer than a run
            os._exit(0)
        assert wait(pid) == 0
        self._undisturbed("pretrain-ae")
        shutil.copytree(folder / "pretrain-ae" / "out", folder / "ae")

    def _undisturbed(self, command: str) -> tuple[dict, float, int]:
        """What a run leaves, its seconds, and its file operations."""
        if command not in self.alone:
            folder, begin = self.folder / command, time.monotonic()
            code = wait(start(command, folder, self.folder))
            assert code == 0, (folder / "log").read_text()
            seconds, operations = time.monotonic() - begin, int(folder.with_suffix(".count").read_text())
            self.alone[command] = contents(folder / "out"), seconds, operations
        return self.alone[command]

    def kill(self, command: str, number: int) -> Outcome:
        """Kill a run, resume it, and compare it with an undisturbed one."""
        expected, _, _ = self._undisturbed(command)
        folder, outcome = self.folder / f"{command}-{number}", Outcome(command)
        while not outcome.kills:  # a run that is faster than the undisturbed one may end before its moment
            shutil.rmtree(folder, ignore_errors=True)
            self._kill_once(command, folder, number % 2 == 1, outcome)
        if number % 3 == 2:
            self._kill_once(command, folder, number % 2 == 1, outcome, resume=True)
        outcome.resumed = wait(start(command, folder, self.folder, resume=True)) == 0
        if outcome.resumed:
            found = contents(folder / "out")
            outcome.differs = [name for name in {**expected, **found} if found.get(name, 0) != expected.get(name, 1)]
            outcome.equal = not outcome.differs
        return outcome

    def _kill_once(self, command: str, folder: Path, at_operation: bool, outcome: Outcome, **options) -> None:
        _, seconds, operations = self._undisturbed(command)
        if at_operation:
            at = self.random[command].randint(1, operations)
            pid = start(command, folder, self.folder, kill_at=at, **options)
            moment = f"operation {at} of {operations}"
        else:
            delay = self.random[command].uniform(0, seconds)
            pid = start(command, folder, self.folder, **options)
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
            moment = f"{delay:.2f} of {seconds:.2f} s"
        if wait(pid) == -signal.SIGKILL:
            outcome.kills.append(moment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--kills", type=int, default=20, help="of each command")
    parser.add_argument("--seed", type=int, default=18)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--json", type=Path, help="record to write, or to add the commands to")
    parser.add_argument(
        "--folder", type=Path, help="where to work, and keep what went wrong; by default a temporary one"
    )
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    killer = Killer(folder, args.seed)
    runs = []
    for command in args.only:
        for number in range(args.kills):
            outcome = killer.kill(command, number)
            runs.append(outcome)
            print(f"{command} {number}: {'; '.join(outcome.kills)}: ", end="")
            print(
                "bit-equal" if outcome.equal else f"DIFFERS: {outcome.differs}" if outcome.resumed else "NOT RESUMED",
                flush=True,
            )
            if outcome.equal:
                shutil.rmtree(folder / f"{command}-{number}")
    table = {}
    for command in args.only:
        own = [run for run in runs if run.command == command]
        table[command] = {
            "seed": args.seed,
            "runs": len(own),
            "kills": sum(len(run.kills) for run in own),
            "resumed": sum(run.resumed for run in own),
            "bit_equal": sum(run.equal for run in own),
            "moments": [run.kills for run in own],
        }
    print({command: f"{own['bit_equal']} of {own['runs']} bit-equal" for command, own in table.items()})
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        record = json.loads(args.json.read_text()) if args.json.exists() else {}
        args.json.write_text(json.dumps(record | table, indent=2) + "\n")
    if args.folder is None:
        shutil.rmtree(folder)
    sys.exit(0 if all(run.equal for run in runs) else 1)


if __name__ == "__main__":
    main()
