from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from .config import BETokenConfig


def at_hand(ids: torch.Tensor) -> bool:
    """Whether the values of `ids` can be read at no cost. On any device but the CPU, reading them waits for the device."""
    return ids.device.type == "cpu" and not torch.compiler.is_compiling()


def _not_active(token_id: int, owner: str, active: list[str]) -> ValueError:
    return ValueError(
        f"Token id {token_id} belongs to adapter {owner}, which is not active (active: {', '.join(active)}): call "
        "set_adapter to activate it, or pass adapter_names."
    )


class BETokenEmbedding(nn.Module, BaseTunerLayer):
    """
    An embedding in which a few ids are read from learned rows instead of the table.

    The rows of an adapter are small embeddings of their own next to the base embedding, so that their cost does not
    depend on the size V of the vocabulary: neither a copy nor a gradient of shape (V, d) is made. They are kept like
    rows of the table: in a base embedding that scales its output (Gemma), they are scaled too.

    While the adapters are disabled, ids inside the vocabulary are ordinary ids again; ids beyond it, which the base
    embedding does not have, read its row 0.

    Args:
        base_layer (`nn.Embedding`): The input embedding of the base model, of shape (V, d).
        adapter_name (`str`): The adapter that is active at first.
    """

    # [BE] and [AE] are apart because a whole entry is frozen or trainable. Rows are embeddings, and are read through
    # their forward, so that FSDP can wrap them like any other module without children.
    adapter_layer_names = ("be_token_embedding", "be_token_ae_embedding")
    other_param_names = ("be_token_ids",)
    # Of PEFT's layer
    active_adapters: list[str]
    get_base_layer: Callable[[], nn.Embedding]
    _get_embed_scale: Callable[[], torch.Tensor | None]

    def __init__(self, base_layer: nn.Embedding, adapter_name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.be_token_embedding = nn.ModuleDict()
        self.be_token_ae_embedding = nn.ModuleDict()
        # For each adapter the ids of its [BE] rows, then that of its [AE] row.
        self.be_token_ids = BufferDict(persistent=False)
        self.frozen_peft_weight_names: dict[str, tuple[str, ...]] = {}
        self.merged_adapters: list[str] = []
        self._rows_before_merge: dict[str, torch.Tensor] = {}
        # See inputs.py: whether an input without [BE] is worth a warning, the hook that checks, and the adapter of each
        # row of the batch
        self.expects_be = True
        self.input_check = None
        self.batch_adapter_names: list[str] | None = None
        self._active_adapter = adapter_name
        self.in_features, self.out_features = self.get_base_layer().weight.shape

    def update_layer(self, adapter_name: str, config: BETokenConfig) -> None:
        """Adds the rows of an adapter, random with the standard deviation of the embedding table."""
        weight = self.get_base_layer().weight
        # About a thousand rows from all over the table tell its scale.
        std = weight.detach()[:: max(1, self.in_features // 1024)].float().std()
        for container, count in (
            (self.be_token_embedding, config.num_be_tokens),
            (self.be_token_ae_embedding, int(config.use_ae_token)),
        ):
            if count:
                # In fp32 even on a bf16 base: bf16 would lose the small updates of training.
                rows = torch.randn(count, self.out_features, device=weight.device) * std
                container[adapter_name] = nn.Embedding.from_pretrained(rows, freeze=False)
        if config.num_be_tokens:
            # [AE] learns in stage 0 only. PEFT reapplies this after `set_adapter` and `disable_adapter`.
            self.frozen_peft_weight_names[adapter_name] = ("be_token_ae_embedding",)
        # Ids are not in the checkpoint, so they must not get lost on the meta device.
        self.be_token_ids[adapter_name] = torch.tensor(
            config.token_ids, device="cpu" if weight.is_meta else weight.device
        )

    def set_token_ids(self, adapter_name: str, token_ids: list[int]) -> None:
        """Gives an adapter other ids: first for its [BE] rows, then for its [AE] row."""
        self.check_not_merged(adapter_name)
        if adapter_name in self.active_adapters:
            others = [name for name in self.active_adapters if name != adapter_name]
            self._check_distinct_ids(others, {adapter_name: token_ids})
        self.be_token_ids[adapter_name] = torch.tensor(token_ids, device=self.be_token_ids[adapter_name].device)

    def check_not_merged(self, adapter_name: str) -> None:
        """Raises a `ValueError` if the adapter's rows are in the table, where changing them would have no effect."""
        if adapter_name in self.merged_adapters:
            raise ValueError(f"Adapter {adapter_name} is merged into the embedding table: call unmerge_adapter first.")

    def delete_adapter(self, adapter_name: str) -> None:
        # PEFT's models refuse it themselves. transformers' `delete_adapter` asks nobody, and the rows would stay in the table
        self.check_not_merged(adapter_name)
        super().delete_adapter(adapter_name)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        self._check_distinct_ids([adapter_names] if isinstance(adapter_names, str) else adapter_names)
        super().set_adapter(adapter_names, inference_mode=inference_mode)

    def _check_distinct_ids(self, adapter_names: Sequence[str], new_ids: dict[str, list[int]] | None = None) -> None:
        """Raises a `ValueError` if an id belongs to two of the adapters."""
        ids = {name: self.be_token_ids[name].tolist() for name in adapter_names if name in self.be_token_ids}
        owner: dict[int, str] = {}
        for adapter_name, token_ids in {**ids, **(new_ids or {})}.items():
            for token_id in token_ids:
                if token_id in owner:
                    raise ValueError(
                        f"Adapters {owner[token_id]} and {adapter_name} both use token id {token_id} and cannot be "
                        "active at the same time: call assign_token_ids to give one of them other ids."
                    )
                owner[token_id] = adapter_name

    def all_token_ids(self) -> list[int]:
        """The ids of all adapters."""
        return [i for ids in self.be_token_ids.values() for i in ids.tolist()]

    def find_unused_adapter(self, x: torch.Tensor) -> str | None:
        """
        The name of an adapter that a row of the batch `x` should use but does not, because it holds no adapter's id.
        (An id of an adapter that is not active is refused, or becomes NaN.)
        """
        without = ~torch.isin(x, torch.tensor(self.all_token_ids(), device=x.device)).any(-1)
        adapters = zip(self._adapters_of_rows(x), without.tolist())
        return next((names[0] for names, is_without in adapters if names and is_without), None)

    def check_owners(self, x: torch.Tensor) -> None:
        """Raises a `ValueError` if a row of the batch `x` has an id of an adapter that it does not use."""
        for row, names in zip(x.tolist(), self._adapters_of_rows(x)):
            own = {i for name in names for i in self.be_token_ids[name].tolist()}
            foreign = set(row).intersection(self.all_token_ids()) - own if names else set()
            for name, ids in self.be_token_ids.items():
                token_id = next((i for i in ids.tolist() if i in foreign), None)
                if token_id is not None:
                    raise _not_active(token_id, name, names)

    def _adapters_of_rows(self, x: torch.Tensor) -> list[list[str]]:
        """The adapters that each row of the batch `x` uses."""
        if self.batch_adapter_names is None:
            return [[name for name in self.active_adapters if name in self.be_token_ids]] * len(x)
        copies = len(x) // len(self.batch_adapter_names)  # of each row, for beams or several samples
        return [[name] if name != "__base__" else [] for name in self.batch_adapter_names for _ in range(copies)]

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # Unlike PEFT's own, this leaves the dtype alone: rows loaded in fp32 stay exact on a bf16 base.
        device = self.get_base_layer().weight.device if device is None else device
        for name in self.adapter_layer_names + self.other_param_names:
            container = getattr(self, name)
            if adapter_name in container and not any(p.is_meta for p in container.parameters()):
                container[adapter_name] = container[adapter_name].to(device)

    def all_rows(self, adapter_name: str) -> torch.Tensor:
        """Returns the [BE] rows of an adapter, then its [AE] row, of shape (k [+ 1], d)."""
        rows = []
        for name in self.adapter_layer_names:
            if adapter_name in getattr(self, name):
                embedding = getattr(self, name)[adapter_name]
                rows.append(embedding(torch.arange(embedding.num_embeddings, device=embedding.weight.device)))
        return torch.cat(rows)

    def forward(self, x: torch.Tensor, *args, adapter_names: list[str] | None = None, **kwargs) -> torch.Tensor:
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self._embed(x, [], *args, **kwargs)
        if adapter_names is not None:
            return self._embed_mixed_batch(x, adapter_names, *args, **kwargs)
        return self._embed(x, [] if self.merged else self.active_adapters, *args, **kwargs)

    def _embed(self, x: torch.Tensor, adapter_names: list[str], *args, **kwargs) -> torch.Tensor:
        """
        Embeds `x` with the rows of the given adapters; with none of them, as the base embedding does.

        Raises:
            `ValueError`: If `x` contains an id of an adapter that is not given. This is checked in eager mode on the
                CPU. Elsewhere a check would wait for the device, and the embeddings of such ids are NaN.
        """
        all_names = [*adapter_names, *(name for name in self.be_token_ids if name not in adapter_names)]
        if not all_names:
            return self.base_layer(x, *args, **kwargs)

        ids = torch.cat([self.be_token_ids[name] for name in all_names]).to(x.device)
        match = x.unsqueeze(-1) == ids
        if not adapter_names:
            beyond_vocab = (match & (ids >= self.in_features)).any(-1)
            return self._embed_ordinary(x.masked_fill(beyond_vocab, 0), *args, **kwargs)

        hit = match.any(-1)
        embeds = self._embed_ordinary(x.masked_fill(hit, 0), *args, **kwargs)
        rows = torch.cat([self.all_rows(name) for name in adapter_names]).to(x.device)
        slots = match.byte().argmax(-1)  # the first match, thus a row of the given adapters if there is one
        if not at_hand(x):
            return self._place_rows(embeds, rows, hit, slots)

        positions = hit.nonzero(as_tuple=True)
        slots = slots[positions]
        if (slots >= len(rows)).any():
            token_id = int(ids[slots.max()])
            owner = next(name for name in all_names[len(adapter_names) :] if token_id in self.be_token_ids[name])
            raise _not_active(token_id, owner, adapter_names)
        values = self._like_table_rows(F.embedding(slots, rows), embeds)
        # The output of the base embedding is fresh. It requires a gradient if the table learns or if a hook made it a
        # leaf for gradient checkpointing; autograd forbids writing into the latter.
        if embeds.requires_grad:
            return embeds.index_put(positions, values)
        return embeds.index_put_(positions, values)

    def _embed_ordinary(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        try:
            return self.base_layer(x, *args, **kwargs)
        except IndexError as error:
            token_id = next(i for i in x.flatten().tolist() if not 0 <= i < self.in_features)
            raise ValueError(
                f"Token id {token_id} lies beyond the vocabulary of {self.in_features} and belongs to no adapter of "
                "the model: make the input with the ids in peft_config."
            ) from error

    def _place_rows(
        self, embeds: torch.Tensor, rows: torch.Tensor, hit: torch.Tensor, slots: torch.Tensor
    ) -> torch.Tensor:
        """Writes `rows[slots]` over `embeds` where `hit`, without a shape or a branch that depends on the ids."""
        # An extra row serves every other position. As the padding row it takes no gradient; what it holds is seen only
        # at ids of adapters that are not active, where NaN cannot go unnoticed.
        table = torch.cat([rows, rows.new_full((1, self.out_features), float("nan"))])
        slots = slots.masked_fill(~hit, len(rows)).clamp(max=len(rows))
        values = self._like_table_rows(F.embedding(slots, table, padding_idx=len(rows)), embeds)
        return torch.where(hit.unsqueeze(-1), values, embeds)

    def _like_table_rows(self, rows: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
        """Treats rows as the base embedding treats the rows of its table: dtype, then scale."""
        rows = rows.to(embeds.dtype)
        scale = self._get_embed_scale()
        return rows if scale is None else rows * scale.to(rows.dtype)

    def _embed_mixed_batch(self, x: torch.Tensor, adapter_names: list[str], *args, **kwargs) -> torch.Tensor:
        """Embeds each row of the batch with the adapter named for it, `"__base__"` being the base embedding."""
        if len(x) != len(adapter_names):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(x)} respectively."
            )
        if self.merged:
            raise ValueError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )
        every_id = torch.cat(list(self.be_token_ids.values())).to(x.device)
        special = torch.isin(x, every_id)
        if at_hand(x) and not special.any():  # what is true of most tokens that are generated
            return self.base_layer(x, *args, **kwargs)

        # All adapters in one go: a table of their ids, one row for each adapter and one without ids for the base
        # embedding, and a second table with the places of their rows
        names = [name for name in dict.fromkeys(adapter_names) if name != "__base__"]
        own_ids = [*(self.be_token_ids[name].to(x.device) for name in names), x.new_empty(0)]
        id_table = pad_sequence(own_ids, batch_first=True, padding_value=-1)
        places = torch.arange(sum(map(len, own_ids)), device=x.device).split([len(ids) for ids in own_ids])
        place_table = pad_sequence(places, batch_first=True)
        owner = {name: i for i, name in enumerate([*names, "__base__"])}
        index = torch.tensor([owner[name] for name in adapter_names], device=x.device)
        has_rows = (index < len(names)).unsqueeze(-1)

        match = x.unsqueeze(-1) == id_table[index].unsqueeze(1)  # [B, S, most ids of an adapter]
        hit = match.any(-1)
        # Special ids of adapters that are not the row's: beyond the vocabulary the base embedding has nothing for them
        foreign = special & ~hit & has_rows
        if at_hand(x) and foreign.any():
            batch_row, position = foreign.nonzero()[0].tolist()
            token_id = x[batch_row, position].item()
            other = next(name for name, ids in self.be_token_ids.items() if token_id in ids)
            raise ValueError(
                f"Token id {token_id} belongs to adapter {other}, but its row of the batch uses adapter "
                f"{adapter_names[batch_row]}: pass the adapter that the prompt was made for."
            )
        embeds = self.base_layer(
            x.masked_fill(special & (hit | foreign | (x >= self.in_features)), 0), *args, **kwargs
        )
        if not names:
            return embeds
        rows = torch.cat([self.all_rows(name) for name in names]).to(x.device)
        slots = place_table[index].gather(1, match.byte().argmax(-1))
        return self._place_rows(embeds, rows, hit | foreign, slots.masked_fill(foreign, len(rows)))

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """
        Writes the rows into the table of the base embedding.

        An output embedding that shares the table must be untied first, as [`BETokenModel`] does.

        Args:
            safe_merge (`bool`, *optional*, defaults to `False`): Whether to check that the rows are finite.
            adapter_names (`list[str]`, *optional*): The adapters to merge, defaults to the active ones.

        Raises:
            `ValueError`: If an id lies beyond the vocabulary, belongs to two adapters, or if the safe merge fails.
                The table is left as it was.
        """
        # Each once: a second round would keep the merged rows as those to put back
        names = dict.fromkeys(check_adapters_to_merge(self, adapter_names))
        adapter_names = [name for name in names if name in self.be_token_ids]
        self._check_distinct_ids([*self.merged_adapters, *adapter_names])
        weight = self.get_base_layer().weight.data
        rows = {name: self.all_rows(name).detach().to(weight) for name in adapter_names}
        for adapter_name in adapter_names:
            ids = self.be_token_ids[adapter_name].tolist()
            if max(ids) >= self.in_features:
                raise ValueError(
                    f"Adapter {adapter_name} cannot be merged: its token ids {ids} reach beyond the vocabulary of "
                    f"{self.in_features} rows."
                )
            if safe_merge and not rows[adapter_name].isfinite().all():
                raise ValueError(f"NaNs detected in the merged weights. The adapter {adapter_name} seems to be broken")
        for adapter_name in adapter_names:
            ids = self.be_token_ids[adapter_name].to(weight.device)
            self._rows_before_merge[adapter_name] = weight[ids]
            weight.index_copy_(0, ids, rows[adapter_name])
            self.merged_adapters.append(adapter_name)

    def unmerge(self) -> None:
        """Puts the rows that [`merge`] replaced back, bit by bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        weight = self.get_base_layer().weight.data
        while self.merged_adapters:
            adapter_name = self.merged_adapters.pop()
            ids = self.be_token_ids[adapter_name].to(weight.device)
            weight.index_copy_(0, ids, self._rows_before_merge.pop(adapter_name).to(weight.device))
