"""A model with an adapter does what the base model does with the same rows in its embedding table."""

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_be.tuner import BETokenConfig

from .tuner_helpers import VOCAB_SIZE, make_model, with_table_rows


INSIDE = [50, 7]
BEYOND = [VOCAB_SIZE + 3, VOCAB_SIZE]
GENERATION_MODES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 10},
    "several samples": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
    "repetition penalty": {"do_sample": False, "repetition_penalty": 1.5},
    "no repeated bigrams": {"do_sample": False, "no_repeat_ngram_size": 2},
    "static cache": {"do_sample": False, "cache_implementation": "static"},
    "prompt lookup": {"do_sample": False, "prompt_lookup_num_tokens": 3},
    "no cache": {"do_sample": False, "use_cache": False},
}


def make_pair(base_model, ids):
    """The base model with an adapter at `ids`, and a plain model with the rows in its table at `INSIDE`."""
    torch.manual_seed(1)
    model = get_peft_model(base_model, BETokenConfig(task_type="CAUSAL_LM", num_be_tokens=2, be_token_ids=ids)).eval()
    reference = make_model_like(base_model)
    return model, with_table_rows(reference, INSIDE, model.get_rows("default"))


def make_model_like(base_model):
    return make_model({"llama": "llama", "gemma3_text": "gemma3", "qwen2": "qwen2"}[base_model.config.model_type])


def make_batch(ids, padding_side="left"):
    """Two sequences with [BE] in places, the second one padded."""
    first, second = ids
    sequences = [[1, 9, first, second, 12, 13, 14, 12, 13], [1, second, 21, 22, first]]
    length = max(map(len, sequences))
    input_ids, mask = [], []
    for sequence in sequences:
        padding = [0] * (length - len(sequence))
        ones = [1] * len(sequence)
        input_ids.append(padding + sequence if padding_side == "left" else sequence + padding)
        mask.append(padding + ones if padding_side == "left" else ones + padding)
    return {"input_ids": torch.tensor(input_ids), "attention_mask": torch.tensor(mask)}


