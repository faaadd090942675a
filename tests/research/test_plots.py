"""The charts of a study come from its results alone: those with cells, and no others."""

import json
import runpy
import sys
from pathlib import Path

import pytest


PLOTS = Path(__file__).parents[2] / "research" / "plots.py"
ONE, OTHER = (
    {"variant": "a, be, 10 min", "seed": 42, "kl_gap_closed": 0.5},
    {"variant": "a, soft-prompt:1, 10 min", "seed": 42, "kl_gap_closed": -0.5},
)


@pytest.fixture
def draw(tmp_path, monkeypatch):
    def draw(cells: list[dict]) -> dict[str, bytes]:
        results, folder = tmp_path / "results.jsonl", tmp_path / "charts"
        folder.mkdir(exist_ok=True)
        results.write_text("".join(json.dumps(cell) + "\n" for cell in cells))
        monkeypatch.setattr(sys, "argv", ["plots.py", str(results), str(folder)])
        runpy.run_path(str(PLOTS), run_name="__main__")
        return {path.stem: path.read_bytes() for path in folder.iterdir()}

    return draw


def test_only_what_has_cells_is_drawn(draw):
    assert not draw([{"variant": "of no chart", "seed": 42, "kl_gap_closed": 0.5}])
    assert list(draw([ONE, OTHER])) == ["study-methods"]


def test_same_results_same_files(draw):
    assert draw([ONE, OTHER]) == draw([ONE, OTHER])
    assert draw([ONE, OTHER]) != draw([ONE, {**OTHER, "kl_gap_closed": 0.4}])


def test_lambda_over_seeds():
    import matplotlib.pyplot as plt
    from plots import weights

    def cell(name, gap):
        return {"variant": f"words-128, {name}, 200 steps", "kl_gap_closed": gap}

    cells = [
        cell("figure 3: lambda 0.5", 0.1),
        cell("figure 3: lambda 0.5", 0.3),
        cell("table 2: with [AE] + KD", 0.4),
    ]
    _, axes = plt.subplots()
    weights(cells + [cell("table 2: no reconstruction + PT", 9.0)], axes)
    (line, caps, _) = axes.containers[0]
    assert line.get_xydata().tolist() == [[0.5, pytest.approx(0.2)], [0.9, 0.4]]
    assert [cap.get_ydata()[0] for cap in caps] == [pytest.approx(0.1), pytest.approx(0.3)]
