"""`peft-be compress --from`."""

import json

from .outcomes import fails


def test_from_an_earlier_adapter(cli, job):
    assert cli(*job.with_(output=job.folder / "old"))[0] == 0
    (job.folder / "prompt.txt").write_text("You are a lighthouse keeper with a dog. You answer in short sentences.")
    report = json.loads((job.folder / "old" / "training.json").read_text())
    report["seen_queries"].append("f" * 24)
    (job.folder / "old" / "training.json").write_text(json.dumps(report))
    code, out, err = cli(*job.arguments, "--from", job.folder / "old")
    assert code == 0 and f"The rows start from those of {job.folder / 'old'}" in out, err
    again = json.loads((job.folder / "out" / "training.json").read_text())
    settings = again["settings"]
    assert set(again["seen_queries"]) == set(
        report["seen_queries"]
    )  # what the earlier rows have seen is no held-out query
    assert settings["from_adapter"] == str(job.folder / "old")
    code, out, err = cli("info", job.folder / "out")
    assert code == 0 and "started from" in out and f"rows {settings['from_sha256'][:12]}" in out, err
    # The same option by the field's name; and a resumed run keeps it
    assert cli(*job.arguments, "--from-adapter", job.folder / "old", "--resume")[0] == 0
    fails(cli(*job.arguments, "--resume"), "was started with another from adapter")


def test_from_what_does_not_fit(cli, job):
    assert cli(*job.with_(output=job.folder / "old", num_be_tokens=2))[0] == 0
    fails(cli(*job.arguments, "--from", job.folder / "old"), "has 2 rows, which are more than num_be_tokens=1")
    fails(cli(*job.arguments, "--from", job.folder), "There is no adapter in")
    assert "started from" not in cli("info", job.folder / "old")[1]
