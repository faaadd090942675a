"""What `peft-be info` says of an adapter, with figures that can be read."""

import json
import re

from huggingface_hub import ModelCard

from ..exports import save_adapter


def test_figures_of_the_training_and_of_held_out_queries(cli, job):
    assert cli(*job.arguments)[0] == 0
    evaluation = ["eval", job.folder / "out", "--prompt", job.folder / "prompt.txt", "--card"]
    evaluation += ["--queries", job.folder / "held_out.txt", "--max-answer-length", 4, "--json", job.folder / "s.json"]
    assert cli(*evaluation)[0] == 0
    code, out, err = cli("info", job.folder / "out", columns=80)
    assert code == 0, err
    assert all(len(line) <= 80 for line in out.splitlines()[1:])  # the first is the folder
    scores = json.loads((job.folder / "s.json").read_text())
    rows = {name.strip(): cells.split(" │ ") for name, cells in re.findall(r"│ (.*?queries) +│ (.*) │", out)}
    assert set(rows) >= {"validation queries", "2 held-out queries"}
    cells = [cell.strip() for cell in rows["2 held-out queries"]]
    # The prompt changes little for a random model, and no query has a gap of its own
    assert scores["gap"]["median"] is None
    kl = [f"{scores['kl'][name]:.4f}" for name in ("be", "no_prompt")]
    assert cells == ["-", f"{scores['kl_gap_closed']:.3f}", *kl]
    # No figure has more digits than it has meaning
    assert not re.search(r"\d\.\d{5,}", re.sub(r"versions.*", "", out))
    for told in ("training queries", "kept from step", "base weights", "prompt tokens"):
        assert told in out


def test_an_adapter_that_nobody_measured(cli, tiny_dir, tmp_path):
    code, out, err = cli("info", save_adapter(tiny_dir, tmp_path / "a", k=2))
    assert code == 0, err
    assert "not measured" in out and re.search(r"\[BE\] rows +│ 2 ", out)


def test_what_others_wrote_into_a_card_is_no_figure(cli, tiny_dir, tmp_path):
    folder = save_adapter(tiny_dir, tmp_path / "a")
    card = ModelCard.load(folder / "README.md")
    results = [
        {"task": {"type": "x"}, "dataset": {"type": "d", "name": "[b]d"}, "metrics": [{"type": "kl", "value": "0!"}]}
    ]
    content = {**card.data.to_dict(), "model-index": [{"name": "n", "results": results}]}
    (folder / "README.md").write_text(f"---\n{json.dumps(content)}\n---\n{card.text}")
    code, out, err = cli("info", folder)
    assert code == 0 and "not measured" in out, err
    for text in ("---\n: [\n---\n", "\0", "---\n[]\n---\n"):
        (folder / "README.md").write_text(text)
        code, out, err = cli("info", folder)
        assert code == 0 and "not measured" in out, err
