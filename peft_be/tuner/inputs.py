"""
Checks of the inputs of a base model with adapters, whichever loader of PEFT or transformers put the adapters there.
"""

from __future__ import annotations

import inspect
import warnings
from contextlib import contextmanager
from functools import partial

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from .layer import BETokenEmbedding, at_hand


def add_input_checks(model: PreTrainedModel) -> None:
    """
    Checks what goes into `forward` and `generate` of a base model whose input embedding is a [`BETokenEmbedding`].
    """
    if not hasattr(model, "get_input_embeddings"):
        return
    layer = model.get_input_embeddings()
    layer.input_check = model.register_forward_pre_hook(_check_forward, with_kwargs=True)
    if hasattr(model, "generate"):
        model.generate = partial(_checked_generate, model)


def remove_input_checks(model: PreTrainedModel, layer: BETokenEmbedding) -> None:
    """Undoes [`add_input_checks`] on a base model that had `layer` as its input embedding."""
    if layer.input_check is not None:
        layer.input_check.remove()
        model.__dict__.pop("generate", None)


@contextmanager
def any_input(model: PreTrainedModel | PeftModel):
    """
    Context in which inputs without [BE] are meant, as for the teacher, which reads the prompt itself.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): with an adapter or without one.
    """
    layer = model.get_input_embeddings()
    if not isinstance(layer, BETokenEmbedding):
        yield
        return
    before, layer.expects_be = layer.expects_be, False
    try:
        yield
    finally:
        layer.expects_be = before


def _check_forward(model: PreTrainedModel, args: tuple, kwargs: dict) -> None:
    """A forward pre-hook that warns, once for each model, of inputs that do not use an active adapter."""
    if torch.compiler.is_compiling():
        return
    layer = model.get_input_embeddings()
    if not isinstance(layer, BETokenEmbedding) or not layer.expects_be or layer.disable_adapters:
        return
    ids = kwargs.get("input_ids", args[0] if args else None)
    # A single token is a decoding step. So is what follows a filled cache, in which [BE] may stand
    if not isinstance(ids, torch.Tensor) or ids.is_floating_point() or ids.dim() != 2 or ids.shape[1] < 2:
        return
    cache = kwargs.get("past_key_values")
    if getattr(cache, "get_seq_length", int)() > 0:
        return
    # A check that has to wait for the device is worth it once
    layer.expects_be = at_hand(ids)
    name = layer.find_unused_adapter(ids)
    if name is None:
        return
    layer.expects_be = False
    warnings.warn(
        f"The input holds none of the token ids {layer.be_token_ids[name].tolist()} of the active adapter '{name}', "
        "and the model answers as if the adapter were not there. Make the input with "
        f"PromptRenderer.for_adapter(model.peft_config['{name}'], tokenizer).apply_chat_template(messages), or give "
        "the tokenizer that renderer's chat_template, for instance for a pipeline.",
        stacklevel=1,
    )


def _checked_generate(model: PreTrainedModel, *args, **kwargs):
    """`generate` of the model's class, after a check for ids at which it would fail with an error from inside torch."""
    generate = type(model).generate
    _check_generation(model, inspect.signature(generate).bind(model, *args, **kwargs).arguments)
    return generate(model, *args, **kwargs)


def _check_generation(model: PreTrainedModel, arguments: dict) -> None:
    """
    Raises a `ValueError` for token ids that this way to generate cannot take.

    Some look the ids of the input up among the logits, which ids beyond the vocabulary do not have, and an assistant
    model reads the same ids as the model.
    """
    layer, options = model.get_input_embeddings(), arguments.get("kwargs", {})
    ids = arguments.get("inputs", options.get("input_ids"))
    if not isinstance(layer, BETokenEmbedding) or not isinstance(ids, torch.Tensor) or ids.is_floating_point():
        return
    if not at_hand(ids) and not layer.disable_adapters:  # the layer itself does not wait to see ids then
        layer.check_owners(ids)
    configs = (arguments.get("generation_config"), model.generation_config)
    sources = [options, *(vars(config) for config in configs if config is not None)]

    def setting(name: str):
        return next((source[name] for source in sources if source.get(name) is not None), None)

    limits = {}  # how many ids each option takes
    if setting("prompt_lookup_num_tokens"):
        limits["prompt_lookup_num_tokens"] = layer.in_features
    if setting("encoder_repetition_penalty") not in (None, 1.0):
        limits["encoder_repetition_penalty"] = layer.in_features
    assistant = arguments.get("assistant_model")
    known: set[int] = set()
    if assistant is not None and options.get("assistant_tokenizer") is None:  # else it reads texts
        table = assistant.get_input_embeddings()
        limits["assistant_model"] = table.weight.shape[0]
        known = set(table.all_token_ids()) if isinstance(table, BETokenEmbedding) else known
    if not limits:
        return
    used = ids.unique().tolist()
    for option, limit in limits.items():
        beyond = [i for i in used if i >= limit and not (option == "assistant_model" and i in known)]
        if beyond:
            raise ValueError(
                f"{option} cannot be used with token ids {beyond}, which lie beyond the vocabulary of {limit}: leave "
                "it out, or give the adapter unused ids inside the vocabulary by assign_token_ids."
            )
