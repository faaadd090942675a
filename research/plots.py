"""
Charts of a study, as SVG files, from its results alone: one for each comparison that has cells.

Example:

    pip install matplotlib
    python research/plots.py research/results/prompts.jsonl research/images
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections import defaultdict
from pathlib import Path

import matplotlib


matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from peft_be.files import read_records  # noqa: E402


# The same file from the same results
plt.rcParams.update({"svg.hashsalt": "peft_be", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def named(cells: list[dict], pattern: str) -> list[tuple[tuple[str, ...], dict]]:
    """The cells whose variant is a pattern, each with the pattern's groups."""
    found = [(re.fullmatch(pattern, cell["variant"]), cell) for cell in cells]
    return [(match.groups(), cell) for match, cell in found if match]


def methods(cells: list[dict], axes: plt.Axes) -> None:
    """The gap closed by every method of ten minutes, a row for each prompt."""
    found = named(cells, r"([\w-]+), (.+), 10 min")
    several = {prompt for (prompt, name), _ in found if name != "be"}
    found = [((prompt, name), cell) for (prompt, name), cell in found if prompt in several]
    prompts, names = (list(dict.fromkeys(group[i] for group, _ in found)) for i in (0, 1))
    for i, name in enumerate(names):
        own = [(prompts.index(prompt), cell["kl_gap_closed"]) for (prompt, n), cell in found if n == name]
        axes.plot([x for _, x in own], [y for y, _ in own], "o^sDvP*X<>"[i % 10], label=name)
    axes.set_yticks(range(len(prompts)), prompts)
    axes.margins(y=0.2)
    axes.invert_yaxis()
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_xlabel("KL gap closed on held-out queries, ten minutes of one core each")


def curves(cells: list[dict], axes: plt.Axes) -> None:
    """Validation KL while the default recipe trains: figure 5 of the paper, for distillation alone."""
    for (prompt,), cell in named(cells, r"([\w-]+), be"):
        axes.plot(*zip(*cell["curve"]), marker=".", label=f"{prompt}, seed {cell['seed']}")
    axes.set_xlabel("steps of two answers")
    axes.set_ylabel("validation KL, nats a token")
    axes.set_ylim(bottom=0)


def reconstruction(cells: list[dict], axes: plt.Axes) -> None:
    """What [BE][AE] restores of prompts of different lengths."""
    found = sorted(
        (cell["prompt_tokens"], cell["reconstruction"]) for _, cell in named(cells, r"words-\d+, reconstruction")
    )
    for name, label in (
        ("greedy_prefix_match", "greedy, up to the first mistake"),
        ("token_accuracy", "teacher-forced"),
    ):
        axes.plot([tokens for tokens, _ in found], [figures[name] for _, figures in found], marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens of P")
    axes.set_ylabel("share of P's tokens")


def length(cells: list[dict], axes: plt.Axes) -> None:
    """The gap closed against the length of P: GSM8K with 1 to 32 worked examples."""
    found = sorted(
        (c["prompt_tokens"], c["kl_gap_closed"], g[0]) for g, c in named(cells, r"gsm8k-(\d+)shot, be, 120 steps")
    )
    lengths = [tokens for tokens, _, _ in found]
    axes.plot(lengths, [gap for _, gap, _ in found], marker="o", label="one row, 120 steps")
    for tokens, gap, shots in found:
        axes.annotate(f"{shots}-shot", (tokens, gap), xytext=(0, 6), textcoords="offset points", ha="center")
    axes.set_xscale("log")
    axes.set_xticks(lengths, lengths)
    axes.minorticks_off()
    axes.set_ylim(0, 1)
    axes.set_xlabel("tokens of P")
    axes.set_ylabel("KL gap closed")


def weights(cells: list[dict], axes: plt.Axes) -> None:
    """Lambda of Eq. 4, mean and range over seeds: figure 3 of the paper. Its ends and 0.9 are cells of table 2, too."""
    table_2 = {"with [AE] + none": 0.0, "with [AE] + KD": 0.9, "no reconstruction + KD": 1.0}
    gaps = defaultdict(list)
    for (weight, name), cell in named(cells, r"[\w-]+, (?:figure 3: lambda ([\d.]+)|table 2: (.+)), .*"):
        if weight or name in table_2:
            gaps[float(weight or table_2[name])].append(cell["kl_gap_closed"])
    x = sorted(gaps)
    mean = [statistics.mean(gaps[weight]) for weight in x]
    low, high = ([m - min(gaps[w]) for w, m in zip(x, mean)], [max(gaps[w]) - m for w, m in zip(x, mean)])
    axes.errorbar(x, mean, [low, high], marker="o", capsize=3, label="mean and range over seeds")
    axes.set_xlabel("lambda")
    axes.set_ylabel("KL gap closed")


CHARTS = {
    "study-methods": methods,
    "study-curves": curves,
    "study-reconstruction": reconstruction,
    "study-length": length,
    "study-lambda": weights,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="finished cells, JSON lines")
    parser.add_argument("output", type=Path, help="folder of the charts")
    args = parser.parse_args()
    cells = read_records(args.results)
    for name, draw in CHARTS.items():
        figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
        draw(cells, axes)
        if np.isfinite(axes.dataLim.get_points()).all():  # something was drawn
            axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
            figure.savefig(args.output / f"{name}.svg", metadata={"Date": None})
            print(args.output / f"{name}.svg")
        plt.close(figure)


if __name__ == "__main__":
    main()
