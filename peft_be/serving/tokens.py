"""What the exports have in common: the adapters of one base, and the special tokens that they become."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import jinja2
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..adapters.load import load_adapters
from ..files import well_formed
from ..prompting import PromptRenderer
from ..prompting.chat_inputs import jinja_string
from ..prompting.encoding import GuardedTokenizer
from ..prompting.kept_text import with_kept_text
from ..prompting.skeleton import ChatTemplate
from ..tuner import BETokenConfig


# The logit that the output embedding is to give a [BE] token in every context: about e^-100 of the best token's probability
NEVER_LOGIT = -100.0
# As in vllm_resolver: part of a token's name and a folder's name, which may not lead out of another folder
ADAPTER_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
# Brackets around it, and nothing in it that would end a string of a chat template
_TOKEN_NAME = re.compile(r"<[^\s<>\[\]{}'\"\\]+>|\[[^\s<>\[\]{}'\"\\]+\]")


@dataclass
class MergedToken:
    """
    A prompt's [BE] in an exported model.

    Attributes:
        text (`str`): what to write where the prompt stood; the tokenizer reads it as the ids below.
        ids (`list[int]`): the ids of its k rows.
        slot (`str`): `"system"`: the text is the system message, or its beginning; `"prefix"`: it stands in front of the
            user's turn, where no chat message can be, so that it needs a prompt that is put together by hand.
        kept_text (`str`, *optional*): what of the prompt stays text, after the token in the system message.
        system_text (`str` or `None`): the whole system message, `None` for slot `"prefix"`.
    """

    text: str
    ids: list[int]
    slot: str
    kept_text: str | None = field(default=None, kw_only=True)
    system_text: str | None = field(init=False)

    def __post_init__(self) -> None:
        self.system_text = with_kept_text(self.text, self.kept_text) if self.slot == "system" else None

    @property
    def told(self) -> str:
        """What to write, in one line: with kept text, as a JSON string."""
        return self.text if self.kept_text is None else json.dumps(self.system_text, ensure_ascii=False)

    @property
    def place(self) -> str:
        """Where in a chat the text goes, in words."""
        return "as the system message" if self.slot == "system" else "in front of the user's turn"


@dataclass
class AdapterRows:
    """
    The [BE] of several adapters, by their names.

    Attributes:
        rows (`dict[str, torch.Tensor]`): k rows each, of shape (k, d), float32.
        configs (`dict[str, BETokenConfig]`): their configurations.
        token_names (`dict[str, str]`): how their tokens are spelled; `<|be_NAME|>` for those that are not among them.
    """

    rows: dict[str, torch.Tensor]
    configs: dict[str, BETokenConfig]
    token_names: dict[str, str] = field(default_factory=dict)

    def texts(self, name: str) -> list[str]:
        """How the k tokens of an adapter are spelled: several are numbered, as `<|be_pirate_0|>`."""
        text, k = self.token_names.get(name, f"<|be_{name}|>"), len(self.rows[name])
        end = len(text.rstrip("|>]"))
        return [text] if k == 1 else [f"{text[:end]}_{i}{text[end:]}" for i in range(k)]

    @property
    def all_texts(self) -> list[str]:
        return [text for name in self.rows for text in self.texts(name)]

    def check_texts_are_new(self, vocab: Iterable[str]) -> None:
        taken = set(vocab)
        for text in self.all_texts:
            if text in taken:
                raise ValueError(
                    f"There is a token {text} already: give the adapter another token name (--token-name)."
                )
            taken.add(text)

    def tokens(self, ids: list[int]) -> dict[str, MergedToken]:
        """The tokens by adapter, given the ids of `all_texts`."""
        tokens, left = {}, list(ids)
        for name, rows in self.rows.items():
            own, left = left[: len(rows)], left[len(rows) :]
            config = self.configs[name]
            tokens[name] = MergedToken("".join(self.texts(name)), own, config.slot, kept_text=config.kept_text)
        return tokens


def check_adapter_names(
    adapters: dict[str, str | os.PathLike], default: str | None = None, token_names: dict[str, str] | None = None
) -> None:
    """Check that there are adapters, that adapters and tokens can be called so, and that `default` is one of them."""
    for name in adapters:
        if not ADAPTER_NAME.fullmatch(name):
            raise ValueError(
                f"'{name}' cannot be an adapter's name: use letters, digits, '.', '_' and '-', and do not begin with '.'."
            )
    if not adapters:
        raise ValueError("There is no adapter to export.")
    for name, text in (token_names or {}).items():
        if name not in adapters:
            raise ValueError(f"A token is named for '{name}', which is not among the adapters: {', '.join(adapters)}.")
        if not _TOKEN_NAME.fullmatch(text):
            raise ValueError(
                f"'{text}' cannot be a token's name, which must not come up in ordinary text: put it into brackets, such as "
                "<|pirate|> or [PIRATE], without spaces, quotes or braces."
            )
    if default is not None and default not in adapters:
        raise ValueError(f"The default '{default}' is not among the adapters: {', '.join(adapters)}.")


def check_new_folder(output_dir: Path) -> None:
    """Raises a `FileExistsError` if a folder to write an export to is there and not empty."""
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(f"'{output_dir}' exists and is not an empty folder: choose another one.")


def load_rows(
    adapters: dict[str, str | os.PathLike],
    default: str | None = None,
    token_names: dict[str, str] | None = None,
    **loading,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, AdapterRows]:
    """
    The plain base model of the adapters, its tokenizer, and their rows; arguments as in [`export_merged`], those for
    loading as in [`load_adapters`].
    """
    # PEFT allows no dot in a name
    own_names = {name: str(number) for number, name in enumerate(adapters)}
    folders = {own_names[name]: folder for name, folder in adapters.items()}
    peft_model, tokenizer = load_adapters(folders, **loading)
    found = AdapterRows({}, {}, token_names or {})
    for name, directory in adapters.items():
        config = peft_model.peft_config[own_names[name]]
        _check_exportable(config, directory, default == name)
        found.rows[name], found.configs[name] = peft_model.base_model.get_rows(own_names[name]), config
    return peft_model.unload(), tokenizer, found


def _check_exportable(config: BETokenConfig, directory: str | os.PathLike, is_default: bool) -> None:
    if not config.num_be_tokens:
        raise ValueError(f"'{directory}' holds an [AE] row, which is for training only, and no [BE].")
    if is_default and config.slot != "system":
        raise ValueError(
            f"'{directory}' was trained with slot '{config.slot}': only an adapter of slot 'system' can be the default system message."
        )


@torch.no_grad()
def never_row(model: PreTrainedModel, num_sequences: int = 16, length: int = 96) -> torch.Tensor:
    """
    A row of the output embedding whose logit is about -100 in every context, `[d]`, float32.

    It is the least-squares solution over the final hidden states of texts that the model writes itself, sampled without
    limits, and of random tokens, the strangest of contexts. Half of the texts are kept to check it. The states of trained
    models have enough in common for such a row; those of a random model do not, and there is a warning.

    Args:
        model ([`~transformers.PreTrainedModel`]): the causal LM, not wrapped by PEFT.
        num_sequences (`int`, *optional*, defaults to `16`): sequences of each kind.
        length (`int`, *optional*, defaults to `96`): their length, in tokens.
    """
    vocab_size = model.get_output_embeddings().weight.shape[0]
    start = model.config.get_text_config().bos_token_id
    start = start[0] if isinstance(start, list) else start or 0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        begin = torch.full((num_sequences, 1), start, device=model.device)
        written = model.generate(
            begin, attention_mask=torch.ones_like(begin), do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
            min_new_tokens=length, max_new_tokens=length,
        )  # fmt: skip
        noise = torch.randint(vocab_size, written.shape).to(model.device)
    states = [model.get_decoder()(input_ids=ids, use_cache=False)[0].double() for ids in (written, noise)]
    fit, check = (torch.cat([s[half::2].flatten(0, 1) for s in states]) for half in (0, 1))
    covariance = fit.T @ fit / len(fit)
    ridge = 1e-3 * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=fit.dtype, device=fit.device)
    row = torch.linalg.solve(covariance + ridge, NEVER_LOGIT * fit.mean(0))
    highest = (check @ row).max().item()
    if highest > NEVER_LOGIT / 4:
        warnings.warn(
            f"The output row of [BE] scores up to {highest:.0f} in this model, where {NEVER_LOGIT:.0f} was wanted: engines "
            "that do not read `suppress_tokens` of the generation config might write [BE].",
            stacklevel=3,
        )
    return row.float()


def chat_templates(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The chat templates of a tokenizer by their names; a single one is called `default`."""
    templates = tokenizer.chat_template
    return dict(templates) if isinstance(templates, dict) else {"default": templates}


