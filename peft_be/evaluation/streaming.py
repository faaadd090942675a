"""An answer to one request, token by token, with what it cost."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass

import torch
from peft import PeftModel
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from ..checks import COUNT, NOT_NEGATIVE, check_number
from ..prompting.context import check_length
from ..tuner.inputs import any_input
from .latency import cache_bytes


@dataclass(frozen=True)
class StreamedAnswer:
    """
    An answer as far as it is written.

    Attributes:
        input_tokens (`int`): length of the rendered prompt.
        ids (`list[int]`): the answer's tokens, with the end-of-turn token if the answer reached it.
        text (`str`): the tokens as text, without special tokens and without a character that is not complete yet.
        ttft_ms (`float`): from the rendered prompt to the first token, in milliseconds.
        kv_bytes (`int`): keys and values of the rendered prompt.
    """

    input_tokens: int
    ids: list[int]
    text: str
    ttft_ms: float
    kv_bytes: int


def stream_answer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    max_new_tokens: int,
    temperature: float = 0.0,
) -> Generator[StreamedAnswer, None, None]:
    """
    Answer one rendered prompt with the model's own generation settings, and yield the answer whenever it has a new token.

    The model writes in a thread of its own. Closing the generator stops it after the token that it is at; an error of
    the model is raised here.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): the causal LM.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): its tokenizer.
        ids (`list[int]`): a rendered prompt.
        max_new_tokens (`int`): longest answer, in tokens.
        temperature (`float`, *optional*, defaults to `0.0`): `0.0` is greedy decoding.

    Yields:
        [`StreamedAnswer`]

    Raises:
        `ValueError`: the prompt and its answer are longer than the model's context, or a setting is out of range.
    """
    check_number("max_new_tokens", max_new_tokens, COUNT, whole=True)
    check_number("temperature", temperature, NOT_NEGATIVE)
    check_length(model, len(ids) + max_new_tokens, f"an answer of {max_new_tokens} tokens")
    cache = DynamicCache(config=model.config)
    steps = _Steps(cache)
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    inputs = torch.tensor([ids], device=model.device)

    def generate():
        try:
            with any_input(model):
                model.generate(
                    input_ids=inputs,
                    attention_mask=torch.ones_like(inputs),
                    past_key_values=cache,
                    max_new_tokens=max_new_tokens,
                    pad_token_id=tokenizer.pad_token_id or 0,
                    streamer=steps,
                    stopping_criteria=[steps.stopped],
                    **sampling,
                )
        except Exception as error:
            steps.queue.put(error)
        else:
            steps.queue.put(None)

    thread = threading.Thread(target=generate)
    start = time.perf_counter()
    thread.start()
    answer: list[int] = []
    try:
        while (step := steps.queue.get()) is not None:
            if isinstance(step, Exception):
                raise step
            answer.append(step)
            text = tokenizer.decode(answer, skip_special_tokens=True).rstrip("\ufffd")
            ttft = 1000 * (steps.first - start)
            yield StreamedAnswer(len(ids), list(answer), text, ttft, steps.kv_bytes)
    finally:
        steps.stop.set()
        thread.join()


# A loop has come round this often, and is this long in tokens: short repetitions are part of verses, tables and code
_ROUNDS, _LOOP_LENGTH = 4, 32


def find_loop(ids: list[int]) -> int | None:
    """
    Where an answer began to repeat itself: the position of the first token that was there before, or `None`.

    An answer is in a loop if it ends with the same tokens four times or more in a row, which are 32 tokens or more together.
    """
    for size in range(1, len(ids) // _ROUNDS + 1):
        rounds = max(_ROUNDS, -(-_LOOP_LENGTH // size))
        start = len(ids) - rounds * size
        if start >= 0 and ids[-1] == ids[-1 - size] and ids[start:-size] == ids[start + size :]:
            while start > 0 and ids[start - 1] == ids[start - 1 + size]:
                start -= 1
            return start + size
    return None


class _Steps(BaseStreamer):
    """Takes the tokens from `generate` to the queue of another thread, and the wish to stop the other way."""

    def __init__(self, cache: DynamicCache):
        self.cache = cache
        self.queue: queue.SimpleQueue[int | Exception | None] = queue.SimpleQueue()
        self.stop = threading.Event()
        self.has_input = False
        self.first = math.nan  # when the first token came
        self.kv_bytes = 0

    def put(self, value: torch.Tensor) -> None:
        if not self.has_input:  # the rendered prompt comes first
            self.has_input = True
            return
        if math.isnan(self.first):
            # By now the cache holds the rendered prompt and nothing else
            self.first, self.kv_bytes = time.perf_counter(), cache_bytes(self.cache)
        self.queue.put(int(value))

    def end(self) -> None:
        pass

    def stopped(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        """A stopping criterion. Where the program ends in the middle of an answer, nobody is left to close the generator."""
        stop = self.stop.is_set() or not threading.main_thread().is_alive()
        return input_ids.new_full((len(input_ids),), stop, dtype=torch.bool)
