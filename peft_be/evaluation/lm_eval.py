"""The model `peft_be` of the lm-evaluation-harness: its tasks with [BE], the full prompt or no prompt before every request.

The harness's releases after 0.4.13 find the model by this package's entry point. Earlier ones find models of other packages
only once they are imported: `peft-be lm-eval` does that and is the harness's own command otherwise; in Python, import this
module.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..adapters.folder import read_config
from ..adapters.hub import find_adapter
from ..adapters.load import load_adapter
from ..models import load_model
from ..prompting import PromptRenderer, check_adapter_prompt, load_prompt
from ..prompting.context import check_length, context_length


try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.models.utils_hf import get_dtype
except ImportError as error:
    raise ImportError(
        f"The lm-evaluation-harness cannot be imported ({error}): pip install 'peft_be[eval]'"
    ) from error


logger = logging.getLogger(__name__)

FORMS = ("be", "full", "no_prompt")
# What HFLM does with these holds for a model that is loaded already, too
HARNESS_ARGUMENTS = {
    "batch_size",
    "logits_cache",
    "max_batch_size",
    "max_length",
    "mixed_precision_dtype",
    "prefix_token_id",
    "softmax_dtype",
    "think_end_token",
}
# The harness passes requests on as text. Between these stand the messages of one as JSON, in which no such character occurs
_START, _END = "\ue010", "\ue011"


@register_model("peft_be")
class PeftBeLM(HFLM):
    """
    A causal LM that reads [BE], or for comparison the full prompt or none, in front of every request of the harness. All
    three go through [`PromptRenderer`], so that the model reads the ids that it was trained on.

    Requests have to be chat turns: the harness needs `--apply_chat_template`. Worked examples and system messages of a task are
    refused, for they belong to the prompt that [BE] stands for: use `--num_fewshot 0`.

    Args:
        pretrained (`str`, *optional*):
            The base model, as in [`load_model`]. `None` is the one that the adapter was trained on.
        adapter (`str`, *optional*):
            The adapter, as in [`load_adapter`]. Forms other than `be` need none, if `pretrained` is given.
        form (`str`, *optional*, defaults to `"be"`):
            `be`, `full` or `no_prompt`.
        prompt (`str`, *optional*):
            File of the full prompt, for `form=full` alone, as in [`load_prompt`].
        dtype (`str`, *optional*):
            For instance `float32`. `None` is the fastest, as in [`load_model`].
        device (`str`, *optional*):
            `None` is a GPU where there is one.
        allow_template_change (`bool`, *optional*, defaults to `False`):
            Accept another chat template than that of the training.
        allow_other_weights (`bool`, *optional*, defaults to `False`):
            Accept other weights of the base model than those of the training.
        allow_other_prompt (`bool`, *optional*, defaults to `False`):
            Accept another prompt than the one that the adapter was trained on.
        kwargs:
            Arguments of the harness's `hf` model that do not concern loading or rendering: `batch_size`, `max_length`,
            `think_end_token` and others.

    Raises:
        `ValueError`: the arguments do not fit together, or one is unknown; `max_length` exceeds the model's context;
            or as in [`load_adapter`]. Later, where no `max_length` is given: a request that does not fit into the
            context.
        `FileNotFoundError`: there is no such adapter, model or prompt.
        `OSError`: the model cannot be loaded.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        adapter: str | None = None,
        form: str = "be",
        prompt: str | None = None,
        dtype: str | None = None,
        device: str | None = None,
        allow_template_change: bool = False,
        allow_other_weights: bool = False,
        allow_other_prompt: bool = False,
        **kwargs,
    ):
        _check_arguments(pretrained, adapter, form, prompt, kwargs)
        text = load_prompt(prompt) if prompt else None
        loading = {"dtype": get_dtype(dtype) if dtype else None, "device": _device(device)}
        directory = find_adapter(adapter) if adapter else None
        if directory:
            loading |= {"allow_template_change": allow_template_change, "allow_other_weights": allow_other_weights}
            model, tokenizer, self._renderer = _load_adapter(
                directory, text, allow_other_prompt, pretrained, **loading
            )
        else:
            model, tokenizer = load_model(str(pretrained), **loading)
            self._renderer = PromptRenderer(tokenizer, text)
        self._render = getattr(self._renderer, form)
        self._stand_in = f"{form}-{_digest_of_stand_in(form, model, text)}"
        if isinstance(model, PeftModel):
            model = model.get_base_model() if form == "be" else model.unload()
        super().__init__(model, backend="causal", tokenizer=tokenizer, **kwargs)
        context = context_length(model)
        if self._max_length and context is not None and self._max_length > context:
            raise ValueError(f"max_length={self._max_length} is more than the model's context of {context} tokens.")
        # What the harness records
        self.pretrained, self.peft = model.name_or_path, directory and str(directory)

    @property
    def tokenizer_name(self) -> str:
        # Part of the key of `--cache_requests`
        return f"{super().tokenizer_name}__peft_be"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """
        Text that stands for the messages, which [`~PeftBeLM.tok_encode`] renders. Without `add_generation_prompt` the last
        message is the start of the answer.

        Raises:
            `ValueError`: there is anything but the user's one turn in front of the answer.
        """
        *turns, start = (
            [*chat_history, {"role": "assistant", "content": ""}] if add_generation_prompt else chat_history
        )
        if [turn["role"] for turn in turns] != ["user"]:
            roles = ", ".join(turn["role"] for turn in turns)
            raise ValueError(
                f"A request has the messages {roles}, but model peft_be puts [BE] or the prompt instead of system "
                "messages and worked examples: use --num_fewshot 0, no --system_instruction, and a task without a description."
            )
        # The stand-in is there for the key of `--use_cache`, which is the request's text
        head = json.dumps({"stand_in": self._stand_in, "messages": turns})
        return f"{_START}{head}{_END}{start['content']}"

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs,
    ) -> list[int]:
        """
        Ids of a request: its messages with the stand-in, and what follows them as text that cannot become a special token.

        Raises:
            `ValueError`: the request has no messages.
        """
        if string.startswith(_START):
            head, _, rest = string[1:].partition(_END)
            ids = self._render(json.loads(head)["messages"])
        elif add_special_tokens is False:
            # An answer without a request: some tasks subtract its log-likelihood
            ids, rest = [], string
        else:
            raise ValueError(
                "A request has no chat messages, and without them there is no place for [BE] or the prompt: add "
                "--apply_chat_template. Tasks of plain text alone (loglikelihood_rolling) cannot be run with model peft_be."
            )
        ids = ids + self._renderer.answer(rest)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and attention mask of requests, padded; as in HFLM, what is too long loses its beginning."""
        rows = [self.tok_encode(string) for string in strings]
        batch = self.tokenizer.pad({"input_ids": rows}, padding_side=padding_side, return_tensors="pt", verbose=False)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if left_truncate_len and ids.shape[1] > left_truncate_len:
            logger.warning(
                f"A request has {ids.shape[1]} tokens, and {left_truncate_len} fit: its beginning is lost, and with it "
                "[BE] or the prompt."
            )
            ids, mask = ids[:, -left_truncate_len:], mask[:, -left_truncate_len:]
        return ids, mask

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, override_bs: int | None = None):
        # The last token of an answer is not read
        self._check_lengths(max((len(context) + len(answer) - 1 for _, context, answer in requests), default=0))
        return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        lengths = [
            len(self.tok_encode(text)) + normalize_gen_kwargs(options, self.max_gen_toks)["max_gen_toks"]
            for text, options in (request.args for request in requests)
        ]
        self._check_lengths(max(lengths, default=0))
        return super().generate_until(requests, disable_tqdm)

    def _check_lengths(self, longest: int) -> None:
        """
        The harness would cut off the beginning, where [BE] or the prompt is. It may where `max_length` asks for it.
        """
        if not self._max_length:
            check_length(self.model, longest, "the longest request and its answer")


def _device(device: str | None) -> str | None:
    """The harness asks for CUDA where nobody asked for anything."""
    return None if not torch.cuda.is_available() and (device or "").startswith("cuda") else device


def _load_adapter(
    directory: Path, prompt: str | list[dict] | None, allow_other_prompt: bool, pretrained: str | None, **loading
) -> tuple[PeftModel, PreTrainedTokenizerBase, PromptRenderer]:
    """An adapter on its base model, and how its requests are written."""
    check_adapter_prompt(read_config(directory), prompt, allow_other_prompt)  # before the model is loaded
    model, tokenizer = load_adapter(directory, pretrained, **loading)
    config = model.peft_config["default"]
    renderer = PromptRenderer.for_adapter(config, tokenizer, prompt, allow_other_prompt=allow_other_prompt)
    return model, tokenizer, renderer


def _digest_of_stand_in(form: str, model: PreTrainedModel | PeftModel, prompt: str | list[dict] | None) -> str:
    """What tells one stand-in from another in the keys of the harness's caches."""
    content = {"full": json.dumps(prompt).encode(), "no_prompt": b""}.get(form)
    if content is None:
        rows = model.base_model.get_rows("default").float().cpu().numpy().tobytes()
        content = rows + json.dumps(model.peft_config["default"].kept_text).encode()
    return hashlib.sha256(content).hexdigest()[:12]


def _check_arguments(pretrained: str | None, adapter: str | None, form: str, prompt: str | None, others: dict) -> None:
    unknown = sorted(set(others) - HARNESS_ARGUMENTS)
    if unknown:
        raise ValueError(
            f"Model peft_be has no argument {unknown[0]!r}: it takes pretrained, adapter, form, prompt, dtype, device, "
            f"allow_template_change, allow_other_weights, allow_other_prompt, {', '.join(sorted(HARNESS_ARGUMENTS))}."
        )
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, not {form!r}.")
    if adapter is None and (form == "be" or pretrained is None):
        raise ValueError(
            "Model peft_be needs adapter=FOLDER; form=full and form=no_prompt also run with pretrained alone."
        )
    if (form == "full") != (prompt is not None):
        raise ValueError("form=full and prompt=FILE belong together: give both or neither.")