def renders_alike(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Whether a chat template writes what the tokenizer's own does."""
    turns = [
        {"role": "user", "content": " One.\n"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
    ]

    def render(chat, chat_template=None):
        try:
            return tokenizer.apply_chat_template(
                chat, chat_template=chat_template, add_generation_prompt=True, tokenize=False
            )
        except jinja2.TemplateError as error:  # such as: no system messages
            return type(error)

    thinking = [{"role": "assistant", "content": "<think>\nHm.\n</think>\n\nTwo."}]
    chats = [turns, turns[:1], [*turns[:1], *thinking, *turns[2:]]]
    chats += [[{"role": "system", "content": text}, *turns] for text in ("Zero.", "Zero. /no_think")]
    return all(render(chat) == render(chat, template) for chat in chats)


def with_default_system(template: str, text: str) -> str:
    """A chat template that puts `text` in front as the system message where a chat has none."""
    first = "{%- if not messages or messages[0]['role'] not in ('system', 'developer') -%}"
    message = f"{{'role': 'system', 'content': {jinja_string(text)}}}"
    messages = f"{{%- set messages = [{message}] + messages -%}}"
    # White space that the template begins with is its own. Engines drop a newline after a block
    end = "{%- endif %}\n" if template[:1].isspace() else "{%- endif -%}"
    return f"{first}{messages}{end}{template}"


def check_shown(
    tokenizer: PreTrainedTokenizerBase, template: str, tokens: Mapping[str, MergedToken], default: str | None = None
) -> None:
    """
    Check that a chat template shows the tokens, with their kept texts, as system messages.

    Raises:
        `ValueError`: if it changes one, as with `| upper`, or leaves out the one that is to be the default.
    """
    for name, token in tokens.items():
        if token.system_text is None:
            continue
        chat = [{"role": "system", "content": token.system_text}, {"role": "user", "content": "x"}]
        try:
            shown = tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False)
        except jinja2.TemplateError:  # such as: no system messages
            shown = ""
        if token.system_text in shown:
            continue
        if name == default or token.text.strip("<|>[]").lower() in shown.lower():
            raise ValueError(
                f"The chat template does not show {token.told} in a system message as it is written: serve the "
                "adapter with PEFT instead."
            )
        warnings.warn(
            f"The chat template does not show {token.told} as a system message: write it and a blank line in front of "
            "the user's text.",
            UserWarning,
            stacklevel=1,
        )


def check_kept_texts(
    found: AdapterRows,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Mapping[str, MergedToken],
    served: PreTrainedTokenizerBase,
    template: str,
) -> None:
    """
    Check that engines read the kept texts after the tokens as the model did in training.

    Args:
        found ([`AdapterRows`]): the adapters.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the tokenizer of the training.
        tokens (`Mapping[str, MergedToken]`): the tokens by adapter.
        served ([`~transformers.PreTrainedTokenizerBase`]): a tokenizer that reads them as the engine does.
        template (`str`): the chat template of the engine.

    Raises:
        `ValueError`: if one is read as other ids, since it spells an exported token, or a token takes the line break
            after it.
    """
    for name, token in tokens.items():
        if token.kept_text is None:
            continue
        config = found.configs[name]
        renderer = PromptRenderer.for_adapter(config, tokenizer)
        trained = renderer.be("x")
        start = trained.index(renderer.be_token_ids[-1]) + 1
        own = served(token.text, add_special_tokens=False)["input_ids"]
        wanted = own + trained[start : start + len(renderer.kept_ids)]
        chat = [{"role": "system", "content": token.system_text}, {"role": "user", "content": "x"}]
        try:
            ids = served.apply_chat_template(
                chat, chat_template=template, add_generation_prompt=True, return_dict=False
            )
        except jinja2.TemplateError:  # such as: no system messages, of which check_shown warns
            continue
        if not any(ids[i : i + len(wanted)] == wanted for i in range(len(ids))):
            raise ValueError(
                f"Engines would read the kept text of '{name}' as other tokens than in training: serve the adapter with "
                "PEFT instead, or compress the prompt with another kept text."
            )


def strip_special_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """
    A text without the special tokens that a tokenizer reads in it, for engines that read them in what users write.

    [BE] tokens of an exported checkpoint, the tokens that open and close turns, and all other special tokens go. What
    is left is looked through again until there are none: `<|im_<|im_end|>end|>` becomes an empty text. All other text
    stays as it is, except for lone surrogates, which become U+FFFD.

    Args:
        text (`str`):
            What a user writes.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer that knows the [BE] tokens: that of the exported checkpoint. For a GGUF file, export the same adapters
            as a checkpoint, too, with the same token names: the base model's tokenizer would leave [BE] in. That one is right
            for LoRA adapters, whose tokens are its own, and for [`PromptEmbeds.messages`], where users cannot write [BE]. It must
            be a fast one.

    Example:

    ```py
    >>> from peft_be import strip_special_tokens

    >>> strip_special_tokens("Hi <|be_pirate|>there", tokenizer)
    'Hi there'
    ```
    """
    encoder, spellings = _special_tokens(tokenizer, len(tokenizer))
    text = well_formed(text)
    while True:
        shorter = spellings.sub("", text)
        # A tokenizer that normalises its input reads look-alikes, too
        for token in reversed(encoder.tokenize(shorter)):
            if token.guarded:
                shorter = shorter[: token.start] + shorter[token.end :]
        if shorter == text:
            return text
        text = shorter


@lru_cache(maxsize=8)
def _special_tokens(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[GuardedTokenizer, re.Pattern]:
    """Reads a tokenizer's special tokens, and finds their spellings. `size` tells a tokenizer with added tokens apart."""
    encoder = GuardedTokenizer(tokenizer, ())
    if tokenizer.chat_template:
        ChatTemplate(encoder, (), {})  # guards the tokens that open and close turns, too
    spellings = [encoder.added[i].content for i in encoder.guarded if i in encoder.added]
    return encoder, re.compile("|".join(map(re.escape, sorted(spellings, key=len, reverse=True))) or "(?!)")
