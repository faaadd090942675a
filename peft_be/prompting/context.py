"""How long a sequence a model can read. All code that sends tokens to a model asks here first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel

from ..files import shown


def context_length(model: PreTrainedModel) -> int | None:
    """
    The most tokens that a causal LM can read and write in one sequence, or `None` where nothing limits them.

    A sliding window is no limit: tokens beyond it are read, layer by layer. RoPE scaling stretches the context where
    the configuration leaves `max_position_embeddings` at the length before the scaling.

    Args:
        model ([`~transformers.PreTrainedModel`]): the causal LM.
    """
    config = model.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    if not isinstance(context, int) or context < 1:  # ALiBi and recurrent models have none, or -1
        return None
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind, factor = scaling.get("rope_type"), scaling.get("factor") or 1.0
    if kind in ("linear", "dynamic"):
        return int(context * factor)
    if kind == "yarn":
        return max(context, int(factor * (scaling.get("original_max_position_embeddings") or context)))
    return context


def check_length(model: PreTrainedModel, length: int, what: str) -> None:
    """Raises a `ValueError` if `length` tokens, made of a prompt with `what`, exceed the context of the model."""
    context = context_length(model)
    if context is not None and length > context:
        raise ValueError(
            f"The prompt does not fit: with {what} it is {length} tokens long, and the model's context is {context}. "
            "Shorten the prompt, the queries or the answers."
        )


def check_prompts(
    model: PreTrainedModel,
    prompts: list[list[int]],
    new_tokens: int | list[int] = 0,
    queries: Sequence[str | list[dict]] | None = None,
) -> None:
    """
    Check rendered prompts before a model reads them. Beyond its context, a model with learned positions fails in the
    middle of the work, and one with rotary positions answers with something that means nothing.

    Args:
        model ([`~transformers.PreTrainedModel`]): the causal LM.
        prompts (`list[list[int]]`): rendered prompts.
        new_tokens (`int` or `list[int]`, *optional*, defaults to `0`): tokens that may follow each of them.
        queries (`Sequence[str | list[dict]]`, *optional*): the query in each of them, so that the error can name it.

    Raises:
        `ValueError`: a prompt and what follows it exceed the context.
    """
    new_tokens = [new_tokens] * len(prompts) if isinstance(new_tokens, int) else new_tokens
    lengths = [len(prompt) + new for prompt, new in zip(prompts, new_tokens)]
    if not lengths:
        return
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    query = "the longest query"
    if queries is not None:
        asked = queries[longest]
        text = asked if isinstance(asked, str) else asked[-1]["content"]
        query += f" ({shown(text)})"
    check_length(model, lengths[longest], f"{query} and its answer" if any(new_tokens) else query)


def fit_dialogue(
    model: PreTrainedModel, render: Callable[[list[dict]], list[int]], dialogue: list[dict], new_tokens: int
) -> tuple[list[int], int]:
    """
    Render a dialogue that ends with the user's turn, and take its oldest turns out of it until it fits into the
    context.

    Args:
        model ([`~transformers.PreTrainedModel`]): the causal LM.
        render (`Callable[[list[dict]], list[int]]`): messages to ids, such as [`~PromptRenderer.be`].
        dialogue (`list[dict]`): the messages, of the user and the assistant by turns. Turns that do not fit are
            deleted.
        new_tokens (`int`): tokens of the answer.

    Returns:
        `tuple[list[int], int]`: the ids, and the number of the user's turns that were deleted.

    Raises:
        `ValueError`: the last turn alone does not fit.
    """
    context, deleted = context_length(model), 0
    ids = render(dialogue)
    while context is not None and len(ids) + new_tokens > context and len(dialogue) > 2:
        del dialogue[:2]
        deleted += 1
        ids = render(dialogue)
    check_length(model, len(ids) + new_tokens, f"the question and an answer of {new_tokens} tokens")
    return ids, deleted
