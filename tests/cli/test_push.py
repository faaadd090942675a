"""What `peft-be push --dry-run` says, without a network or a token. Real uploads are in tests/hub."""

import pytest

from peft_be import BETokenConfig, load_model
from peft_be.adapters.base_weights import weights_fingerprint
from peft_be.serving.lora_hub import _staged_lora, plan_lora_push

from ..exports import save_adapter
from ..tiny import tiny_llama
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


def test_lora_adapters_alone_and_next_to_native_ones(cli, tiny_dir, tmp_path):
    folder = save_adapter(tiny_dir, tmp_path / "prompts" / "one")
    options = ["--base-model", "org/tiny", "--format", "lora", "--dry-run"]
    code, out, err = cli("push", folder, "me/one", *options)
    assert code == 0, err
    assert "To me/one: 5 files" in out and "be_token.json" in out and "lora/" not in out and "- lora" in out
    assert str(tiny_dir) not in out
    code, out, err = cli("push", tmp_path / "prompts", "me/prompts", *options, "--format", "native")
    assert code == 0, err
    assert "8 files" in out and "one/lora/adapter_config.json" in out and "one/adapter_config.json" in out


def test_what_a_push_of_lora_would_refuse(cli, tiny_dir, tmp_path):
    folder = save_adapter(tiny_dir, tmp_path / "a", k=15)
    options = ["--base-model", "org/tiny", "--dry-run"]
    fails(cli("push", folder, "me/a", *options, "--format", "lora"), "need 15 reserved tokens")
    for option in (["--model", "m"], ["--dtype", "bfloat16"], ["--device", "cpu"], ["--allow-other-weights"]):
        fails(cli("push", folder, "me/a", *options, *option), f"{option[0]} is for --format lora")
    fails(cli("push", folder, "me/a", "--format", "lora", "--dry-run"), "--base-model")


def test_how_the_base_of_a_lora_adapter_is_loaded(cli, tiny_dir, tiny_tokenizer, tmp_path, capsys):
    folder = save_adapter(tiny_dir, tmp_path / "a")
    config = BETokenConfig.from_pretrained(folder)
    config.provenance["base_weights"] = weights_fingerprint(load_model(tiny_dir)[0])
    config.save_pretrained(folder)
    model = tiny_llama(tiny_tokenizer)
    model.model.layers[1].mlp.down_proj.weight.data *= 1.02
    model.save_pretrained(tmp_path / "tuned")
    tiny_tokenizer.save_pretrained(tmp_path / "tuned")
    capsys.readouterr()
    push = ["push", folder, "me/a", "--base-model", "org/tiny", "--format", "lora", "--dry-run"]
    fails(cli(*push, "--device", "nowhere"), "device 'nowhere' cannot be used")
    fails(cli(*push, "--dtype", "float7"), "no dtype 'float7'")
    fails(cli(*push, "--model", tmp_path / "tuned"), "was trained on other weights", "--allow-other-weights")
    code, out, err = cli(*push, "--model", tmp_path / "tuned", "--allow-other-weights", "--device", "cpu")
    assert code == 0 and "Nothing was uploaded." in out, err


def test_a_card_says_where_a_token_of_slot_prefix_goes(tiny_dir, tmp_path):
    folder = save_adapter(tiny_dir, tmp_path / "a", slot="prefix")
    plan = plan_lora_push(folder, "me/a", base_model="org/tiny")
    assert "in front of the user's turn stands for the prompt" in plan.card and "chat_template" not in plan.card
    assert "chat_template.jinja" not in plan.files


def test_a_repository_named_without_its_user(tiny_dir, tmp_path):
    for name in ("one", "two"):
        save_adapter(tiny_dir, tmp_path / "prompts" / name)
    plan = plan_lora_push(tmp_path / "prompts" / "one", "my-repo", base_model="org/tiny")
    assert '"my-repo")' in plan.card and "hf download my-repo --local-dir my-repo\n" in plan.card
    assert "--lora-modules my-repo=my-repo " in plan.card
    with _staged_lora(tmp_path / "prompts", "my-repo", True, "org/tiny", None) as staged:
        card = (staged.folder / "two" / "README.md").read_text()
    assert '"my-repo", subfolder="two/lora")' in card and "--lora-modules two=two/two/lora " in card
    assert "hf download my-repo --include 'two/lora/*' --local-dir two\n" in card


def test_a_folder_may_have_any_name(cli, tiny_dir, tmp_path):
    folder = save_adapter(tiny_dir, tmp_path / "prompts" / "my prompt")
    options = ["--base-model", "org/tiny", "--format", "lora", "--dry-run"]
    code, out, err = cli("push", folder, "me/one", *options)
    assert code == 0 and "To me/one: 5 files" in out, err
    code, out, err = cli("push", folder.parent, "me/prompts", *options)
    assert code == 0 and "my prompt/be_token.json" in out, err
    with _staged_lora(folder.parent, "me/prompts", False, "org/tiny", None) as staged:
        card = (staged.folder / "my prompt" / "README.md").read_text()
    assert 'subfolder="my prompt")' in card
    assert "hf download me/prompts --include 'my prompt/*' --local-dir my-prompt\n" in card
    assert "--lora-modules 'my-prompt=my-prompt/my prompt' " in card


@pytest.mark.parametrize("k, rank", [(1, 1), (2, 8), (9, 16)])
def test_a_card_says_how_vllm_serves_the_adapter(tiny_dir, tmp_path, k, rank):
    card = plan_lora_push(save_adapter(tiny_dir, tmp_path / "a", k), "me/a", base_model="org/tiny").card
    assert f"--enable-lora --max-lora-rank {rank} --lora-target-modules embed_tokens \\\n" in card
    assert "Mistral and Qwen 2 need `--model-impl transformers`" in card


@pytest.mark.parametrize("native", [False, True])
def test_a_card_that_was_edited_keeps_its_text(tiny_dir, tmp_path, native):
    folder = save_adapter(tiny_dir, tmp_path / "a")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# My keeper\n\nMine.\n")
    plan = plan_lora_push(folder, "me/a", native=native, base_model="org/tiny")
    assert "# My keeper\n\nMine.\n\n## Use as a LoRA adapter" in plan.card and "license: mit" in plan.card
