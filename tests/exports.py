"""Adapters, models and templates in folders, for what loads or exports them."""

import torch
from peft import get_peft_model
from transformers import AutoTokenizer

from peft_be import BETokenConfig, load_model
from peft_be.prompting import chat_template_fingerprint, tokenizer_fingerprint


# Of two adapters, a text and messages
PROMPTS = ["You are a lighthouse keeper on an island.", [{"role": "system", "content": "You sell umbrellas."}]]
CHAT = [{"role": "user", "content": "What do you see?"}]
TOOLS = [{"type": "function", "function": {"name": "get_tide", "description": "", "parameters": {}}}]


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


def named_templates(tokenizer, tmp_path):
    """A copy of a tokenizer with several named templates."""
    copy = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    tools = "{% for tool in tools %}{{ tool.function.name }} {% endfor %}" + tokenizer.chat_template
    copy.chat_template = {"default": tokenizer.chat_template, "tool_use": tools}
    return copy


def save_adapter(base, folder, k=1, slot="system", scale=60.0, text=None, kept_text=None):
    """An adapter whose rows are as long as hidden states, as trained ones are; or those of the first k tokens of a text."""
    model, tokenizer = load_model(base)
    table = model.get_input_embeddings()
    config = BETokenConfig.for_tokenizer(tokenizer, table.num_embeddings, k, slot=slot, kept_text=kept_text)
    config.provenance = {
        "tokenizer_sha256": tokenizer_fingerprint(tokenizer),
        "chat_template_sha256": chat_template_fingerprint(tokenizer),
    }
    model = get_peft_model(model, config)
    torch.manual_seed(k)
    rows = scale * torch.randn(k, table.embedding_dim) * table.weight.std()
    if text is not None:
        rows = table.weight[tokenizer(text)["input_ids"][:k]]
    model.base_model.set_rows("default", rows)
    model.save_pretrained(folder)
    return folder
