"""
What a command line costs before it does anything: `peft-be --help` and every `COMMAND --help` next to an empty Python
that imports typer, and `import peft_be` next to `import peft`.

Each side is a fresh process. The sides take turns, so that a busy machine slows all of them down alike. `--before` is
a checkout of an older commit, which is measured in the same run.

Example: `git worktree add ../before 26be430; python benchmarks/startup.py --before ../before --json startup.json`
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from typer.main import get_command

from peft_be.cli.main import app
from peft_be.machine.versions import versions


HERE = Path(__file__).resolve().parent.parent
HELP, TYPER, PEFT = "peft-be --help", "import typer", "import peft"
BOTH, BEFORE = "import peft_be, then peft", ", before"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="FOLDER", help="a checkout of an older commit")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", metavar="OUT", help="write the figures to this file")
    args = parser.parse_args()

    # `lm-eval --help` is the harness's own
    names = [name for name in get_command(app).commands if name != "lm-eval"]
    help_calls = {f"peft-be {name} --help": ["-m", "peft_be.cli", name, "--help"] for name in names}
    sides = {TYPER: (["-c", "import typer"], HERE), HELP: (["-m", "peft_be.cli", "--help"], HERE)}
    sides |= {name: (call, HERE) for name, call in help_calls.items()}
    sides |= {PEFT: (["-c", "import peft"], HERE), BOTH: (["-c", "import peft_be, peft"], HERE)}
    if args.before:
        sides[HELP + BEFORE] = (["-m", "peft_be.cli", "--help"], Path(args.before))
        sides[BOTH + BEFORE] = (["-c", "import peft_be, peft"], Path(args.before))

    seconds: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for number in range(args.repeats + 1):
        for side, (call, tree) in sides.items():
            figures = measure(call, tree)
            if number:  # the first round compiles and fills the disk's cache
                seconds[side].append(figures)
    results = {
        side: summary(figures, seconds[PEFT if side.startswith("import peft") else TYPER])
        for side, figures in seconds.items()
    }
    packages = {HELP: import_times(*sides[HELP])}
    if args.before:
        packages[HELP + BEFORE] = import_times(*sides[HELP + BEFORE])
    print_table(results, packages)
    if args.json:
        settings = {
            "repeats": args.repeats,
            "commit": commit(HERE),
            "before": args.before and commit(Path(args.before)),
        }
        report = {"args": settings, "results": results, "import_ms": packages, "versions": versions()}
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure(call: list[str], tree: Path) -> dict[str, float]:
    """Seconds of the clock and of the processor that a process takes."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *call], cwd=tree, env=environment(tree), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(call)} failed in {tree}")
    return {"processor": usage.ru_utime + usage.ru_stime, "wall": wall}


def environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"}


def summary(figures: list[dict[str, float]], baseline: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Median and range of the seconds, and of what they exceed the baseline by; both were measured by turns."""
    found = {}
    for clock in ("processor", "wall"):
        values = [f[clock] for f in figures]
        more = [f[clock] - b[clock] for f, b in zip(figures, baseline)]
        found[f"{clock}_s"] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
        found[f"{clock}_more_s"] = {"median": statistics.median(more), "min": min(more), "max": max(more)}
        found[f"{clock}_ratio"] = statistics.median(f[clock] / b[clock] for f, b in zip(figures, baseline))
    return found


def import_times(call: list[str], tree: Path, largest: int = 8) -> dict[str, float]:
    """Milliseconds that `python -X importtime` counts for each top-level package, the largest ones, and their sum."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *call], cwd=tree, env=environment(tree), capture_output=True, text=True
    )
    times: Counter[str] = Counter()
    for own, name in re.findall(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", done.stderr, re.MULTILINE):
        times[name.split(".")[0]] += int(own) / 1000
    return {"all": round(sum(times.values()), 1), **{name: round(ms, 1) for name, ms in times.most_common(largest)}}


def commit(tree: Path) -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=tree, capture_output=True, text=True).stdout.strip()


def print_table(results: dict, packages: dict) -> None:
    print(f"{'':42}{'processor, s':>14}{'range':>16}{'more, s':>10}{'ratio':>8}{'clock, s':>10}")
    for side, figures in results.items():
        own, more = figures["processor_s"], figures["processor_more_s"]
        spread = f"{own['min']:.2f} to {own['max']:.2f}"
        print(
            f"{side:42}{own['median']:14.2f}{spread:>16}{more['median']:10.2f}{figures['processor_ratio']:8.2f}"
            f"{figures['wall_s']['median']:10.2f}"
        )
    for side, times in packages.items():
        print(f"{side}, imports in ms: " + ", ".join(f"{name} {ms:.0f}" for name, ms in times.items()))


if __name__ == "__main__":
    main()
