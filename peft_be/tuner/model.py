from __future__ import annotations

import re
import warnings
from collections.abc import Collection
from contextlib import contextmanager
from dataclasses import replace

import torch
from peft.config import PeftConfig
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import _get_input_embeddings_name
from torch import nn
from transformers import AutoTokenizer

from .checks import check_rows
from .config import BETokenConfig
from .inputs import add_input_checks, remove_input_checks
from .layer import BETokenEmbedding
from .token_ids import find_unused_token_ids
from .untying import untie_output_embedding


def check_adapter_name(name: str) -> None:
    """Raises a `ValueError` for an adapter name that PEFT cannot keep in a model, or save in a folder of that name."""
    if not isinstance(name, str) or not re.fullmatch(r"[^./\\\x00]+", name) or name == "__base__":
        raise ValueError(
            f"{name!r} cannot be the name of an adapter: use letters, digits, '-' and '_' ('__base__' is the base "
            "model)."
        )
    # PEFT keeps adapters as attributes of such containers, and finds rows by the name of their weight
    if name == "weight" or any(hasattr(container(), name) for container in (nn.ModuleDict, BufferDict)):
        raise ValueError(f"'{name}' cannot be the name of an adapter, as PyTorch uses it itself: choose another one.")


class BETokenModel(BaseTuner):
    """
    Reads a few token ids of a decoder-only language model from learned rows instead of its input embedding: the
    Behavior-Equivalent token [BE] and the autoencoding token [AE] of arXiv 2511.23271.

    Args:
        model ([`~transformers.PreTrainedModel`]): The base model. Only its input embedding is wrapped.
        config ([`BETokenConfig`]): The configuration.
        adapter_name (`str`): The name of the adapter, defaults to `"default"`.

    Example:

    ```py
    >>> from peft import get_peft_model
    >>> from transformers import AutoModelForCausalLM

    >>> from peft_be import BETokenConfig

    >>> base_model = AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")
    >>> model = get_peft_model(base_model, BETokenConfig(task_type="CAUSAL_LM"))
    >>> model.print_trainable_parameters()
    trainable params: 576 || all params: 134,515,584 || trainable%: 0.0004
    ```
    """

    prefix: str = "be_token_"
    tuner_layer_cls = BETokenEmbedding

    # How PEFT drives a tuner

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args, **kwargs) -> None:
        """
        Adds an adapter. Token ids that another adapter has are replaced by unused ones, which
        `peft_config[adapter_name]` then holds.

        Raises:
            `ValueError`: The adapter does not fit the model, the model holds adapters of other methods, or the name
                cannot be used.
        """
        check_adapter_name(adapter_name)
        other = next(
            (m for m in model.modules() if isinstance(m, BaseTunerLayer) and not isinstance(m, BETokenEmbedding)), None
        )
        if other is not None:
            raise ValueError(
                f"The model holds an adapter of another method ({type(other).__name__}), and rows belong to plain "
                "weights: merge it first, by merge_and_unload, and save the merged model as the base."
            )
        config = self.peft_config[adapter_name]
        taken = self._token_ids_of_others(adapter_name)
        # Adapters that are added with one configuration share the object, but each needs ids of its own
        is_shared = any(c is config for name, c in self.peft_config.items() if name != adapter_name)
        if is_shared or not taken.isdisjoint(config.token_ids):
            self.peft_config[adapter_name] = replace(
                config,
                be_token_ids=config.be_token_ids if taken.isdisjoint(config.be_token_ids or []) else None,
                ae_token_id=config.ae_token_id if config.ae_token_id not in taken else None,
            )
        # Ids that a user chose: a configuration that has been on a model records the model's vocabulary size
        asked = [] if config.vocab_size else config.token_ids
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        token_ids = self.peft_config[adapter_name].token_ids
        if not set(asked) <= set(token_ids):
            warnings.warn(
                f"Adapter '{adapter_name}' was to have the token ids {asked}, which another adapter has, and got "
                f"{token_ids} instead: read them from model.peft_config['{adapter_name}'].",
                stacklevel=1,
            )

    def _token_ids_of_others(self, adapter_name: str) -> set[int]:
        return {i for name, config in self.peft_config.items() if name != adapter_name for i in config.token_ids}

    def _prepare_adapter_config(self, peft_config: BETokenConfig, model_config: dict) -> BETokenConfig:
        if model_config.get("is_encoder_decoder"):
            raise ValueError("BE_TOKEN needs a decoder-only or encoder-only model, this one is an encoder-decoder.")
        self._embedding_name = self._find_embedding_name(peft_config)
        embedding = self.model.get_submodule(self._embedding_name)
        if isinstance(embedding, BETokenEmbedding):
            embedding = embedding.get_base_layer()
        if not isinstance(embedding, nn.Embedding):
            raise ValueError(f"BE_TOKEN needs an nn.Embedding as input embedding, got {type(embedding).__name__}.")

        vocab_size, hidden_size = embedding.weight.shape
        expected = (peft_config.hidden_size or hidden_size, peft_config.vocab_size or vocab_size)
        if expected != (hidden_size, vocab_size):
            raise ValueError(
                f"This adapter was made for a base model with hidden size {expected[0]} and {expected[1]} embedding "
                f"rows, but the given model has hidden size {hidden_size} and {vocab_size} embedding rows."
            )
        peft_config.hidden_size, peft_config.vocab_size = hidden_size, vocab_size
        peft_config.embed_scale = float(getattr(embedding, "embed_scale", 1.0))

        # Gemma 3n and 4 look the same ids up in a second table, of per-layer embeddings.
        text_config = model_config.get("text_config") or model_config
        limit = (
            text_config.get("vocab_size_per_layer_input") if text_config.get("hidden_size_per_layer_input") else None
        )
        self._choose_token_ids(peft_config, vocab_size if limit is None else min(vocab_size, limit))
        if limit is not None and max(peft_config.token_ids) >= limit:
            raise ValueError(
                f"This model has a second embedding table, of {limit} rows, for the same token ids, so that "
                f"{peft_config.token_ids} are too large; set be_token_ids and ae_token_id to unused ids below {limit}."
            )
        return peft_config

    def _find_embedding_name(self, peft_config: BETokenConfig) -> str:
        if hasattr(self.model, "get_input_embeddings"):
            if peft_config.target_modules:
                raise ValueError(
                    "BE_TOKEN always targets the input embedding of a transformers model, leave target_modules unset "
                    f"(got {peft_config.target_modules!r})."
                )
            return _get_input_embeddings_name(self.model)

        targets = peft_config.target_modules or []
        targets = [targets] if isinstance(targets, str) else targets
        names = [name for name, _ in self.model.named_modules() if any(f".{name}".endswith(f".{t}") for t in targets)]
        if len(names) != 1:
            raise ValueError(
                "The model has no get_input_embeddings, so target_modules must name exactly one embedding module, but "
                f"{peft_config.target_modules!r} matches {len(names)} modules."
            )
        return names[0]

    def _choose_token_ids(self, peft_config: BETokenConfig, num_usable: int) -> None:
        """Fills in the ids that the user left open, with unused ones below `num_usable` if there are enough."""
        need_be = peft_config.be_token_ids is None
        need_ae = peft_config.use_ae_token and peft_config.ae_token_id is None
        if not (need_be or need_ae):
            return
        vocab_size = peft_config.vocab_size or 0
        num_be_tokens = peft_config.num_be_tokens if need_be else 0
        others = (config for config in self.peft_config.values() if config is not peft_config)
        taken = {i for config in (peft_config, *others) for i in config.token_ids}
        unused = [i for i in self._unused_token_ids(peft_config, num_usable) if i not in taken]
        if need_be:
            # All [BE] ids or none of them in the vocabulary: one id beyond it is enough to rule out merging.
            be_token_ids, unused = unused[:num_be_tokens], unused[num_be_tokens:]
            if len(be_token_ids) < num_be_tokens:
                be_token_ids = self._first_free_ids(vocab_size, num_be_tokens, taken)
            peft_config.be_token_ids = be_token_ids
        if need_ae:
            ids = unused or self._first_free_ids(vocab_size, 1, taken.union(peft_config.be_token_ids or []))
            peft_config.ae_token_id = ids[0]

    def _unused_token_ids(self, peft_config: BETokenConfig, num_usable: int) -> list[int]:
        """All unused ids below `num_usable`, best first; none if there is no tokenizer on this machine."""
        name = peft_config.tokenizer_name_or_path or getattr(self.model, "name_or_path", None)
        if not name:
            return []
        # Kept, since of hundreds of adapters with the same ids all but the first ask for others
        known = self.__dict__.setdefault("_unused_by_tokenizer", {})
        if (name, num_usable) not in known:
            try:
                tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
            except Exception:  # of many types, and none of them matters: ids beyond the vocabulary need no tokenizer
                known[name, num_usable] = []
            else:
                known[name, num_usable] = find_unused_token_ids(tokenizer, num_usable, num_usable)
        return known[name, num_usable]

    @staticmethod
    def _first_free_ids(start: int, count: int, taken: Collection[int]) -> list[int]:
        return [i for i in range(start, start + count + len(taken)) if i not in taken][:count]

    def _check_target_module_exists(self, peft_config: PeftConfig, key: str) -> bool:
        return key == self._embedding_name

    def _create_and_replace(
        self,
        peft_config: BETokenConfig,
        adapter_name: str,
        target: nn.Embedding | BETokenEmbedding,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        if isinstance(target, BETokenEmbedding):
            target.update_layer(adapter_name, peft_config)
            return
        new_module = BETokenEmbedding(target, adapter_name)
        new_module.update_layer(adapter_name, peft_config)
        self._replace_module(parent, target_name, new_module, target)
        add_input_checks(self.model)

    def _unload_and_optionally_merge(self, *args, **kwargs):
        layer = self._layer
        model = super()._unload_and_optionally_merge(*args, **kwargs)
        remove_input_checks(model, layer)
        return model

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        # Rows are created in fp32: transformers' own `load_adapter` does not autocast, and would round them.
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if not autocast_adapter_dtype:
            for name in self._layer.adapter_layer_names:
                if adapter_name in getattr(self._layer, name):
                    getattr(self._layer, name)[adapter_name].to(self._layer.weight.dtype)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args, **kwargs):
        """Hands `adapter_names`, one name for each row of the batch, to the layer during a forward or `generate`."""
        adapter_names = kwargs.get("adapter_names")
        if adapter_names is None:
            yield
            return

        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        unknown = set(adapter_names) - set(self.peft_config) - {"__base__"}
        if unknown:
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(sorted(unknown))}")

        # `generate` repeats each row of the batch for its beams or for several samples.
        generation_config = kwargs.get("generation_config") or getattr(self.model, "generation_config", None)
        copies = 1
        for name in ("num_beams", "num_return_sequences"):
            copies = max(copies, kwargs.get(name) or getattr(generation_config, name, None) or 1)

        def add_adapter_names(module, args, kwargs):
            names = adapter_names
            if len(args[0]) == copies * len(names):
                names = [name for name in names for _ in range(copies)]
            return args, {**kwargs, "adapter_names": names}

        layer = self._layer
        handle = layer.register_forward_pre_hook(add_adapter_names, with_kwargs=True)
        layer.batch_adapter_names = adapter_names
        try:
            yield
        finally:
            handle.remove()
            layer.batch_adapter_names = None

    # Saving and loading

    @classmethod
    def _get_adapter_state_dict(cls, model, config, adapter_name, state_dict, unwanted_adapter_names):
        entries = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        foreign = [key for key in entries if ".be_token_" not in key]
        if foreign:
            raise ValueError(
                f"The model carries an adapter of another method ({foreign[0]}), which the rows were trained with: "
                "merge it into the base model first (merge_and_unload), and train on that."
            )
        if config.saves_ae_token:
            return entries
        return {key: value for key, value in entries.items() if ".be_token_ae_embedding." not in key}

    @classmethod
    def _remap_adapter_state_dict_for_load(cls, model, config, adapter_name, state_dict):
        check_rows(state_dict, config, "file")
        for layer in (module for module in model.modules() if isinstance(module, BETokenEmbedding)):
            layer.check_not_merged(adapter_name)
        entries = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        # PEFT passes on what it finds no place for, warns, and leaves the rows at their random values
        unplaced = [key for key in entries if key in state_dict]
        if unplaced:
            raise ValueError(
                f"The adapter file holds its rows as {unplaced[0]}, and this model has no such embedding: the file is "
                "damaged, or belongs to another architecture."
            )
        return entries

    def _check_merge_allowed(self) -> None:
        """
        Unties the output embedding from the table that the rows are about to be written into, see
        [`untie_output_embedding`].
        """
        if untie_output_embedding(self.model):
            weight = self.model.get_output_embeddings().weight
            warnings.warn(
                "The model's output embedding was tied to its input embedding, which the rows are merged into. It is now a copy, "
                f"which takes {weight.numel() * weight.element_size() / 1e6:.0f} MB, so that all logits stay as they were. Call "
                "peft_be.tuner.untie_output_embedding(model) before you merge, to do this where you want it.",
                stacklevel=2,
            )

    # Ids and rows

    @property
    def _layer(self) -> BETokenEmbedding:
        return next(module for module in self.model.modules() if isinstance(module, BETokenEmbedding))

    def assign_token_ids(
        self, adapter_name: str, be_token_ids: list[int] | None = None, ae_token_id: int | None = None
    ) -> list[int]:
        """
        Gives an adapter other token ids, so that adapters with the same ids can be active in one sequence.

        Args:
            adapter_name (`str`): The adapter.
            be_token_ids (`list[int]`, *optional*):
                Ids of its k [BE] rows, defaults to the first ids beyond the vocabulary that no loaded adapter has.
            ae_token_id (`int`, *optional*):
                Id of its [AE] row if it has one, with the same default.

        Returns:
            `list[int]`: The new ids of the [BE] rows, as now in `peft_config[adapter_name]`.

        Raises:
            `ValueError`: If the ids are not valid, belong to another active adapter, or if the adapter is merged.
        """
        config = self.peft_config[adapter_name]
        taken = {i for name, other in self.peft_config.items() if name != adapter_name for i in other.token_ids}
        taken.update(be_token_ids or [], [] if ae_token_id is None else [ae_token_id])
        if be_token_ids is None:
            be_token_ids = self._first_free_ids(config.vocab_size, config.num_be_tokens, taken)
        if ae_token_id is None and config.use_ae_token:
            ae_token_id = self._first_free_ids(config.vocab_size, 1, taken | set(be_token_ids))[0]
        # A new object, as adapters that were added with one and the same configuration share it.
        config = replace(config, be_token_ids=list(be_token_ids), ae_token_id=ae_token_id)
        self._layer.set_token_ids(adapter_name, config.token_ids)
        self.peft_config[adapter_name] = config
        return config.be_token_ids

    def get_rows(self, adapter_name: str) -> torch.Tensor:
        """Returns a copy of the [BE] rows of an adapter, of shape (k, d)."""
        return self._weight("be_token_embedding", adapter_name).detach().clone()

    def rows_grad(self, adapter_name: str) -> torch.Tensor | None:
        """Returns the gradient of the [BE] rows of an adapter, of shape (k, d), not a copy; `None` before a backward pass."""
        return self._weight("be_token_embedding", adapter_name).grad

    def set_rows(self, adapter_name: str, rows: torch.Tensor) -> None:
        """Overwrites the [BE] rows of an adapter in place with `rows` of shape (k, d). Raises a `ValueError` if the adapter is merged."""
        self._overwrite("be_token_embedding", adapter_name, rows)

    def get_ae_row(self, adapter_name: str) -> torch.Tensor:
        """Returns a copy of the [AE] row of an adapter, of shape (1, d)."""
        return self._weight("be_token_ae_embedding", adapter_name).detach().clone()

    def set_ae_row(self, adapter_name: str, row: torch.Tensor) -> None:
        """Overwrites the [AE] row of an adapter in place with `row` of shape (1, d). Raises a `ValueError` if the adapter is merged."""
        self._overwrite("be_token_ae_embedding", adapter_name, row)

    def _weight(self, container_name: str, adapter_name: str) -> nn.Parameter:
        container = getattr(self._layer, container_name)
        if adapter_name not in container:
            kind = "[AE] row" if "_ae_" in container_name else "[BE] rows"
            raise ValueError(f"Adapter {adapter_name} has no {kind}.")
        return container[adapter_name].weight

    @torch.no_grad()
    def _overwrite(self, container_name: str, adapter_name: str, rows: torch.Tensor) -> None:
        weight = self._weight(container_name, adapter_name)
        self._layer.check_not_merged(adapter_name)
        if rows.shape != weight.shape:  # `copy_` would broadcast
            raise ValueError(f"Expected rows of shape {tuple(weight.shape)}, got {tuple(rows.shape)}.")
        weight.copy_(rows)
