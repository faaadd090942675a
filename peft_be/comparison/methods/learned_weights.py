"""What all methods share that write the prompt into the model's weights."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator

from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict

from ...evaluation.stand_in import StandIn
from ...prompting import PromptRenderer
from .learned_adapter import LearnedAdapter
from .method import Job


class LearnedWeights(LearnedAdapter):
    """
    Prompt distillation into weights: an adapter on all linear layers but the output layer, with which the model answers
    without any prompt as it does with P. The teacher, and the KL of no prompt, are without the adapter.
    """

    @abstractmethod
    def config(self, job: Job) -> PeftConfig:
        """The configuration of a new adapter."""

    def students_turn(self, job: Job) -> Callable[[str | list[dict]], list[int]]:
        return PromptRenderer(job.tokenizer).no_prompt

    @contextlib.contextmanager
    def wrapped(self, job: Job) -> Iterator[PeftModel]:
        model = get_peft_model(job.model, self.config(job))
        try:
            yield model
        finally:  # the next method is given the same model
            model.unload()

    def stand_in(self, model: PeftModel) -> StandIn:
        learned = get_peft_model_state_dict(model, save_embedding_layers=False)
        weights = {name: weight.detach().clone() for name, weight in learned.items()}
        return StandIn(adapter=(model.peft_config["default"], weights))
