"""[BE] in requests to a vLLM server of the unmodified base model, which takes embeddings instead of text."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ..adapters.folder import CONFIG_FILE, WEIGHTS_FILE
from ..adapters.load import read_be_adapter
from ..prompting import PromptRenderer, check_tokenizer
from ..prompting.messages import check_query
from ..tuner import BETokenConfig
from ..tuner.checks import read_rows


# How often reading is tried again when an adapter is replaced meanwhile
_READS = 3


@dataclass
class PromptEmbeds:
    """
    A prompt's [BE], as vLLM takes it. Neither the base model nor vLLM is needed to make requests.

    The server needs `--enable-prompt-embeds`, which is for users that are trusted. Its prefix cache is used as for text. The
    cache's keys leave out which positions of a request are embeddings and which are text (vLLM issue 56655), so that two
    requests can share a key only if one has text where the other has a row of zeros: such rows are refused here.

    Args:
        config ([`BETokenConfig`]): the adapter's configuration.
        rows (`torch.Tensor`): what the first layer reads at the positions of [BE], `[k, d]`.

    Raises:
        `ValueError`: a row is zero or not finite.

    Example:

    ```py
    >>> from openai import OpenAI
    >>> from peft_be.serving.vllm import PromptEmbeds

    >>> pirate = PromptEmbeds.from_pretrained("my-prompts/pirate")
    >>> client = OpenAI(base_url="http://localhost:8000/v1", api_key="none")
    >>> client.chat.completions.create(model="base", messages=pirate.messages("Where is the rum?"))
    ```
    """

    config: BETokenConfig
    rows: torch.Tensor
    _renderer: PromptRenderer | None = field(default=None, init=False, repr=False)

    def __post_init__(self):
        if not self.rows.isfinite().all() or not self.rows.any(-1).all():
            raise ValueError("A [BE] row is zero or not finite: the adapter is damaged or was not trained.")

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike) -> PromptEmbeds:
        """
        Read an adapter, and nothing of its base model.

        Args:
            directory (`str` or `os.PathLike`):
                The adapter's folder, or its name on the Hub: `user/repo`, or `user/repo/folder`.

        Raises:
            `FileNotFoundError`: there is no adapter.
            `ValueError`: it is damaged, of another method, or holds an [AE] row only.
        """
        folder, config = read_be_adapter(directory)
        rows = read_rows(folder / WEIGHTS_FILE, config)["be"]
        return cls(config, rows * config.embed_scale)

    def messages(self, query: str | list[dict[str, str]]) -> list[dict]:
        """
        The messages of a chat request, for `/v1/chat/completions` and for `LLM.chat`: the system message is [BE], and the
        kept text if there is one. vLLM joins the two by a line break, as in training, where it passes contents to the
        chat template as strings: for a template that reads lists of parts, too (vLLM's log says "openai"), start the
        server with `--chat-template-content-format string`.

        Args:
            query (`str` or `list[dict]`): the user's turn, or user and assistant messages that end in it.

        Raises:
            `ValueError`: `query` is not such a query, or [BE] stands in slot `prefix`, where no message can be.
        """
        if self.config.slot != "system":
            raise ValueError(
                f"This adapter was trained with slot '{self.config.slot}', where no chat message can be: use prompt_embeds()."
            )
        parts = [{"type": "prompt_embeds", "data": encode(self.rows)}]
        if self.config.kept_text is not None:
            parts.append({"type": "text", "text": self.config.kept_text})
        return [{"role": "system", "content": parts}, *check_query(query)]

    def prompt_embeds(
        self,
        query: str | list[dict[str, str]],
        tokenizer: PreTrainedTokenizerBase,
        embedding: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """
        The whole input as embeddings, `[n, d]`: for `/v1/completions`, encoded by [`encode`], and for `LLM.generate`.

        The text is rendered as in training: unlike the server, this reads no special tokens in what users write.

        Args:
            query (`str` or `list[dict]`): the user's turn, or user and assistant messages that end in it.
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the base model's.
            embedding (`Callable`): ids to embeddings, as the base model's `get_input_embeddings()`.

        Raises:
            `ValueError`: `query` is not such a query, or the tokenizer or chat template is not the one of the training.
        """
        if self._renderer is None or self._renderer.tokenizer is not tokenizer:
            # Half a second for a large vocabulary: not with every request
            check_tokenizer(self.config, tokenizer)
            self._renderer = PromptRenderer.for_adapter(self.config, tokenizer)
        written = self._renderer.be(query)
        places = torch.tensor([written.index(be_id) for be_id in self._renderer.be_token_ids])
        ids = torch.tensor(written)
        ids[places] = 0  # [BE] may have ids beyond the embedding
        weight = getattr(embedding, "weight", None)
        with torch.no_grad():
            embeds = embedding(ids if weight is None else ids.to(weight.device)).clone()
        embeds[places] = self.rows.to(embeds)
        return embeds


class PromptDirectory(Mapping[str, PromptEmbeds]):
    """
    The prompts of a server: a folder with an adapter in each subfolder, as `peft-be compress-many` leaves it. Each is read
    when it is first asked for, so that thousands cost nothing, and changes are found while the server runs: an adapter
    that is new, was replaced or deleted. A look-up reads the two small files of the adapter to see that they are still
    the same.

    Args:
        directory (`str` or `os.PathLike`): the folder.

    Raises:
        `FileNotFoundError`: there is no such folder.
        `KeyError`: by a look-up: there is no adapter of that name, or no longer.
        `ValueError`: by a look-up: the adapter is damaged.

    Example:

    ```py
    >>> prompts = PromptDirectory("my-prompts")
    >>> client.chat.completions.create(model="base", messages=prompts["refunds"].messages("Where is my money?"))
    ```
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise FileNotFoundError(f"There is no folder '{directory}' with adapters: check the path.")
        # By name: a digest of the files that were read, and what was in them
        self._prompts: dict[str, tuple[list[bytes], PromptEmbeds]] = {}

    def __getitem__(self, name: str) -> PromptEmbeds:
        # A name may come from a request: it must not lead out of the folder
        known = name in self._prompts
        if not known and name not in set(self):
            raise KeyError(f"There is no adapter '{name}' in '{self.directory}'.")
        for _ in range(_READS):
            before = self._digest(name)
            if before is None:
                self._prompts.pop(name, None)
                raise KeyError(f"There is no adapter '{name}' in '{self.directory}'{' any more' if known else ''}.")
            if known and self._prompts[name][0] == before:
                return self._prompts[name][1]
            self._prompts.pop(name, None)
            known, prompt = False, PromptEmbeds.from_pretrained(self.directory / name)
            if self._digest(name) == before:
                self._prompts[name] = before, prompt
                return prompt
        raise ValueError(
            f"The adapter '{self.directory / name}' changes while it is read: ask again when it is written."
        )

    def _digest(self, name: str) -> list[bytes] | None:
        """What tells an adapter's files from earlier ones; `None` where they are gone."""
        digests = []
        try:
            for file in (CONFIG_FILE, WEIGHTS_FILE):
                digest = hashlib.sha256()
                with (self.directory / name / file).open("rb") as content:
                    while block := content.read(2**20):
                        digest.update(block)
                digests.append(digest.digest())
        except (FileNotFoundError, NotADirectoryError):
            return None
        return digests

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(path.parent.name for path in self.directory.glob(f"*/{CONFIG_FILE}")))

    def __len__(self) -> int:
        return len(list(iter(self)))


def encode(embeds: torch.Tensor) -> str:
    """Embeddings `[n, d]` as vLLM reads them from a request: a file of `torch.save`, in base64."""
    buffer = io.BytesIO()
    # A copy: a part of a tensor would be saved with all the rest of it
    torch.save(embeds.detach().cpu().clone(), buffer)
    return base64.b64encode(buffer.getvalue()).decode()
