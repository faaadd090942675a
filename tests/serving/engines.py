"""What engines are asked, and what transformers answers."""

import torch


QUESTIONS = ["Who are you?", "Where is the rum?", "What do you see on the horizon, captain?"]
# Tokens of an answer
MAX_TOKENS = 16


def greedy(model, ids):
    ids = torch.tensor([ids])
    written = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=MAX_TOKENS
    )
    return written[0, ids.shape[1] :].tolist()
