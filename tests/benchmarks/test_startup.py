"""The clocks of the benchmark that measures how the command starts."""

import pytest


def test_a_process_is_measured_and_a_failed_one_is_an_error(tmp_path):
    from startup import measure

    busy = measure(
        ["-c", "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"], tmp_path
    )
    assert 0.3 <= busy["processor"] < busy["wall"] + 0.1
    asleep = measure(["-c", "import time\ntime.sleep(0.5)"], tmp_path)
    assert asleep["processor"] < 0.4 and asleep["wall"] >= 0.5
    with pytest.raises(RuntimeError, match="failed"):
        measure(["-c", "raise SystemExit(3)"], tmp_path)


def test_imports_are_counted_by_package(tmp_path):
    from startup import import_times

    (tmp_path / "slow_one").mkdir()
    (tmp_path / "slow_one" / "__init__.py").write_text("import time\ntime.sleep(0.05)\nfrom . import part\n")
    (tmp_path / "slow_one" / "part.py").write_text("import time\ntime.sleep(0.05)\n")
    times = import_times(["-c", "import slow_one"], tmp_path)
    assert 100 <= times["slow_one"] <= times["all"]


def test_the_summary_compares_by_turns():
    from startup import summary

    figures = [{"processor": a, "wall": a} for a in (1.0, 2.0, 4.0)]
    baseline = [{"processor": b, "wall": b} for b in (0.5, 1.0, 1.0)]
    found = summary(figures, baseline)
    assert found["processor_s"] == {"median": 2.0, "min": 1.0, "max": 4.0}
    assert found["processor_more_s"] == {"median": 1.0, "min": 0.5, "max": 3.0}
    assert found["wall_ratio"] == 2.0
