"""Quantised bases: a row learns on one, is served on another, and stays in float32."""

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file

from peft_be import BEDistillConfig, BEDistillTrainer, evaluate_fidelity, load_model
from peft_be.losses import OutputHead

from ..tiny import save_tiny_llama


PROMPT = "You are a lighthouse keeper. " + "You answer in short sentences, and you never leave the island. " * 4
QUERIES = ["Who are you?", "What do you see?", "Is it cold?", "Tell me about the storm.", "Where is the boat?"]
KINDS = {
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
}


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory, tiny_tokenizer):
    return save_tiny_llama(tmp_path_factory.mktemp("base"), tiny_tokenizer, width=64)


def load(folder, kind=None, **options):
    if kind is None:
        return load_model(str(folder), dtype=torch.float32)
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    return load_model(
        str(folder), dtype=torch.float32, quantization_config=BitsAndBytesConfig(**KINDS[kind], **options)
    )


def trainer_for(model, tokenizer, folder):
    queries = Dataset.from_dict({"query": QUERIES})
    settings = {"max_steps": 4, "eval_steps": 4, "save_steps": 4, "max_answer_length": 6}
    return BEDistillTrainer(
        model,
        BEDistillConfig(str(folder), kd_weight=1.0, **settings),
        PROMPT,
        train_dataset=queries,
        eval_dataset=queries.select([0]),
        processing_class=tokenizer,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_trained_on_a_quantised_base_serves_on_others(base_dir, tmp_path, kind):
    trainer = trainer_for(*load(base_dir, kind), tmp_path / "out")
    rows = trainer.model.base_model.get_rows("default")
    # TRL would have rounded the start rows to bfloat16
    assert rows.dtype == torch.float32 and not torch.equal(rows, rows.bfloat16().float())
    trainer.train()
    trained = trainer.model.base_model.get_rows("default")
    assert trained.dtype == torch.float32 and not torch.equal(trained, rows)
    trainer.save_model(tmp_path / "adapter")
    (saved,) = load_file(tmp_path / "adapter" / "adapter_model.safetensors").values()
    assert torch.equal(saved, trained)
    for other in (kind, None):
        base, tokenizer = load(base_dir, other)
        model = PeftModel.from_pretrained(base, tmp_path / "adapter")
        assert torch.equal(model.base_model.get_rows("default"), trained)
        scores, _ = evaluate_fidelity(model, tokenizer, PROMPT, ["Are you alone?"], max_answer_length=3)
        assert scores["kl"]["no_prompt"] > 0 and scores["kl"]["be"] > 0


def test_the_output_layer_may_be_quantised(tiny_tokenizer, tmp_path):
    base, _ = load(
        save_tiny_llama(tmp_path, tiny_tokenizer, width=64, tied=False), "nf4", llm_int8_skip_modules=["none"]
    )
    assert type(base.lm_head).__name__ == "Linear4bit"
    before = OutputHead(base)
    ids = torch.tensor([[5, 6, 7, 8]])
    out = base(ids, output_hidden_states=True)
    # On CPUs with AVX512-BF16, that forward has packed the weights, and has multiplied in bfloat16
    packed = getattr(base.lm_head.weight.quant_state, "packing_format_for_cpu", False)
    tolerance = {"rtol": 0.0, "atol": 0.02 * out.logits.abs().max().item()} if packed else {}
    after = OutputHead(base)
    torch.testing.assert_close(after.weight, before.weight, rtol=1e-2 if packed else 0.0, atol=0.0)
    torch.testing.assert_close(after.logits(out.hidden_states[-1][0]), out.logits[0], **tolerance)


def test_the_teacher_leaves_a_4_bit_base_its_gradients(base_dir, tmp_path):
    """A forward without gradients packs the weights on CPUs with AVX512-BF16, for a kernel without a backward."""
    base, tokenizer = load(base_dir, "nf4")

    def gradient():
        embeds = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        base(inputs_embeds=embeds).logits.square().sum().backward()
        return embeds.grad

    before = gradient()
    trainer_for(base, tokenizer, tmp_path).evaluate()
    torch.testing.assert_close(gradient(), before, rtol=1e-2, atol=1e-2 * before.abs().max().item())


def test_a_folder_with_quantised_weights_is_a_base_like_any_other(base_dir, tmp_path):
    base, tokenizer = load(base_dir, "nf4")
    base.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, _ = load_model(str(tmp_path))
    assert again.is_loaded_in_4bit
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(again(ids).logits, base(ids).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_row_moves_between_dtypes_unrounded(base_dir, tmp_path, dtype):
    trainer = trainer_for(*load(base_dir), tmp_path / "out")
    trainer.save_model(tmp_path / "adapter")
    rows = trainer.model.base_model.get_rows("default")
    base, _ = load_model(str(base_dir), dtype=dtype)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert torch.equal(model.base_model.get_rows("default"), rows)
    model.save_pretrained(tmp_path / "again")
    (saved,) = load_file(tmp_path / "again" / "adapter_model.safetensors").values()
    assert torch.equal(saved, rows)
