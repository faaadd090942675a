"""The model card of an adapter."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from .tuner import BETokenConfig


def write_card(directory: Path, config: BETokenConfig, report: dict) -> None:
    """
    Write `README.md`, which on the Hub is the adapter's page.

    Args:
        directory (`Path`): the adapter's folder.
        config ([`BETokenConfig`]): its configuration, with provenance.
        report (`dict`): what was done, as in `training.json`.
    """
    data = ModelCardData(
        base_model=config.base_model_name_or_path,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["peft_be", "behavior-equivalent-token", "prompt-compression"],
    )
    if config.num_be_tokens:
        body = _BE_BODY.format(
            rows="One learned token" if config.num_be_tokens == 1 else f"{config.num_be_tokens} learned tokens",
            tokens=config.provenance["prompt_tokens"],
            base=config.base_model_name_or_path,
            ids=config.be_token_ids,
            slot=config.slot,
            stages=", then ".join(config.provenance["stages"]),
            steps=report["steps"],
            train=report["num_queries"]["train"],
            kl="" if "kl" not in report["best"] else f" Best validation KL: {report['best']['kl']:.4f} nats a token.",
        )
    else:
        body = _AE_BODY.format(base=config.base_model_name_or_path, steps=report["steps"])
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}").save(Path(directory) / "README.md")


_BE_BODY = """# A system prompt of {tokens} tokens in {rows}

{rows} of `{base}`, trained with [PEFT](https://github.com/huggingface/peft) and `peft_be` to stand for a system prompt of
{tokens} tokens (Behavior-Equivalent token, [arXiv 2511.23271](https://arxiv.org/abs/2511.23271)).

## Use

```python
import peft_be  # registers BE_TOKEN with PEFT: without it, PEFT raises KeyError: 'BE_TOKEN'
from peft import PeftModel

model, tokenizer = peft_be.load_model("{base}")
model = PeftModel.from_pretrained(model, "this-repository")
renderer = peft_be.PromptRenderer.for_adapter(model.peft_config["default"], tokenizer)
```

`renderer.be("a question")` gives the input ids, with [BE] (ids {ids}, slot `{slot}`) in place of the prompt.

## Training

{stages}; {steps} steps on {train} queries.{kl}

## Not a secret

The row was made to reproduce what the prompt does, and possibly its text: treat it as if the prompt were published with it.
"""

_AE_BODY = """# The [AE] row of `{base}`

One learned token that makes `{base}` write the preceding text again: stage 0 of the Behavior-Equivalent token
([arXiv 2511.23271](https://arxiv.org/abs/2511.23271)), trained once for the backbone with `peft_be`, {steps} steps. It is
needed to train [BE] tokens with reconstruction, and not for inference:

```
peft-be compress --ae this-folder ...
```
"""
