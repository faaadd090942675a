"""One question, answered with the full prompt, with [BE] and with no prompt."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Sequence
from pathlib import Path

import torch

from ..adapters.load import load_adapters, read_adapter
from ..evaluation import StreamedAnswer, stream_answer
from ..evaluation.latency import time_requests
from ..losses import OutputHead, divergence
from ..prompting import PromptRenderer, check_adapter_prompt
from ..prompting.context import check_length, check_prompts
from ..teacher import answer_states
from ..tuner import BETokenConfig


class PromptComparison:
    """
    Adapters of one base model, each next to the prompt that it stands for.

    Args:
        directories (`list[str | os.PathLike]`):
            Adapters of one base model, as in [`~peft_be.load_adapter`].
        prompts (`list[str | list[dict]]`, *optional*):
            P of each adapter. `None` leaves out the full prompt, and with it the KL.
        model (`str`, *optional*):
            The base model, as in [`~peft_be.load_model`]. `None` is the one that the first adapter was trained on.
        allow_template_change (`bool`, *optional*, defaults to `False`):
            Accept another chat template than that of the training.
        allow_other_weights (`bool`, *optional*, defaults to `False`):
            Accept other weights of the base model than those of the training.
        allow_other_prompt (`bool`, *optional*, defaults to `False`):
            Accept other prompts than those that the adapters were trained on.
        dtype (`torch.dtype` or `str`, *optional*), device (`str`, *optional*):
            As in [`~peft_be.load_model`].

    Attributes:
        names (`list[str]`): what the adapters are called: their folders' names where these differ, else their paths.
        renderers (`dict[str, PromptRenderer]`): by name.
        forms (`tuple[str, ...]`): the forms that are compared, in the order in which they are answered.

    Raises:
        `ValueError`: not one prompt for each adapter, the same adapter twice, or an adapter without [BE]; otherwise as in
            [`~peft_be.adapters.load.load_adapters`].
    """

    def __init__(
        self,
        directories: Sequence[str | os.PathLike],
        prompts: Sequence[str | list[dict[str, str]]] | None = None,
        model: str | None = None,
        allow_template_change: bool = False,
        allow_other_weights: bool = False,
        allow_other_prompt: bool = False,
        dtype: torch.dtype | str | None = None,
        device: str | None = None,
    ):
        given: Sequence[str | list[dict[str, str]] | None] = prompts or [None] * len(directories)
        if len(given) != len(directories):
            raise ValueError(
                f"There are {len(directories)} adapters and {len(given)} prompts: give the prompt of each adapter, in "
                "the order of the adapters, or none."
            )
        self.names = [Path(directory).absolute().name for directory in directories]
        if len(set(self.names)) < len(self.names):
            self.names = [str(directory) for directory in directories]
        if len(set(self.names)) < len(self.names):
            raise ValueError("An adapter is given twice: name each one once.")
        self.forms = ("full", "be", "no_prompt") if given[0] is not None else ("be", "no_prompt")
        for directory, prompt in zip(directories, given):
            check_adapter_prompt(read_adapter(directory)[1], prompt, allow_other_prompt)
        # PEFT allows no dot in a name
        self._adapters = {name: str(number) for number, name in enumerate(self.names)}
        self.model, self.tokenizer = load_adapters(
            dict(zip(self._adapters.values(), directories)),
            model,
            allow_template_change,
            dtype,
            device,
            allow_other_weights,
        )
        self.renderers = {}
        for name, prompt in zip(self.names, given):
            config = self.config(name)
            if not config.num_be_tokens:
                raise ValueError(f"'{name}' holds an [AE] row, which is for training only, and no [BE].")
            self.renderers[name] = PromptRenderer.for_adapter(
                config, self.tokenizer, prompt, allow_other_prompt=allow_other_prompt
            )
        self._turn = threading.Lock()
        # What the first request costs in addition (memory, kernels, threads) belongs to no prompt
        base, greetings = self.model.get_base_model(), [self.rendered(name, "Hello") for name in self.names]
        check_prompts(base, [ids for rendered in greetings for ids in rendered.values()], new_tokens=1)
        time_requests(base, [greetings[0][self.forms[0]]], new_tokens=1)

    def config(self, name: str) -> BETokenConfig:
        """The configuration of the adapter `name`."""
        return self.model.peft_config[self._adapters[name]]

    def rendered(self, name: str, question: str) -> dict[str, list[int]]:
        """The ids of a question in each form, by form."""
        return {form: getattr(self.renderers[name], form)(question) for form in self.forms}

    def answers(
        self, name: str, question: str, max_new_tokens: int
    ) -> Generator[tuple[dict[str, StreamedAnswer | None], dict[str, float]], None, None]:
        """
        Answer a question in every form, greedily, one form after the other, so that each is timed alone. A second
        request waits until the first one is finished or its generator closed, and yields nothing but empty dicts until
        then.

        Args:
            name (`str`): the adapter.
            question (`str`): the user's turn.
            max_new_tokens (`int`): longest answer, in tokens.

        Yields:
            The answers as far as they are written, by form; a form whose prompt is being read has `None`. In the last yield,
            and only where the full prompt is known, KL(full prompt || form) too, by form: nats a token at temperature 1 over
            the full vocabulary, a mean over the tokens of the full prompt's answer.

        Raises:
            `ValueError`: the question is empty, or does not fit into the model's context.
        """
        if not question.strip():
            raise ValueError("The question is empty: write one.")
        prompts = self.rendered(name, question)
        base = self.model.get_base_model()
        length = max(map(len, prompts.values())) + max_new_tokens
        check_length(base, length, f"the question and an answer of {max_new_tokens} tokens")
        while not self._turn.acquire(timeout=0.2):
            yield {}, {}
        try:
            self.model.set_adapter(self._adapters[name])
            answers: dict[str, StreamedAnswer | None] = {}
            for form, ids in prompts.items():
                answers[form] = None
                yield dict(answers), {}
                for answers[form] in stream_answer(self.model, self.tokenizer, ids, max_new_tokens):
                    yield dict(answers), {}
            if full := answers.get("full"):
                yield answers, self._divergences(prompts, full.ids)
        finally:
            self._turn.release()

    @torch.no_grad()
    def _divergences(self, prompts: dict[str, list[int]], answer: list[int]) -> dict[str, float]:
        base = self.model.get_base_model()
        head = OutputHead(base)
        # One at a time: in a batch with the full prompt, the others would be mostly padding
        states = {form: answer_states(base, [ids], [answer])[0].hidden for form, ids in prompts.items()}
        return {form: divergence(s, states["full"], head).cpu().double().mean().item() for form, s in states.items()}
