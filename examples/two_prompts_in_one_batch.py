"""Two adapters on one model: each row of a batch answers under its own prompt.

python examples/two_prompts_in_one_batch.py ADAPTER ANOTHER_ADAPTER
"""

import sys

import torch
from peft import PeftModel

import peft_be


model, tokenizer = peft_be.load_model("smollm2")
model = PeftModel.from_pretrained(model, sys.argv[1], adapter_name="first")
model.load_adapter(sys.argv[2], adapter_name="second")

names = ["first", "second", "first", "second"]
questions = ["Who are you?", "Who are you?", "What do you like?", "What do you like?"]
renderers = {n: peft_be.PromptRenderer.for_adapter(model.peft_config[n], tokenizer) for n in set(names)}
rows = [renderers[name].be(question) for name, question in zip(names, questions)]
width = max(map(len, rows))
pad = tokenizer.pad_token_id
ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)
mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
# Each adapter has token ids of its own: without its name here, a prompt that was made for another one is an error
out = model.generate(input_ids=ids, attention_mask=mask, adapter_names=names, max_new_tokens=32, do_sample=False)
for name, question, answer in zip(names, questions, out[:, width:]):
    print(f"[{name}] {question} -> {tokenizer.decode(answer, skip_special_tokens=True)}")
