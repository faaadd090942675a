"""Adapters on the Hub as LoRA adapters, for readers without this package: alone, or next to the native ones."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import ModelCard

from ..adapters.card import CARD_FILE, TAGS, body_of, is_unedited, signed
from ..adapters.folder import ADAPTER_FILES, CONFIG_FILE, REPORT_FILE, WEIGHTS_FILE, read_config
from ..adapters.hub import LORA_FOLDER, PushPlan, Staged, plan_of, staged_adapters, upload, write_collection_card
from ..files import read_json, write_json
from .lora import TEMPLATE_FILE, TOKEN_FILE, LoraToken, export_lora
from .lora_card import lora_body, lora_section
from .tokens import ADAPTER_NAME


def push_lora(
    adapters: str | os.PathLike,
    repo_id: str,
    native: bool = False,
    base_model: str | None = None,
    license: str | None = None,
    private: bool | None = None,
    **loading,
) -> str:
    """
    Upload an adapter to the Hub as a LoRA adapter, or all adapters in the subfolders of a folder.

    A LoRA adapter alone is at the top of the repository (or of its folder there), where PEFT, transformers and vLLM look for it.
    Next to the native adapter, it is in the folder `lora`.

    Args:
        adapters (`str` or `os.PathLike`): the adapter's folder, or a folder of such folders.
        repo_id (`str`): `user/repo`; it is created if there is none.
        native (`bool`, *optional*, defaults to `False`): whether the native adapter is uploaded, too.
        base_model (`str`, *optional*), license (`str`, *optional*), private (`bool`, *optional*):
            As in [`push_adapters`].
        loading: `model`, `allow_other_weights`, `dtype` and `device` as in [`export_lora`], which loads the base model.

    Returns:
        `str`: the address of the upload.

    Raises:
        `FileNotFoundError`, `ValueError`, `OSError`: as in [`push_adapters`] and [`export_lora`].
    """
    with _staged_lora(adapters, repo_id, native, base_model, license, **loading) as staged:
        return upload(staged, repo_id, private)


def plan_lora_push(
    adapters: str | os.PathLike,
    repo_id: str,
    native: bool = False,
    base_model: str | None = None,
    license: str | None = None,
    **loading,
) -> PushPlan:
    """
    What [`push_lora`] would upload, for the same arguments and with the same errors. Nothing is uploaded, and no network
    is needed if the base model is on this machine.
    """
    with _staged_lora(adapters, repo_id, native, base_model, license, **loading) as staged:
        return plan_of(staged.folder)


@contextmanager
def _staged_lora(
    adapters: str | os.PathLike, repo_id: str, native: bool, base_model: str | None, license: str | None, **loading
) -> Iterator[Staged]:
    """What is to be uploaded: the LoRA adapters, with or instead of the native ones."""
    with staged_adapters(adapters, repo_id, base_model, license) as staged, tempfile.TemporaryDirectory() as work:
        names = [name or staged.source.resolve().name for name in staged.names]
        if not all(ADAPTER_NAME.fullmatch(name) for name in names):
            # Nothing that is uploaded is named after these
            names = [str(number) for number in range(len(names))]
        own = dict(zip(staged.names, names))
        exported = Path(work) / "lora"
        # From where they lie, for there the base model is called as it is called here
        tokens = export_lora({own[name]: staged.source / name for name in own}, exported, **loading)
        for name, folder in own.items():
            _add_lora(exported / folder, staged.folder / name, tokens[folder], repo_id, name, native)
        write_collection_card(staged, repo_id, license, lora=not native)
        yield staged


def _add_lora(exported: Path, folder: Path, token: LoraToken, repo_id: str, name: str, native: bool) -> None:
    """Put an exported adapter into the folder of its native one or, if that is not wanted, in place of it."""
    config = read_config(folder)
    base = str(config.base_model_name_or_path)
    card = ModelCard.load(folder / CARD_FILE)
    # To the native card, and to one that its author edited, a section is added; else the LoRA adapter alone gets a card of its own
    section = lora_section(repo_id, name, f"{LORA_FOLDER}/" if native else "", base, token, exported)
    unedited = is_unedited(card.text)
    if native:
        before, heading, after = card.text.partition("\n## Training\n")
        text = f"{before.rstrip()}\n\n{section}\n{heading}{after}"
        card.text = signed(body_of(text)) if unedited else text
    else:
        card.text = lora_body(config, section) if unedited else f"{card.text.rstrip()}\n\n{section}\n"
        for file in (*ADAPTER_FILES, REPORT_FILE):
            (folder / file).unlink(missing_ok=True)
    card.data.tags = sorted({*TAGS, *(card.data.tags or []), "lora"})
    card.save(folder / CARD_FILE)
    target = folder / LORA_FOLDER if native else folder
    target.mkdir(exist_ok=True)
    for file in (CONFIG_FILE, WEIGHTS_FILE, TOKEN_FILE, TEMPLATE_FILE):
        if (exported / file).is_file():
            shutil.copyfile(exported / file, target / file)
    for file, key in ((CONFIG_FILE, "base_model_name_or_path"), (TOKEN_FILE, "base_model")):
        write_json(target / file, {**read_json(target / file, "exported adapter", dict), key: base})