@pytest.mark.parametrize("ids", [INSIDE, BEYOND], ids=["inside", "beyond"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_logits(base_model, ids, padding_side):
    model, reference = make_pair(base_model, ids)
    with torch.no_grad():
        logits = model(**make_batch(ids, padding_side)).logits
        expected = reference(**make_batch(INSIDE, padding_side)).logits
    assert torch.equal(logits, expected)


def test_ordinary_ids_are_bit_identical_with_the_adapter_active(base_model):
    x = torch.arange(3, VOCAB_SIZE).view(1, -1)
    x = x[:, ~torch.isin(x[0], torch.tensor(INSIDE))]
    with torch.no_grad():
        expected = base_model(input_ids=x).logits
        model = get_peft_model(base_model, BETokenConfig(num_be_tokens=2, be_token_ids=INSIDE))
        assert torch.equal(model(input_ids=x).logits, expected)
        # Logits before the first [BE] too: nothing reaches back.
        with_be = torch.cat([x, torch.tensor([INSIDE])], dim=1)
        assert torch.allclose(model(input_ids=with_be).logits[:, : x.shape[1]], expected, atol=1e-4)


@pytest.mark.parametrize("mode", GENERATION_MODES)
def test_generate(base_model, mode):
    model, reference = make_pair(base_model, INSIDE)
    batch = make_batch(INSIDE)
    if mode == "prompt lookup":  # for one sequence at a time
        batch = {key: value[:1] for key, value in batch.items()}
    kwargs = {**batch, "max_new_tokens": 8, **GENERATION_MODES[mode]}
    outputs = []
    for m in (model, reference):
        torch.manual_seed(0)
        outputs.append(m.generate(**kwargs))
    assert outputs[0].shape[1] > batch["input_ids"].shape[1]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("mode", [mode for mode in GENERATION_MODES if mode != "prompt lookup"])  # refused
def test_generate_with_ids_beyond_the_vocabulary(mode):
    model, reference = make_pair(make_model("llama"), BEYOND)
    beyond, inside = make_batch(BEYOND), make_batch(INSIDE)
    # In the reference, and there only, the ids inside the vocabulary are not ordinary ones.
    kwargs = {"max_new_tokens": 8, "suppress_tokens": INSIDE, **GENERATION_MODES[mode]}
    torch.manual_seed(0)
    output = model.generate(**beyond, **kwargs)
    length = beyond["input_ids"].shape[1]
    assert output.shape[1] > length and (output[:, length:] < VOCAB_SIZE).all()
    if mode != "repetition penalty":  # penalises the ids of the prompt, which differ
        torch.manual_seed(0)
        assert torch.equal(output[:, length:], reference.generate(**inside, **kwargs)[:, length:])


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(base_model, use_reentrant):
    model, _ = make_pair(base_model, BEYOND)
    model.train()
    batch = make_batch(BEYOND)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model.zero_grad()
        model(**batch).logits.logsumexp(-1).sum().backward()
        gradients.append(model.get_input_embeddings().be_token_embedding["default"].weight.grad.clone())
    assert gradients[0].abs().sum() > 0
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-5)


def test_gradient_equals_that_of_the_table_row(base_model):
    model, reference = make_pair(base_model, BEYOND)
    table = reference.get_input_embeddings().weight.requires_grad_(True)
    model(**make_batch(BEYOND)).logits.logsumexp(-1).sum().backward()
    reference(**make_batch(INSIDE)).logits.logsumexp(-1).sum().backward()
    gradient = model.get_input_embeddings().be_token_embedding["default"].weight.grad
    assert torch.allclose(gradient, table.grad[INSIDE], rtol=1e-4, atol=1e-5)


def test_model_compiles_without_graph_breaks(base_model):
    model, _ = make_pair(base_model, BEYOND)
    batch = make_batch(BEYOND)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.allclose(compiled(**batch).logits, model(**batch).logits, atol=1e-5)


def test_bf16_base(base_model):
    base_model = base_model.bfloat16()
    model = get_peft_model(base_model, BETokenConfig(num_be_tokens=2, be_token_ids=BEYOND)).eval()
    assert model.get_rows("default").dtype == torch.float32
    reference = with_table_rows(make_model_like(base_model).bfloat16(), INSIDE, model.get_rows("default"))
    with torch.no_grad():
        logits = model(**make_batch(BEYOND)).logits
        assert logits.dtype == torch.bfloat16
        assert torch.equal(logits, reference(**make_batch(INSIDE)).logits)


def test_small_updates_are_not_lost_beside_a_bf16_base():
    model = get_peft_model(make_model("llama").bfloat16(), BETokenConfig(be_token_ids=[VOCAB_SIZE]))
    before = model.get_rows("default")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    model(input_ids=torch.tensor([[1, VOCAB_SIZE, 3]])).logits.float().logsumexp(-1).sum().backward()
    optimizer.step()
    assert not torch.equal(model.get_rows("default"), before)
    assert torch.equal(model.get_rows("default").bfloat16(), before.bfloat16())


def test_real_model(smollm2_dir):
    """SmolLM2: default ids, an ordinary token's row as [BE], greedy text equal to that of the ordinary token."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    base_model = AutoModelForCausalLM.from_pretrained(smollm2_dir)
    chat = [{"role": "user", "content": "Name three colours."}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    place = prompt.index(tokenizer.encode(" AI", add_special_tokens=False)[0])
    expected = base_model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)

    model = get_peft_model(base_model, BETokenConfig(task_type="CAUSAL_LM", use_ae_token=True))
    config = model.peft_config["default"]
    # Special tokens that neither the template nor the tokenizer uses.
    assert tokenizer.convert_ids_to_tokens(config.token_ids) == ["<repo_name>", "<reponame>"]
    model.set_rows("default", base_model.get_input_embeddings().weight[prompt[place]].unsqueeze(0))
    with_be = prompt[:place] + config.be_token_ids + prompt[place + 1 :]
    output = model.generate(torch.tensor([with_be]), max_new_tokens=12, do_sample=False)

    assert torch.equal(output[0, len(prompt) :], expected[0, len(prompt) :])
    with torch.no_grad():
        assert torch.equal(
            model(input_ids=torch.tensor([with_be])).logits, model(input_ids=torch.tensor([prompt])).logits
        )
