"""The KV cache of a prompt, computed once and shared by every query.

The teacher of Eq. 3 reads the same prompt P in front of every query. A plain `DynamicCache` would have to hold P once per
row of the batch and copy it at every generated token. Here P's keys and values exist once: each attention layer scores
all rows' queries against them in one matrix product, scores each row's own tokens as usual, and normalises both parts
together, which is the same softmax.
"""

from __future__ import annotations

import contextlib

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..tuner.inputs import any_input


ATTENTION_NAME = "peft_be_shared_prefix"


class _SuffixLayer(DynamicLayer):
    """
    Holds what follows the prefix, and counts the prefix in, so that masks and positions come out right.

    It writes into buffers with room for more: a plain layer copies all it holds for every generated token.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, prefix_length: int):
        super().__init__()
        self.prefix_length = prefix_length
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def get_seq_length(self) -> int:
        return self.prefix_length + super().get_seq_length()

    def update(self, key_states, value_states, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        held, new = super().get_seq_length(), key_states.shape[-2]
        if self._buffers is None or held + new > self._buffers[0].shape[-2]:
            room = 2 * held + new + 32
            buffers = tuple(s.new_empty(*s.shape[:-2], room, s.shape[-1]) for s in (key_states, value_states))
            if held:
                buffers[0][..., :held, :], buffers[1][..., :held, :] = self.keys, self.values
            self._buffers = buffers
        for buffer, states in zip(self._buffers, (key_states, value_states)):
            buffer[..., held : held + new, :] = states
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        self.keys, self.values = (buffer[..., : held + new, :] for buffer in self._buffers)
        return self.keys, self.values


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Attention of all queries to all keys, and the logarithm of each softmax's sum, float32.

    Args: `query` `[K, N, D]`, already scaled; `key`, `value` `[K, P, D]`.

    Returns: `[K, N, D]` and `[K, N, 1]`.
    """
    if query.device.type == "cpu" and query.shape[-1] == value.shape[-1]:
        # torch's fused kernel. scaled_dot_product_attention calls it, too, but does not return the sums
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        mixed, log_sum = kernel(query[None], key[None], value[None], scale=1.0)
        return mixed[0], log_sum[0].float().unsqueeze(-1)
    scores = (query @ key.transpose(-1, -2)).float()
    log_sum = scores.logsumexp(-1, keepdim=True)
    return scores.sub_(log_sum).exp_().to(value.dtype) @ value, log_sum


class SharedPrefix:
    """
    Keys and values of a token prefix, shared by all rows of a batch.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The causal LM, not wrapped by PEFT (`PeftModel.get_base_model()` gives it).
        prefix_ids (`list[int]`):
            The prefix, at least one token.

    Attributes:
        length (`int`): number of tokens of the prefix, P in the shapes below.
        keys, values (`list[torch.Tensor]`): one `[num_kv_heads, P, head_dim]` tensor a layer.

    Example:

        ```python
        >>> prefix = SharedPrefix(model, prefix_ids)
        >>> with prefix.attached(model):
        ...     cache = prefix.new_cache()
        ...     model(input_ids=suffix_ids, past_key_values=cache)  # as if every row started with the prefix
        ```
    """

    def __init__(self, model: PreTrainedModel, prefix_ids: list[int]):
        with torch.no_grad(), any_input(model):
            input_ids = torch.tensor([prefix_ids], device=model.device)
            cache = model(input_ids=input_ids, use_cache=True, logits_to_keep=1).past_key_values
        self.length = len(prefix_ids)
        self.keys = [layer.keys[0] for layer in cache.layers]
        self.values = [layer.values[0] for layer in cache.layers]

    @classmethod
    def from_states(cls, keys: list[torch.Tensor], values: list[torch.Tensor]) -> SharedPrefix:
        """A prefix of given keys and values, for instance learned ones, in the shapes of the attributes."""
        prefix = cls.__new__(cls)
        prefix.length, prefix.keys, prefix.values = keys[0].shape[-2], list(keys), list(values)
        return prefix

    def new_cache(self) -> DynamicCache:
        """An empty cache for the tokens after the prefix. Valid inside [`~SharedPrefix.attached`] only."""
        cache = DynamicCache()
        cache.layers = [_SuffixLayer(self.length) for _ in self.keys]
        return cache

    @contextlib.contextmanager
    def attached(self, model: PreTrainedModel):
        """Context in which the attention layers of `model` see the prefix in front of every row."""
        before = model.config._attn_implementation
        ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, self._attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, sdpa_mask)
        model.set_attn_implementation(ATTENTION_NAME)
        try:
            yield self
        finally:
            model.set_attn_implementation(before)

    def _attention(self, module, query, key, value, attention_mask, scaling, **kwargs):
        # query: [B, H, S, D]; key, value: [B, K, L, D], the tokens after the prefix; mask: [B, 1, S, P + L] or None
        prefix_key, prefix_value = self.keys[module.layer_idx], self.values[module.layer_idx]
        batch, heads, length, dim = query.shape
        kv_heads = key.shape[1]
        grouped = (query * scaling).reshape(batch, kv_heads, -1, dim)  # [B, K, G*S, D]
        # The prefix is the same for all rows: the rows of the batch stand side by side as queries of one sequence
        rows = grouped.transpose(0, 1).reshape(kv_heads, -1, dim)
        prefix_mixed, prefix_log_sum = (
            part.view(kv_heads, batch, -1, part.shape[-1]).transpose(0, 1)
            for part in _attend(rows, prefix_key, prefix_value)
        )
        own_scores = (grouped @ key.transpose(-1, -2)).float()  # [B, K, G*S, L]
        if attention_mask is not None:
            own_mask = attention_mask[..., self.length :].repeat(1, 1, heads // kv_heads, 1)
            own_scores = own_scores.masked_fill_(~own_mask, torch.finfo(own_scores.dtype).min)
        # One softmax over both parts
        top = torch.maximum(prefix_log_sum, own_scores.amax(-1, keepdim=True))
        prefix_share, own_scores = (prefix_log_sum - top).exp(), own_scores.sub_(top).exp_()
        total = prefix_share + own_scores.sum(-1, keepdim=True)
        mixed = prefix_mixed * (prefix_share / total).to(value.dtype)
        mixed = mixed + own_scores.to(value.dtype) @ value / total.to(value.dtype)
        return mixed.reshape(batch, heads, length, -1).transpose(1, 2).contiguous(), None


def can_share_prefix(model: PreTrainedModel) -> bool:
    """
    Whether the prefix of `model` can be shared by [`SharedPrefix`]: every layer attends to the whole past, keeps its keys
    and values in a plain [`~transformers.cache_utils.DynamicLayer`], and uses the bare scaled dot product. Sliding
    windows, linear attention, logit soft-capping and attention sinks do not qualify; the teacher then runs full forwards.
    """
    config = model.config.get_text_config()
    return (
        all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
        and model._can_set_attn_implementation()
        and not getattr(config, "attn_logit_softcapping", None)
        and getattr(config, "model_type", "") != "gpt_oss"
        and not getattr(config, "num_kv_shared_layers", None)
    )
