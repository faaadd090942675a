"""What the model card of a LoRA adapter says: how each engine loads it."""

from __future__ import annotations

from ..adapters.card import title, training_told
from .lora import LoraToken


# What vLLM takes as --max-lora-rank
RANKS = (8, 16, 32, 64, 128, 256)


def lora_section(place: str, folder: str, base: str, token: LoraToken, has_template: bool) -> str:
    """
    How to use a LoRA adapter.

    Args:
        place (`str`): the repository, and the adapter's folder in it if there are several: `user/repo/pirate`.
        folder (`str`): the LoRA adapter's folder in that, such as `lora/`; empty if it is not in one of its own.
        base (`str`): the base model.
        token (`LoraToken`): its token.
        has_template (`bool`): whether there is a chat template, which puts the token where a chat has no system message.
    """
    user, repo, *own = place.split("/")
    path = "".join(f"{part}/" for part in own) + folder
    name = own[0] if own else repo
    where = "as the system message" if token.slot == "system" else "in front of the user's turn"
    rank = next((rank for rank in RANKS if rank >= len(token.ids)), len(token.ids))
    local = f"{name}/{path}".rstrip("/")
    only = f' --include "{path}*"' if path else ""
    download = f"hf download {user}/{repo}{only} --local-dir {name}"
    template = f" \\\n  --chat-template {local}/chat_template.jinja" if has_template else ""
    call = _CHAT if token.slot == "system" else _TEXT
    return _SECTION.format(
        repo=f"{user}/{repo}",
        subfolder=f', subfolder="{path.rstrip("/")}"' if path else "",
        base=base,
        text=token.text,
        where=where,
        call=call.format(text=token.text),
        download=download,
        local=local,
        name=name,
        rank=rank,
        template=template,
        without=_TEMPLATE if has_template else "",
    )


def lora_body(config, section: str) -> str:
    """The text of the card of a LoRA adapter that is alone in its folder."""
    return _BODY.format(
        title=title(config),
        base=config.base_model_name_or_path,
        section=section,
        training=training_told(config),
    )


_BODY = """# {title}

Input embeddings of `{base}`, trained to stand for a system prompt (Behavior-Equivalent token,
[arXiv 2511.23271](https://arxiv.org/abs/2511.23271)), as a LoRA adapter that PEFT, transformers and vLLM load without the package
`peft_be` that made it.

{section}

## Training

{training}

## Not a secret

The row was made to reproduce what the prompt does, and possibly its text: treat it as if the prompt were published with it.
"""

_SECTION = """## Use as a LoRA adapter

`{text}` {where} stands for the prompt. With PEFT and transformers:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{base}")
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{repo}"{subfolder})
{call}
answer = model.generate(**inputs, max_new_tokens=128)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

With vLLM, next to the unchanged base model:

```
{download}
vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {name}={local}{template}
```

A request names the model `{name}`{without}.
vLLM applies LoRA to the input embedding of Llama, Mistral, Qwen 3 and others, and not of Qwen 2 and Gemma. Whoever writes the token
into a message speaks to the adapter: take it out of what users write."""

_CHAT = """chat = [{{"role": "system", "content": "{text}"}}, {{"role": "user", "content": "A question?"}}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")"""

_TEXT = """# Put the token in front of the user's turn, where no message of a chat can be
inputs = tokenizer("{text}" + "A question, as the chat template writes it", return_tensors="pt", add_special_tokens=False)"""

_TEMPLATE = ", and the template puts the token in front of chats without a system message"
