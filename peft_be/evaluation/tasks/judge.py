"""RoleBench by a judge: which of two answers plays the role better, the model's or the benchmark's."""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...prompting import PromptRenderer
from ...teacher import AnswerSettings, generate_answers
from .task import AnswerTask


_QUESTION = """Two actors answer the same question in the role of {role}.

Role: {desc}

Question: {question}

Answer 1: {first}

Answer 2: {second}

Which answer is closer to how {role} speaks (voice, wording, character) and to what {role} knows? Its length and the order of the \
answers do not matter. End with one line: "Winner: 1", "Winner: 2" or "Winner: tie"."""

Judge = Callable[[list[str]], list[str]]


class RoleBenchJudge(AnswerTask):
    """
    The win rate of RoleLLM's pairwise protocol, which the paper reports: a judge compares each answer with that of GPT-4 in the
    benchmark (`rolegpt`, else the first of `references`). The judge sees each pair in both orders. A win counts 1, a tie 1/2,
    in each order; so does an answer that names no winner, as a tie. The wording of the question to the judge is our own.

    Items have a `question`, a `role`, optionally its description `desc`, and the answer to compare with.

    Metrics: `win_rate`, the score; `tie`, the share of ties; `consistent`, the share of items at which both orders name the
    same winner, or a tie; `unclear`, the share of the judge's answers without a verdict.

    Args:
        items (`list[dict]`): the items.
        judge (`Callable[[list[str]], list[str]]`): answers questions: [`EndpointJudge`], [`LocalJudge`], or any function.
        template, max_answer_length: As in [`AnswerTask`].
    """

    reference_fields = ("rolegpt", "references")
    reference_types = (str, list)
    max_answer_length = 128

    def __init__(
        self, items: list[dict], judge: Judge, template: str | None = None, max_answer_length: int | None = None
    ):
        super().__init__(items, template, max_answer_length)
        self.judge = judge
        if any("role" not in item for item in items):
            raise ValueError("Each item needs the name of its 'role', which the judge is told.")

    def item_scores(self, answers: list[str]) -> dict[str, list[float]]:
        questions = []
        for item, answer, reference in zip(self.items, answers, self.references):
            reference = reference if isinstance(reference, str) else reference[0]
            for first, second in ((answer, reference), (reference, answer)):
                fields = {"role": item["role"], "desc": item.get("desc", item["role"]), "question": item["question"]}
                questions.append(_QUESTION.format(**fields, first=first.strip(), second=second.strip()))
        verdicts = [_verdict(text) for text in self.judge(questions)]
        scores: dict[str, list[float]] = {name: [] for name in ("win_rate", "tie", "consistent", "unclear")}
        for forward, backward in zip(verdicts[::2], verdicts[1::2]):
            points = ({"1": 1.0, "2": 0.0}.get(forward or "", 0.5), {"1": 0.0, "2": 1.0}.get(backward or "", 0.5))
            scores["win_rate"].append(sum(points) / 2)
            scores["tie"].append(points.count(0.5) / 2)
            scores["consistent"].append(float(None not in (forward, backward) and points[0] == points[1]))
            scores["unclear"].append([forward, backward].count(None) / 2)
        return scores


class EndpointJudge:
    """
    A judge behind an HTTP endpoint that speaks OpenAI's chat completions: OpenAI's own, vLLM, llama.cpp and others.

    Args:
        url (`str`): for instance `https://api.openai.com/v1` or `http://127.0.0.1:8000/v1`.
        model (`str`): the model's name there.
        key_variable (`str`, *optional*, defaults to `"OPENAI_API_KEY"`): the environment variable with the key. The key is sent
            to the endpoint and appears nowhere else; without the variable none is sent.
        max_tokens (`int`, *optional*, defaults to `512`): longest answer.
        timeout (`float`, *optional*, defaults to `120`): seconds to wait for one.
        retries (`int`, *optional*, defaults to `4`): further tries where the endpoint is busy or fails, each after twice the
            time.

    Raises:
        `OSError`: the endpoint cannot be reached or refuses.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_variable: str = "OPENAI_API_KEY",
        max_tokens: int = 512,
        timeout: float = 120,
        retries: int = 4,
    ):
        self.url, self.model, self.key_variable = url.rstrip("/") + "/chat/completions", model, key_variable
        self.max_tokens, self.timeout, self.retries = max_tokens, timeout, retries

    def __call__(self, questions: list[str]) -> list[str]:
        return [self._ask(question) for question in questions]

    def _ask(self, question: str) -> str:
        messages = [{"role": "user", "content": question}]
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": self.max_tokens}
        request = urllib.request.Request(self.url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        if key := os.environ.get(self.key_variable):
            # Not sent on to another host that the endpoint may redirect to
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        for attempt in range(self.retries + 1):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return json.load(response)["choices"][0]["message"]["content"] or ""
            except urllib.error.HTTPError as error:
                problem, again = f"status {error.code}", error.code == 429 or error.code >= 500
            except (OSError, http.client.HTTPException) as error:  # `URLError` and what comes unwrapped
                problem, again = str(getattr(error, "reason", error)), True
            except (json.JSONDecodeError, KeyError, IndexError, TypeError):
                problem, again = "its answer is no chat completion", False
            if not again:
                break
            if attempt < self.retries:
                time.sleep(2**attempt)
        raise OSError(
            f"The judge at {self.url} does not answer ({problem}): check the address, the model and ${self.key_variable}."
        )


class LocalJudge:
    """
    A transformers model as judge, greedily.

    Args:
        model ([`~transformers.PreTrainedModel`]): an instruction-tuned causal LM.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): its tokenizer.
        max_answer_length (`int`, *optional*, defaults to `256`): longest answer, in tokens.
        batch_size (`int`, *optional*, defaults to `8`): questions processed together.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_answer_length: int = 256,
        batch_size: int = 8,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.settings = AnswerSettings(max_new_tokens=max_answer_length, batch_size=batch_size)

    def __call__(self, questions: list[str]) -> list[str]:
        render = PromptRenderer(self.tokenizer).no_prompt
        prompts, pad = [render(question) for question in questions], self.tokenizer.pad_token_id or 0
        answers = generate_answers(self.model, prompts, self.settings, pad)
        return [self.tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in answers]


def _verdict(text: str) -> str | None:
    """`1`, `2` or `tie` of the last verdict in the judge's answer."""
    found = re.findall(r"winner\W+(?:answer\W+)?(1|2|tie)\b", text, re.IGNORECASE)
    return found[-1].lower() if found else None
