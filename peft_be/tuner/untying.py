from __future__ import annotations

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel


def untie_output_embedding(model: PreTrainedModel | PeftModel) -> bool:
    """
    Gives a causal LM with tied embeddings an output embedding of its own. All logits stay as they are, and the model needs room
    for V x d more numbers, in memory and when it is saved.

    Call it before you merge rows into the input embedding: a merge does it otherwise, with a warning. Merging is what needs
    it. An output embedding that shares the table would score the ids by the rows. These are as long as hidden states, and the
    model would write [BE] nearly everywhere.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The causal LM, with or without an adapter of this
            method.

    Returns:
        `bool`: Whether it was tied.
    """
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    table = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    if head is None or table is None or head.weight is not table.weight:
        return False
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    # What transformers ties again when it saves and moves the model
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
    return True
