"""TRL's own trainers with a BE_TOKEN model, as with any other PEFT model; docs/training.md has how ours differ."""

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from trl import DistillationConfig, DistillationTrainer, SFTConfig, SFTTrainer

from peft_be import BETokenConfig, PromptRenderer, load_adapter

from ..stages import PROMPT, QUERIES
from ..tiny import save_tiny_llama


# TRL writes the text of messages into ids, so [BE] needs an id that a text can have: a reserved token's
TOKEN = "<repo_name>"
ARGS = {
    "max_steps": 4,
    "per_device_train_batch_size": 3,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "bf16": False,
    "weight_decay": 0.0,
    "lr_scheduler_type": "constant",
    "disable_tqdm": True,
}


@pytest.fixture
def base(tmp_path, tiny_tokenizer):
    return save_tiny_llama(tmp_path / "base", tiny_tokenizer)


@pytest.fixture
def model(base, tiny_tokenizer):
    config = BETokenConfig(task_type="CAUSAL_LM", be_token_ids=[tiny_tokenizer.convert_tokens_to_ids(TOKEN)])
    return get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)


def chat(query):
    return [{"role": "system", "content": TOKEN}, {"role": "user", "content": query}]


def moves_the_row_alone(run, base, folder):
    """Train, save and load again; returns the losses."""
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.train()
    changed = [name for name, p in run.model.named_parameters() if not torch.equal(p, before[name])]
    assert changed == ["base_model.model.model.embed_tokens.be_token_embedding.default.weight"]
    run.save_model(folder)
    assert (folder / "adapter_model.safetensors").stat().st_size < 1000  # one row of 32 numbers
    rows = run.model.base_model.get_rows("default")
    for loaded in (
        load_adapter(folder, base)[0],
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder),
    ):
        assert torch.equal(loaded.base_model.get_rows("default"), rows)
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def test_sft_trainer(model, base, tiny_tokenizer, tmp_path):
    answer = [{"role": "assistant", "content": "I see the sea, and a ship on it."}]
    data = Dataset.from_list([{"prompt": chat(query), "completion": answer} for query in QUERIES])
    args = SFTConfig(str(tmp_path / "run"), **ARGS, learning_rate=0.3)
    run = SFTTrainer(model, args, train_dataset=data, processing_class=tiny_tokenizer)
    # What our renderer would have the model read
    ids = run.train_dataset[0]["input_ids"]
    own = PromptRenderer.for_adapter(model.peft_config["default"], tiny_tokenizer).be(QUERIES[0])
    assert ids[: len(own)] == own
    losses = moves_the_row_alone(run, base, tmp_path / "out")
    assert losses[-1] < losses[0]


def test_distillation_trainer(model, base, tiny_tokenizer, tmp_path):
    be_id = model.peft_config["default"].be_token_ids[0]
    prompt_ids = torch.tensor(tiny_tokenizer(PROMPT)["input_ids"])
    teacher, read = AutoModelForCausalLM.from_pretrained(base), []

    def read_the_prompt(_, args, kwargs):
        # The trainer gives the teacher the student's ids. Each row has one [BE], so all grow alike, and the trainer takes the
        # hidden states from the end
        rows = []
        for ids, mask in zip(kwargs["input_ids"], kwargs["attention_mask"]):
            at = (ids == be_id).nonzero().item()
            rows.append(
                (
                    torch.cat([ids[:at], prompt_ids, ids[at + 1 :]]),
                    torch.cat([mask[:at], torch.ones_like(prompt_ids), mask[at + 1 :]]),
                )
            )
        ids, mask = map(torch.stack, zip(*rows))
        read.extend(ids.tolist())
        return args, {**kwargs, "input_ids": ids, "attention_mask": mask}

    teacher.base_model.register_forward_pre_hook(read_the_prompt, with_kwargs=True)
    data = Dataset.from_list([{"prompt": chat(query)} for query in QUERIES])
    # beta=0 is KL(teacher || student), as in Eq. 3
    args = DistillationConfig(
        str(tmp_path / "run"), **{**ARGS, "max_steps": 12}, learning_rate=0.3, beta=0.0, max_completion_length=8
    )
    run = DistillationTrainer(model, teacher, args, train_dataset=data, processing_class=tiny_tokenizer)
    weights = [p.detach().clone() for p in teacher.parameters()]
    losses = moves_the_row_alone(run, base, tmp_path / "out")
    assert sum(losses[-3:]) < sum(losses[:3])
    assert all(torch.equal(*pair) for pair in zip(teacher.parameters(), weights))
    full = [PromptRenderer(tiny_tokenizer, PROMPT).full(query) for query in QUERIES]
    for ids in read:
        ids = ids[next(i for i, token in enumerate(ids) if token != tiny_tokenizer.pad_token_id) :]
        assert any(ids[: len(own)] == own for own in full)
