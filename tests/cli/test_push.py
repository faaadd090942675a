"""What `peft-be push --dry-run` says, without a network or a token. Real uploads are in tests/hub."""

from ..exports import save_adapter
from .outcomes import fails


def test_files_sizes_and_the_card(cli, tiny_dir, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name in ("one", "two"):
        save_adapter(tiny_dir, tmp_path / "prompts" / name)
    (tmp_path / "prompts" / "one" / "notes.txt").write_text("not for others")
    before = sorted(path.name for path in (tmp_path / "prompts").rglob("*"))
    options = ["--base-model", "org/tiny", "--license", "mit", "--dry-run"]
    code, out, err = cli("push", tmp_path / "prompts" / "one", "me/one", *options)
    assert code == 0, err
    size = (tmp_path / "prompts" / "one" / "adapter_model.safetensors").stat().st_size
    assert "To me/one: 3 files" in out and "README.md" in out and f"{size:,} │" in out
    assert "license: mit" in out and "base_model: org/tiny" in out and "Nothing was uploaded." in out
    assert "notes.txt" not in out and str(tiny_dir) not in out and "Uploaded:" not in out
    code, out, err = cli("push", tmp_path / "prompts", "me/prompts", *options)
    assert code == 0, err
    assert "7 files" in out and "one/adapter_config.json" in out and "two/README.md" in out
    assert sorted(path.name for path in (tmp_path / "prompts").rglob("*")) == before


def test_what_a_push_would_refuse(cli, tiny_dir, tmp_path):
    folder = save_adapter(tiny_dir, tmp_path / "a")
    fails(cli("push", folder, "me/a", "--dry-run"), "--base-model")
    fails(cli("push", tmp_path / "nowhere", "me/a", "--dry-run"), "no finished adapter")
