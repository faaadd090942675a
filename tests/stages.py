"""A prompt, its queries, and trainers of a few steps."""

import torch
from datasets import Dataset
from peft import get_peft_model

from peft_be import BEDistillConfig, BEDistillTrainer, BETokenConfig


PROMPT = (
    "You are a lighthouse keeper. You answer in short sentences, and you never leave the island, whatever happens."
)
QUERIES = ["Who are you?", "What do you see?", "Is it cold?", "Tell me about the storm.", "Where is the boat?"]
FAST = {"max_steps": 3, "eval_steps": 3, "save_steps": 3, "max_answer_length": 6, "per_device_train_batch_size": 2}


def peft_model(base, k=1, ae=True):
    ids = list(range(3, 3 + k))
    config = BETokenConfig(
        task_type="CAUSAL_LM", num_be_tokens=k, be_token_ids=ids, use_ae_token=ae, ae_token_id=15 if ae else None
    )
    model = get_peft_model(base, config)
    if ae:
        model.base_model.set_ae_row("default", torch.linspace(-0.1, 0.1, 32)[None])
    return model


def trainer(model, tokenizer, tmp_path, **kwargs):
    """A trainer of both stages at every step and with the paper's tau, unless `kwargs` say otherwise."""
    paper = {"kd_weight": 0.9, "temperature": 2.0, "reconstruction_interval": 1}
    queries = Dataset.from_dict({"query": QUERIES})
    args = BEDistillConfig(str(tmp_path / "out"), **{**paper, **FAST, **kwargs})
    return BEDistillTrainer(
        model, args, PROMPT, train_dataset=queries, eval_dataset=queries.select([0]), processing_class=tokenizer
    )
