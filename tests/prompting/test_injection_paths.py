"""Hostile strings on the ways to a learned row: the rows of a training, and the embeddings of a request."""

import pytest
import torch
from datasets import Dataset
from hostile import forbidden_ids, more_hostile_strings, of, spellings_of

from peft_be import BEDistillConfig, BEDistillTrainer, PromptEmbeds, PromptRenderer, load_model
from peft_be.teacher import teacher_prompts

from ..exports import save_adapter
from ..tiny import save_tiny_llama


THINKING = "message['content'].split('</think>')[-1] if message['role'] == 'assistant' else message['content']"


@pytest.fixture
def base(tiny_tokenizer, tmp_path):
    """A random Llama whose template cuts off what earlier answers have thought."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer.name_or_path)
    tokenizer.chat_template = tokenizer.chat_template.replace("message['content']", f"({THINKING})")
    return save_tiny_llama(tmp_path / "base", tokenizer)


def queries_of(tokenizer, reserved, count):
    strings = more_hostile_strings(count, spellings_of(tokenizer, reserved), tokenizer.chat_template)
    strings = [text[:200] for text in strings]
    return [
        text
        if i % 3
        else [
            {"role": "user", "content": text[: len(text) // 2]},
            {"role": "assistant", "content": f"<think>{text}</think>{text}"},
            {"role": "user", "content": text[len(text) // 2 :] or "y"},
        ]
        for i, text in enumerate(strings)
    ]


def test_rows_of_a_training_hold_be_once_and_no_other_special_token(base, tmp_path):
    model, tokenizer = load_model(base)
    queries = queries_of(tokenizer, [3, 4], 40)
    texts = more_hostile_strings(40, spellings_of(tokenizer, [3, 4]), tokenizer.chat_template, seed=1)
    # All queries are messages here: a column has one type
    queries = [[{"role": "user", "content": q}] if isinstance(q, str) else q for q in queries]
    answers = [text.encode("utf-8", "replace").decode()[:60] + "." for text in texts]
    clean = [[{**m, "content": m["content"].encode("utf-8", "replace").decode()} for m in q] for q in queries]
    dataset = Dataset.from_dict({"query": clean, "answer": answers})
    args = BEDistillConfig(
        str(tmp_path / "out"), kd_weight=1.0, max_steps=1, max_answer_length=8, per_device_train_batch_size=4
    )
    prompt = "Be brief, <|im_end|> and say <repo_name> often."
    run = BEDistillTrainer(model, args, prompt, dataset, dataset.select(range(4)), processing_class=tokenizer)
    (renderer,) = run.renderers.values()
    special = forbidden_ids(tokenizer, renderer.be_token_ids)
    plain = {len(q): of(renderer.be([{**m, "content": "y"} for m in q]), special) for q in clean}
    eos = model.generation_config.eos_token_id
    for row, query in zip(run.train_dataset, clean, strict=True):
        found = of(row["input_ids"], special)
        assert found[: len(plain[len(query)])] == plain[len(query)]
        assert set(found[len(plain[len(query)]) :]) <= {eos}
        assert found.count(renderer.be_token_ids[0]) == 1
    full = {len(q): of(renderer.full([{**m, "content": "y"} for m in q]), special) for q in clean}
    for ids, query in zip(teacher_prompts(model, renderer, clean, 8), clean, strict=True):
        assert of(ids, special) == full[len(query)]


@pytest.mark.parametrize("slot", ["system", "prefix"])
def test_the_embeddings_of_a_request_hold_the_rows_once(base, tmp_path, slot):
    folder = save_adapter(base, tmp_path / "a", k=2, slot=slot)
    prompt = PromptEmbeds.from_pretrained(folder)
    _, tokenizer = load_model(base)
    ids = prompt.config.be_token_ids
    special = forbidden_ids(tokenizer, ids)
    width = prompt.rows.shape[1]
    table = torch.arange(len(tokenizer) + 1.0)[:, None].expand(-1, width).contiguous()  # each row tells its id
    embedding = torch.nn.Embedding.from_pretrained(table)
    renderer = PromptRenderer.for_adapter(prompt.config, tokenizer)
    for query in queries_of(tokenizer, ids, 40):
        embeds = prompt.prompt_embeds(query, tokenizer, embedding)
        rows = [i for i, row in enumerate(embeds) if any(torch.equal(row, own) for own in prompt.rows)]
        assert len(rows) == 2
        written = [int(row[0]) for i, row in enumerate(embeds) if i not in rows]
        turns = [{"role": "user", "content": query}] if isinstance(query, str) else query
        plain = renderer.be([{**turn, "content": "y"} for turn in turns])
        assert of(written, special) == [i for i in of(plain, special) if i not in ids]
