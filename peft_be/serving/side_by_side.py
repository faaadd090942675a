"""A conversation with the full prompt, with [BE] and with no prompt."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..adapters.load import load_adapters, read_be_adapter
from ..evaluation import StreamedAnswer, stream_answer
from ..evaluation.latency import time_requests
from ..losses import OutputHead, divergence
from ..prompting import PromptRenderer, check_adapter_prompt
from ..prompting.context import check_prompts, fit_dialogue
from ..teacher import answer_states, stop_ids
from ..tuner import BETokenConfig


FORMS = ("full", "be", "no_prompt")


@dataclass
class Turn:
    """
    A question and the answers to it, as far as they are there.

    Attributes:
        question (`str`): the user's turn.
        step (`str`): what is being done: `waits` for another question, `reads` the prompt of the last form in `answers`, `writes`
            its answer, `compares` the forms, or `done`.
        inputs (`dict[str, int]`): length of what each form reads, in tokens.
        forgotten (`dict[str, int]`): earlier questions that no longer fit into the context, by form.
        answers (`dict[str, StreamedAnswer | None]`): by form, in their order; `None` while the prompt is read.
        cut (`set[str]`): forms whose answer reached the longest length before its end.
        kl (`dict[str, float]`): KL(full prompt || form) after the same conversation, by form: nats a token at temperature 1 over
            the full vocabulary, a mean over the tokens of the full prompt's answer. Empty until `done`, and where the full prompt
            is not known.
    """

    question: str
    step: str = "waits"
    inputs: dict[str, int] = field(default_factory=dict)
    forgotten: dict[str, int] = field(default_factory=dict)
    answers: dict[str, StreamedAnswer | None] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    kl: dict[str, float] = field(default_factory=dict)

    def messages(self, form: str) -> list[dict[str, str]]:
        """The turn as a form remembers it: nothing if it gave no answer."""
        answer = self.answers.get(form)
        if answer is None:
            return []
        return [{"role": "user", "content": self.question}, {"role": "assistant", "content": answer.text}]


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
        self.names = _names(directories, len(given))
        self.forms = FORMS if given[0] is not None else FORMS[1:]
        for directory, prompt in zip(directories, given):
            check_adapter_prompt(read_be_adapter(directory)[1], prompt, allow_other_prompt)
        # PEFT allows no dot in a name
        self._adapters = {name: str(number) for number, name in enumerate(self.names)}
        folders = dict(zip(self._adapters.values(), directories))
        self.model, self.tokenizer = load_adapters(
            folders, model, allow_template_change, dtype, device, allow_other_weights
        )
        self.renderers = {
            name: self._renderer(name, prompt, allow_other_prompt) for name, prompt in zip(self.names, given)
        }
        self._turn = threading.Lock()
        self._warm_up()

    def _renderer(self, name: str, prompt: str | list[dict[str, str]] | None, allow_other: bool) -> PromptRenderer:
        return PromptRenderer.for_adapter(self.config(name), self.tokenizer, prompt, allow_other_prompt=allow_other)

    def _warm_up(self) -> None:
        """Send a first request: what it costs in addition (memory, kernels, threads) belongs to no prompt."""
        base, greetings = self.model.get_base_model(), [self.rendered(name, "Hello") for name in self.names]
        check_prompts(base, [ids for rendered in greetings for ids in rendered.values()], new_tokens=1)
        time_requests(base, [greetings[0][self.forms[0]]], new_tokens=1)

    def config(self, name: str) -> BETokenConfig:
        """The configuration of the adapter `name`."""
        return self.model.peft_config[self._adapters[name]]

    def rendered(self, name: str, query: str | list[dict[str, str]]) -> dict[str, list[int]]:
        """The ids of a query in each form, by form."""
        return {form: getattr(self.renderers[name], form)(query) for form in self.forms}

    def answers(
        self, name: str, question: str, max_new_tokens: int, earlier: Sequence[Turn] = ()
    ) -> Generator[Turn, None, None]:
        """
        Answer a question in every form, greedily, one form after the other, so that each is timed alone. Each form remembers
        its own answers to the earlier questions. A second request waits until the first one is finished or its generator closed.

        Args:
            name (`str`): the adapter.
            question (`str`): the user's turn.
            max_new_tokens (`int`): longest answer, in tokens.
            earlier (`Sequence[Turn]`, *optional*): the turns before it. The oldest are left out if they do not fit.

        Yields:
            [`Turn`]: the same one, whenever it has something new.

        Raises:
            `ValueError`: the question is empty, or does not fit into the model's context.
        """
        if not question.strip():
            raise ValueError("The question is empty: write one.")
        turn, base = Turn(question), self.model.get_base_model()
        prompts, dialogues = {}, {}
        for form in self.forms:
            dialogues[form] = [message for before in earlier for message in before.messages(form)]
            dialogues[form].append({"role": "user", "content": question})
            render = getattr(self.renderers[name], form)
            prompts[form], turn.forgotten[form] = fit_dialogue(base, render, dialogues[form], max_new_tokens)
            turn.inputs[form] = len(prompts[form])
        while not self._turn.acquire(timeout=0.2):
            yield turn
        try:
            self.model.set_adapter(self._adapters[name])
            for form, ids in prompts.items():
                turn.step, turn.answers[form] = "reads", None
                yield turn
                turn.step = "writes"
                for answer in stream_answer(self.model, self.tokenizer, ids, max_new_tokens):
                    turn.answers[form] = answer
                    yield turn
                if answer.ids[-1] not in stop_ids(base):
                    turn.cut.add(form)
            if full := turn.answers.get("full"):
                turn.step = "compares"
                yield turn
                turn.kl = self._divergences(self.rendered(name, dialogues["full"]), full.ids)
            turn.step = "done"
            yield turn
        finally:
            self._turn.release()

    @torch.no_grad()
    def _divergences(self, prompts: dict[str, list[int]], answer: list[int]) -> dict[str, float]:
        base = self.model.get_base_model()
        head = OutputHead(base)
        # One at a time: in a batch with the full prompt, the others would be mostly padding
        states = {form: answer_states(base, [ids], [answer])[0].hidden for form, ids in prompts.items()}
        return {form: divergence(s, states["full"], head).cpu().double().mean().item() for form, s in states.items()}


def _names(directories: Sequence[str | os.PathLike], num_prompts: int) -> list[str]:
    """What the adapters are called: their folders' names if these differ, else their paths."""
    if num_prompts != len(directories):
        raise ValueError(
            f"There are {len(directories)} adapters and {num_prompts} prompts: give the prompt of each adapter, in the order of "
            "the adapters, or none."
        )
    for names in ([Path(directory).absolute().name for directory in directories], list(map(str, directories))):
        if len(set(names)) == len(names):
            return names
    raise ValueError("An adapter is given twice: name each one once.")
