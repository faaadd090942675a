"""The adapter that a run starts from, such as the one for the prompt's previous version."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..adapters.base_weights import same_weights, weights_fingerprint
from ..adapters.folder import WEIGHTS_FILE, read_report
from ..adapters.hub import hub_revision
from ..adapters.load import read_be_adapter
from ..figures import rows_in_words
from ..prompting import check_tokenizer
from ..prompting.fingerprints import sha256
from ..tuner import BETokenConfig
from ..tuner.checks import read_rows
from ..tuner.provenance import Provenance
from .config import CompressConfig
from .folder import RunFolder


@dataclass(frozen=True)
class EarlierAdapter:
    """
    The adapter that a run starts from.

    Attributes:
        name (`str`): its folder or its name on the Hub, as it was given.
        config ([`BETokenConfig`]): its configuration.
        rows (`torch.Tensor` of shape `[j, d]`): its [BE] rows.
        revision (`str`, *optional*): its commit on the Hub.
        seen_queries (`list[str]`): the keys of the queries that it was trained on, where it records them.
    """

    name: str
    config: BETokenConfig
    rows: torch.Tensor
    revision: str | None
    seen_queries: list[str]

    @property
    def steps(self) -> int:
        """The steps of its training, 0 if they are not recorded."""
        return int(Provenance.of(self.config).training.get("steps") or 0)

    @property
    def record(self) -> dict[str, str]:
        """What the new adapter says of it."""
        found = {"adapter": self.name, "revision": self.revision, "rows_sha256": sha256(self.rows.tolist())}
        return {name: value for name, value in found.items() if value is not None}

    def confirm(self, run: RunFolder, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """
        Check that the rows belong to the base model of a run, and are those that it was started with.

        Raises:
            `ValueError`: they do not, or are not.
        """
        # Its template may be another one: rows that start from there learn with the new one
        check_tokenizer(self.config, tokenizer, allow_template_change=True)
        recorded = Provenance.of(self.config).base_weights
        width = model.get_input_embeddings().weight.shape[1]
        if self.rows.shape[1] != width or not (recorded is None or same_weights(recorded, weights_fingerprint(model))):
            raise ValueError(
                f"'{self.name}' was trained on another base model, or on other weights of this one, and its rows mean "
                "nothing here: leave out from_adapter, or give the base model that it was trained on."
            )
        run.confirm("from_sha256", self.record["rows_sha256"], "adapter to start from")


def earlier_adapter(config: CompressConfig, output_dir: str | os.PathLike) -> EarlierAdapter | None:
    """
    Read the adapter that a run is to start from, before its base model is loaded; `None` if there is none.

    Raises:
        `FileNotFoundError`: there is no such adapter.
        `ValueError`: it is damaged, or its rows cannot be the start of those that the run is asked for.
        `OSError`: the Hub cannot be reached.
    """
    name, k = config.from_adapter, config.num_be_tokens
    if name is None:
        return None
    directory, earlier = read_be_adapter(name)
    if directory.resolve() == Path(output_dir).resolve():
        raise ValueError(
            f"'{name}' is the output folder, too, where an interrupted run could not find it again: give from_adapter "
            "and output_dir different folders."
        )
    if earlier.num_be_tokens > k:
        raise ValueError(
            f"'{name}' has {rows_in_words(earlier.num_be_tokens)}, which are more than num_be_tokens={k}, and none can "
            f"be left out: set num_be_tokens to {earlier.num_be_tokens} or more."
        )
    if earlier.slot != config.slot:
        raise ValueError(
            f"The rows of '{name}' learned in slot '{earlier.slot}', and slot is '{config.slot}' now: use the same slot, or "
            "leave out from_adapter."
        )
    if earlier.num_be_tokens == k and config.init != "auto":
        raise ValueError(
            f"All {rows_in_words(k)} start from '{name}', so that init='{config.init}' says nothing: leave it out (the paper's "
            "settings have one), or set num_be_tokens higher."
        )
    rows = read_rows(directory / WEIGHTS_FILE, earlier)["be"]
    seen = read_report(directory).get("seen_queries", [])
    return EarlierAdapter(name, earlier, rows, hub_revision(directory), seen)
