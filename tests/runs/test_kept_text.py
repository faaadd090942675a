"""A prompt of which a part stays text: the student reads it in training, and whoever loads the adapter afterwards."""

import json

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model

from peft_be import (
    BEDistillConfig,
    BEDistillTrainer,
    BETokenConfig,
    CompressConfig,
    PromptJob,
    PromptRenderer,
    compress_prompt,
    compress_prompts,
    evaluate_fidelity,
    load_adapter,
    load_model,
)
from peft_be.evaluation.stand_in import StandIn
from peft_be.training.many_prompts import ManyPromptsTrainer

from ..stages import FAST, PROMPT, QUERIES
from ..tiny import save_tiny_llama


KEPT = "you never leave the island"
QUERIES = [f"{query} {i}" for i in range(3) for query in QUERIES]


@pytest.fixture
def base(tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_BE_CACHE", str(tmp_path / "cache"))
    return save_tiny_llama(tmp_path / "base", tiny_tokenizer)


def kept_trainer(tokenizer, base, folder, kept_text, kd_weight=1.0):
    model, _ = load_model(base)
    config = BETokenConfig(task_type="CAUSAL_LM", be_token_ids=[3], kept_text=kept_text)
    queries = Dataset.from_dict({"query": QUERIES[:4]})
    return BEDistillTrainer(
        get_peft_model(model, config),
        BEDistillConfig(str(folder), **{**FAST, "kd_weight": kd_weight}),
        PROMPT,
        train_dataset=queries,
        eval_dataset=queries.select([0]),
        processing_class=tokenizer,
    )


def test_the_student_reads_it_and_the_teacher_does_not(base, tiny_tokenizer, tmp_path):
    plain, kept = (kept_trainer(tiny_tokenizer, base, tmp_path / str(i), text) for i, text in enumerate((None, KEPT)))
    ids = tiny_tokenizer("\n" + KEPT)["input_ids"]
    assert kept.renderers["default"].kept_ids == ids
    losses, gradients = [], []
    for trainer in (plain, kept):
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        losses.append(loss.item())
        gradients.append(trainer.model.base_model.rows_grad("default").clone())
    for before, after in zip(plain.train_dataset, kept.train_dataset):
        start = before["input_ids"].index(3) + 1
        expected = before["input_ids"][:start] + ids + before["input_ids"][start:]
        assert after["input_ids"] == expected
        assert after["labels"] == [-100] * len(ids) + before["labels"]
    teachers = [trainer._teaching.hidden for trainer in (plain, kept)]
    assert all(torch.equal(one, other) for one, other in zip(*teachers, strict=True))
    assert losses[0] != losses[1] and not torch.allclose(*gradients) and gradients[1].abs().sum() > 0


def test_the_adapter_has_it(base, tiny_tokenizer, tmp_path):
    keep = ["and you never leave the island, whatever happens.", "You are a lighthouse keeper."]
    kept_text = "You are a lighthouse keeper.\nand you never leave the island, whatever happens."
    result = compress_prompt(PROMPT, QUERIES, tmp_path / "out", model=base, keep=keep, **FAST)
    config = BETokenConfig.from_pretrained(tmp_path / "out")
    assert config.kept_text == kept_text and result.report["settings"]["keep"] == keep
    expected = tiny_tokenizer("\n" + kept_text)["input_ids"]
    assert config.provenance["kept_tokens"] == len(expected)
    assert f"in one learned token and {len(expected)} tokens of its text" in (tmp_path / "out/README.md").read_text()

    model, tokenizer = load_adapter(tmp_path / "out")
    renderer = PromptRenderer.for_adapter(model.peft_config["default"], tokenizer)
    text = tokenizer.decode(renderer.be("Hi"))
    assert f"\n{kept_text}<|im_end|>" in text
    scores, _ = evaluate_fidelity(model, tokenizer, PROMPT, ["Is it warm?"], max_answer_length=4)
    assert (scores["be_tokens"], scores["kept_tokens"]) == (1, len(expected))
    assert scores["compression_ratio"] == scores["prompt_tokens"] / (1 + len(expected))

    # In a comparison, it is a stand-in of so many tokens and bytes
    rows = model.base_model.get_rows("default")
    stand_in = StandIn(rows=rows, kept_text=kept_text)
    assert stand_in.num_tokens(tokenizer) == 1 + len(expected)
    assert stand_in.num_bytes() == 4 * rows.numel() + len(kept_text)
    with stand_in.placed(load_model(base)[0], tokenizer) as render:
        assert render("Hi") == renderer.be("Hi")


def test_it_moves_with_the_adapter(base, tiny_tokenizer, tmp_path):
    """Next to an adapter without, loaded by PEFT, and saved again."""
    compress_prompt(PROMPT, QUERIES, tmp_path / "a", model=base, keep=[KEPT], **FAST)
    compress_prompt(PROMPT, QUERIES, tmp_path / "b", model=base, **FAST)
    model = PeftModel.from_pretrained(load_model(base)[0], tmp_path / "b", adapter_name="b")
    model.load_adapter(tmp_path / "a", "a")
    assert [model.peft_config[name].kept_text for name in "ab"] == [KEPT, None]
    model.save_pretrained(tmp_path / "both")
    assert BETokenConfig.from_pretrained(tmp_path / "both" / "a").kept_text == KEPT
    renderers = {name: PromptRenderer.for_adapter(model.peft_config[name], tiny_tokenizer) for name in "ab"}
    assert len(renderers["a"].be("x")) == len(renderers["b"].be("x")) + len(renderers["a"].kept_ids)


def test_a_run_resumes_with_the_same_kept_text_alone(base, tmp_path):
    settings = {"model": base, **FAST}
    compress_prompt(PROMPT, QUERIES, tmp_path / "out", keep=[KEPT], **settings)
    for keep in (None, ["whatever happens"]):
        with pytest.raises(ValueError, match="another keep"):
            compress_prompt(PROMPT, QUERIES, tmp_path / "out", keep=keep, resume=True, **settings)
    again = compress_prompt(PROMPT, QUERIES, tmp_path / "out", keep=[KEPT], resume=True, **settings)
    assert again.model.peft_config["default"].kept_text == KEPT
    # A run of an earlier version kept nothing
    compress_prompt(PROMPT, QUERIES, tmp_path / "old", **settings)
    report = json.loads((tmp_path / "old" / "training.json").read_text())
    del report["settings"]["keep"]
    (tmp_path / "old" / "training.json").write_text(json.dumps(report))
    compress_prompt(PROMPT, QUERIES, tmp_path / "old", keep=[], resume=True, **settings)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"keep": ["You are a pirate."]}, "does not say 'You are a pirate.', which is to be kept"),
        ({"keep": [" "]}, "is empty"),
        ({"keep": KEPT}, "keep must be a list of texts, got 'you never"),
        ({"keep": [3]}, "keep must be a list of texts"),
        ({"keep": [KEPT], "slot": "prefix"}, "need slot 'system'"),
        ({"keep_tokens": 8, "slot": "prefix"}, "need slot 'system'"),
        ({"keep_tokens": 0}, "keep_tokens must be at least 1"),
        ({"keep_tokens": 8, "kd_weight": 0}, "needs kd_weight above 0"),
    ],
)
def test_bad_values_are_refused_before_anything_is_loaded(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        compress_prompt(PROMPT, QUERIES, tmp_path / "out", model="/no/such/folder", **changes)
    assert not (tmp_path / "out").exists()


def test_a_special_token_in_it_is_refused_before_the_teacher_works(base, tmp_path):
    prompt = f"{PROMPT} End with <|im_end|> always."
    with pytest.raises(ValueError, match="The kept text spells '<|im_end|>'"):
        compress_prompt(prompt, QUERIES, tmp_path / "out", model=base, keep=["End with <|im_end|> always."], **FAST)
    assert not (tmp_path / "cache" / "teacher").exists()


def test_many_prompts_have_none(base, tiny_tokenizer, tmp_path):
    job = PromptJob("a", PROMPT, QUERIES)
    with pytest.raises(ValueError, match="keep is for a prompt that is compressed alone"):
        compress_prompts([job], tmp_path / "out", CompressConfig(keep=[KEPT]), model=base)
    config = BETokenConfig(task_type="CAUSAL_LM", num_be_tokens=2, be_token_ids=[3, 4], kept_text=KEPT)
    model = get_peft_model(load_model(base)[0], config)
    with pytest.raises(ValueError, match="kept_text belongs to one prompt"):
        ManyPromptsTrainer(
            model, BEDistillConfig(str(tmp_path), kd_weight=0.0, use_ae_token=False), {"a": PROMPT, "b": PROMPT},
            processing_class=tiny_tokenizer,
        )  # fmt: skip
