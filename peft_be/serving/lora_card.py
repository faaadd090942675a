"""What the model card of a LoRA adapter says: how each engine loads it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from ..adapters.card import NOT_SECRET, title, training_summary
from ..adapters.folder import CONFIG_FILE
from ..files import read_json
from .lora import TEMPLATE_FILE, LoraToken


# What vLLM 0.32 takes as --max-lora-rank
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def lora_section(repo_id: str, name: str, folder: str, base: str, token: LoraToken, exported: Path) -> str:
    """
    How to use a LoRA adapter.

    Args:
        repo_id (`str`): the repository.
        name (`str`): the adapter's folder in it if there are several, else empty.
        folder (`str`): the LoRA adapter's folder in that, such as `lora/`; empty if it is not in one of its own.
        base (`str`): the base model.
        token (`LoraToken`): its token.
        exported (`Path`): the LoRA adapter's files, with or without a chat template.
    """
    path = (f"{name}/" if name else "") + folder
    own = name or repo_id.rpartition("/")[2]
    # A name for requests and a folder, without what a shell or vLLM would read otherwise
    served = re.sub(r"[^\w.-]", "-", own)
    local = f"{served}/{path}".rstrip("/")
    include = f" --include {shlex.quote(f'{path}*')}" if path else ""
    has_template = (exported / TEMPLATE_FILE).is_file()
    template_option = f" \\\n  --chat-template {shlex.quote(f'{local}/{TEMPLATE_FILE}')}" if has_template else ""
    targets = read_json(exported / CONFIG_FILE, "adapter configuration", dict)["target_modules"]
    if token.system_text is None:
        call = _TEXT.format(text=token.text)
    else:
        call = _CHAT.format(content=json.dumps(token.system_text, ensure_ascii=False))
    return _SECTION.format(
        repo=repo_id,
        subfolder=f', subfolder="{path.rstrip("/")}"' if path else "",
        base=base,
        text=token.text,
        kept=", followed by a part of the prompt," if token.kept_text else "",
        place=token.place,
        call=call,
        download=f"hf download {repo_id}{include} --local-dir {served}",
        modules=shlex.quote(f"{served}={local}"),
        name=served,
        rank=next((rank for rank in RANKS if rank >= len(token.ids)), len(token.ids)),
        targets=" ".join(targets),
        template_option=template_option,
        template_note=_TEMPLATE_NOTE if has_template else "",
    )


def lora_body(config, section: str) -> str:
    """The text of the card of a LoRA adapter that is alone in its folder."""
    return _BODY.format(
        title=title(config),
        base=config.base_model_name_or_path,
        section=section,
        training=training_summary(config),
        not_secret=NOT_SECRET,
    )


_BODY = """# {title}

Input embeddings of `{base}`, trained to stand for a system prompt (Behavior-Equivalent token,
[arXiv 2511.23271](https://arxiv.org/abs/2511.23271)), as a LoRA adapter that PEFT, transformers and vLLM load without the package
`peft_be` that made it.

{section}

## Training

{training}

{not_secret}"""

_SECTION = """## Use as a LoRA adapter

`{text}` {place}{kept} stands for the prompt. With PEFT and transformers:

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
vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-target-modules {targets} \\
  --lora-modules {modules}{template_option}
```

A request names the model `{name}`{template_note}.
vLLM 0.32 applies LoRA to the input embedding of Llama, Qwen 3, Phi-3 and others. Mistral and Qwen 2 need `--model-impl transformers`.
Users can write the token too: remove it from their messages."""

_CHAT = """chat = [{{"role": "system", "content": {content}}}, {{"role": "user", "content": "A question?"}}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")"""

_TEXT = """# Put the token in front of the user's turn, where no message of a chat can be
inputs = tokenizer("{text}" + "A question, as the chat template writes it", return_tensors="pt", add_special_tokens=False)"""

_TEMPLATE_NOTE = ", and the template puts the system message in front of chats that have none"
