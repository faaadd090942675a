"""What engines are asked, and what transformers answers."""

import torch


QUESTIONS = ["Who are you?", "Where is the rum?", "What do you see on the horizon, captain?"]
# Tokens of an answer
MAX_TOKENS = 16
# The first eight tokens of each change what SmolLM2 answers
TEXTS = {
    "pirate": "You are a pirate captain, and every answer begins with Arr",
    "french": "Réponds toujours en français, s'il vous plaît",
    "doctor": "You are a doctor in a hospital, ask for symptoms",
    "cats": "Talk about nothing but cats and what they eat",
    "numbers": "One two three four five six seven eight nine",
    "poem": "Write a short poem about the moon and the stars",
}


def greedy(model, ids):
    ids = torch.tensor([ids])
    written = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=MAX_TOKENS
    )
    return written[0, ids.shape[1] :].tolist()
