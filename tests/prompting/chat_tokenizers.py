"""Small tokenizers with the chat templates, the special tokens and the pre-tokenisers of well-known model families."""

import importlib.util
import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast


CORPUS = [
    "You are a helpful assistant that answers every question in one short sentence.",
    "The weather in Paris is nice today, but it's going to rain tomorrow, isn't it?",
    "def add(a, b):\n    return a + b  # the sum\n\nprint(add(12, 345))",
    "user system assistant model start of turn end header id im_start im_end begin text reserved special token",
    "Le café est à côté de la gare. Der Bär läuft über die Brücke. Привет, мир! 你好，世界",
    'She said: "I don\'t know what you mean" -- and then, in 1999, she left the house.\n\nHello there!',
    "<b>bold</b> <|x|> [y] {z} </s <s",
] * 4

CHATML = """{% for message in messages %}{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant.<|im_end|>
' }}{% endif %}{{ '<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

# Mistral 7B v0.3: the system text goes in front of the last user's turn.
MISTRAL = """{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '

' %}{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}{{ bos_token }}{% for m in messages %}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- if m['role'] == 'user' %}{{ '[INST] ' + (system if loop.last else '') + m['content'] + '[/INST]' }}
{%- else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"""

# Llama 2: BOS before every user's turn.
LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>
' + messages[0]['content'] + '
<</SYS>>

' %}{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}{% for m in messages %}
{%- if m['role'] == 'user' %}{% set content = (system if loop.first else '') + m['content'] %}
{{- bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""


@dataclass
class Family:
    """How to build a tokenizer, and what a rendering of it must look like."""

    template: str  # the name of a template that TRL ships, or the template itself
    kind: str  # "bytes" (GPT-2, Llama 3, Qwen) or how SentencePiece-like ones add a space: "first", "prepend", "never"
    special: list[str]
    bos: str | None
    eos: str
    be: list[str] = field(default_factory=list)  # the tokens that [BE] may use; ids beyond the vocabulary if empty
    plain: tuple[str, ...] = ()  # added tokens that are not special
    rstrip: bool = False  # whether special tokens swallow white space on their right
    nfc: bool = False
    adds_bos: bool = False
    system_role: bool = True
    prefix_form: str = ""  # `[BE] q` with {be} and {q}
    kwargs: dict = field(default_factory=dict)  # template variables of the reference


FAMILIES = {
    "smollm2": Family(
        CHATML,
        "bytes",
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>", "<filename>"],
        bos="<|im_start|>",
        eos="<|im_end|>",
        be=["<repo_name>", "<reponame>", "<file_sep>", "<filename>"],
        prefix_form="{be}<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n",
    ),
    "qwen2_5": Family(
        "qwen2_5",
        "bytes",
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        bos=None,
        eos="<|im_end|>",
        plain=("<tool_call>", "</tool_call>"),
        nfc=True,
        prefix_form="{be}<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n",
    ),
    "qwen3": Family(
        "qwen3",
        "bytes",
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        bos=None,
        eos="<|im_end|>",
        plain=("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
        nfc=True,
        prefix_form="{be}<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n",
    ),
    "qwen3_instruct_2507": Family(
        "qwen3_instruct_2507",
        "bytes",
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        bos=None,
        eos="<|im_end|>",
        plain=("<tool_call>", "</tool_call>", "<think>", "</think>"),
        nfc=True,
        prefix_form="{be}<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama3": Family(
        "llama3",
        "bytes",
        ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
        + [f"<|reserved_special_token_{i}|>" for i in range(6)],
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        be=[f"<|reserved_special_token_{i}|>" for i in range(4)],
        adds_bos=True,
        prefix_form="<|begin_of_text|>{be}<|start_header_id|>user<|end_header_id|>\n\n{q}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "llama3_2": Family(
        "llama3_2",
        "bytes",
        ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
        + [f"<|reserved_special_token_{i}|>" for i in range(6)],
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        be=[f"<|reserved_special_token_{i}|>" for i in range(4)],
        adds_bos=True,
        prefix_form="<|begin_of_text|>{be}<|start_header_id|>user<|end_header_id|>\n\n{q}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        kwargs={"date_string": "26 Jul 2024"},
    ),
    "deepseekv3": Family(
        "deepseekv3",
        "bytes",
        ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"],
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        plain=("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
        adds_bos=True,
        prefix_form="<｜begin▁of▁sentence｜>{be}<｜User｜>{q}<｜Assistant｜><think>\n",
    ),
    "gemma": Family(
        "gemma",
        "never",
        ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
        bos="<bos>",
        eos="<eos>",
        be=[f"<unused{i}>" for i in range(4)],
        plain=tuple(f"<unused{i}>" for i in range(6)),
        adds_bos=True,
        system_role=False,
        prefix_form="<bos>{be}<start_of_turn>user\n{q}<end_of_turn>\n<start_of_turn>model\n",
    ),
    "gemma3": Family(
        "gemma3",
        "never",
        ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
        bos="<bos>",
        eos="<eos>",
        be=[f"<unused{i}>" for i in range(4)],
        plain=tuple(f"<unused{i}>" for i in range(6)),
        adds_bos=True,
        prefix_form="<bos>{be}<start_of_turn>user\n{q}<end_of_turn>\n<start_of_turn>model\n",
    ),
    "mistral": Family(
        MISTRAL,
        "first",
        ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"] + [f"[control_{i}]" for i in range(6)],
        bos="<s>",
        eos="</s>",
        be=[f"[control_{i}]" for i in range(4)],
        adds_bos=True,
        prefix_form="<s>{be}[INST] {q}[/INST]",
    ),
    "llama2": Family(
        LLAMA2,
        "prepend",
        ["<unk>", "<s>", "</s>"],
        bos="<s>",
        eos="</s>",
        adds_bos=True,
        prefix_form="<s>{be}[INST] {q} [/INST]",
    ),
    "phi3": Family(
        "phi3",
        "prepend",
        ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
        + [f"<|placeholder{i}|>" for i in range(6)],
        bos="<s>",
        eos="<|endoftext|>",
        be=[f"<|placeholder{i}|>" for i in range(4)],
        rstrip=True,
        prefix_form="{be}<|user|>\n{q}<|end|>\n<|assistant|>\n",
    ),
}


@lru_cache
def _trained(byte_level: bool) -> str:
    """The JSON of a BPE model trained on `CORPUS`."""
    if byte_level:
        tokenizer = Tokenizer(BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer = Tokenizer(BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        alphabet = []
    tokenizer.train_from_iterator(CORPUS, BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False))
    return tokenizer.to_str()


def build_tokenizer(name: str, more_special: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """The tokenizer of a family; `more_special` are special tokens added after its vocabulary."""
    family = FAMILIES[name]
    model = json.loads(_trained(family.kind == "bytes"))["model"]
    vocab, merges = model["vocab"], [tuple(merge) for merge in model["merges"]]
    if family.kind == "bytes":
        backend = Tokenizer(BPE(vocab=vocab, merges=merges))
        words = r"'s|'t|'re|'ll|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
        split = pre_tokenizers.Split(Regex(words), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        backend.decoder = decoders.ByteLevel()
        if family.nfc:
            backend.normalizer = normalizers.NFC()
    else:
        # As SentencePiece has it, control tokens and bytes come first.
        pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *vocab]
        vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
        backend = Tokenizer(BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        replace = normalizers.Replace(" ", "▁")
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        if family.kind == "first":
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        elif family.kind == "prepend":
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
        else:
            backend.normalizer = replace
        backend.decoder = decoders.Sequence(steps)
    flags = {"normalized": False, "special": True}
    backend.add_special_tokens(
        [AddedToken(token, rstrip=family.rstrip and token.startswith("<|"), **flags) for token in family.special]
    )
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in family.plain])
    backend.add_special_tokens([AddedToken(token, **flags) for token in more_special])
    if family.adds_bos:
        bos_id = backend.token_to_id(family.bos)
        backend.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, bos_id)]
        )
    names = {"eos_token": family.eos, "pad_token": family.eos}
    if family.bos is not None:
        names["bos_token"] = family.bos
    if "<unk>" in family.special:
        names["unk_token"] = "<unk>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.chat_template = template_source(family.template)
    return tokenizer


def template_source(name: str) -> str:
    if "{" in name:
        return name
    folder = Path(importlib.util.find_spec("trl").submodule_search_locations[0]) / "chat_templates"
    return (folder / f"{name}.jinja").read_text(encoding="utf-8")


def be_ids(name: str, tokenizer: PreTrainedTokenizerFast, count: int) -> list[int]:
    """Ids for [BE]: the family's reserved tokens, or rows of the embedding beyond the vocabulary."""
    family = FAMILIES[name]
    if family.be:
        return [tokenizer.convert_tokens_to_ids(token) for token in family.be[:count]]
    return [len(tokenizer) + 7 + i for i in range(count)]
