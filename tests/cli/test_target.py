"""What the commands say of a search for the rows that reach a target."""

import json
import re


def test_the_curve_is_told_and_shown(cli, job):
    code, out, err = cli(*job.with_(target=0.95, max_steps=20))
    assert code == 0, err
    search = json.loads((job.folder / "out" / "training.json").read_text())["search"]
    probes = {entry["k"]: entry["kl_gap_closed"] for entry in search["curve"] if not entry["full"]}
    listed = ", ".join(f"{k} row{'' if k == 1 else 's'} {gap:.2f}" for k, gap in sorted(probes.items()))
    assert f"Gap closed after 20 steps: {listed}; after all steps: " in out
    verdict = "the fewest found that reach" if search["reached"] else "the nearest found to"
    assert re.search(rf"{search['k']} rows? (is|are) {verdict} the target of 0.95\.", out)
    assert "--target 0.9" not in out  # it has been looked for
    assert err.count("The target of 0.95 is not reached") == (not search["reached"])

    code, out, err = cli("info", job.folder / "out", columns=80)
    assert code == 0, err
    assert f"The target of 0.95 was {'reached' if search['reached'] else 'not reached'}." in out
    shown = re.findall(r"│ +(\d+) │ +(\d+) │ +(-?\d\.\d{3}) │", out)
    expected = sorted(search["curve"], key=lambda entry: (entry["k"], entry["full"]))
    assert shown == [(str(e["k"]), str(e["steps"]), f"{e['kl_gap_closed']:.3f}") for e in expected]


def test_without_a_target_it_is_said_how_to_look_for_one(cli, job):
    code, out, err = cli(*job.arguments)
    assert code == 0, err
    assert "What more rows would bring: the same command with --target 0.9" in out
    assert "gap closed by more rows" not in cli("info", job.folder / "out")[1]


def test_many_prompts_take_no_target(cli, job):
    code, _, err = cli("compress-many", job.folder / "m.jsonl", "--output", job.folder / "many", "--target", "0.9")
    assert code != 0 and "--target" in err
