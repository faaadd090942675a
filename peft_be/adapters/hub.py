"""Adapters on the Hub: one in a repository, or many, each in a folder of its name."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from peft import PeftModel

from ..files import read_json, write_json
from .card import CARD_FILE, REPOSITORY, TAGS, body_of, is_unedited, signed, write_card
from .folder import ADAPTER_FILES, CONFIG_FILE, REPORT_FILE, read_config, read_report


# Where a LoRA adapter is next to a native one
LORA_FOLDER = "lora"


def find_adapter(name: str | os.PathLike) -> Path:
    """
    The folder of an adapter: a folder of this machine, or else downloaded from the Hub.

    Args:
        name (`str` or `os.PathLike`): a folder, `user/repo`, or `user/repo/folder` of a repository with many adapters.

    Raises:
        `FileNotFoundError`: there is neither such a folder nor such a repository.
        `OSError`: the Hub cannot be reached.
    """
    path = Path(name)
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+(/[\w.-]+)?", str(name)):
        return path
    user, repo, *folder = str(name).split("/")
    patterns = ["/".join([*folder, file]) for file in (*ADAPTER_FILES, REPORT_FILE)]
    try:
        local = Path(snapshot_download(f"{user}/{repo}", allow_patterns=patterns))
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"There is no folder '{name}', and no repository '{user}/{repo}' on the Hub that you may read: check the name."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise OSError(
            f"There is no folder '{name}', and the Hub cannot be asked for a repository of that name: check path and "
            "network."
        ) from error
    return local.joinpath(*folder)


def hub_revision(directory: Path) -> str | None:
    """The commit of a folder that [`find_adapter`] downloaded, `None` for any other folder."""
    found = re.search(r"/snapshots/([0-9a-f]{40})(/|$)", directory.as_posix())
    return found and found[1]


@dataclass(frozen=True)
class PushPlan:
    """
    What [`push_adapters`] would upload.

    Attributes:
        files (`dict[str, int]`): the files' sizes in bytes, by their paths in the repository.
        card (`str`): the card that readers see first, with its metadata.
    """

    files: dict[str, int]
    card: str


def plan_push(
    adapters: str | os.PathLike | PeftModel, repo_id: str, base_model: str | None = None, license: str | None = None
) -> PushPlan:
    """
    What [`push_adapters`] would upload, for the same arguments and with the same errors. Nothing is uploaded, and no
    network is needed.
    """
    with staged_adapters(adapters, repo_id, base_model, license) as staged:
        write_collection_card(staged, repo_id, license)
        return plan_of(staged.folder)


def push_adapters(
    adapters: str | os.PathLike | PeftModel,
    repo_id: str,
    base_model: str | None = None,
    license: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
) -> str:
    """
    Upload an adapter to the Hub, or all adapters in the subfolders of a folder, as `compress_prompts` leaves it.

    Only what makes an adapter is uploaded. Neither the prompt nor a query is in it, but the row was made to reproduce what the
    prompt does: see the card.

    Args:
        adapters (`str`, `os.PathLike` or [`~peft.PeftModel`]):
            The adapter's folder, a folder of such folders, or a model, whose active adapter is meant.
        repo_id (`str`): `user/repo`; it is created if there is none.
        base_model (`str`, *optional*):
            The base model's Hub id. Needed where the adapter was trained on a local folder, which readers do not have.
        license (`str`, *optional*): for the card, as in the Hub's list of licences, for instance `apache-2.0`.
        private (`bool`, *optional*): whether a new repository is private; `None` is the account's default.
        token (`str`, *optional*): the access token; `None` is that of `hf auth login` or `HF_TOKEN`.
        revision (`str`, *optional*): the branch; `None` is the main one.
        commit_message (`str`, *optional*): `None` says how many adapters were uploaded.

    Returns:
        `str`: the address of the upload.

    Raises:
        `FileNotFoundError`: there is no adapter in the folder.
        `ValueError`: the base model is a local folder, and no `base_model` was given; or the repository has a LoRA adapter
            in the same place, or one next to it that would be left as it is.
        `OSError`: the Hub refuses or cannot be reached.
    """
    with staged_adapters(adapters, repo_id, base_model, license) as staged:
        write_collection_card(staged, repo_id, license)
        return upload(staged, repo_id, private, token, revision, commit_message)


@dataclass(frozen=True)
class Staged:
    """
    A folder with all that is to be uploaded.

    Attributes:
        folder (`Path`): the folder.
        source (`Path`): where its adapters were taken from.
        names (`list[str]`): the adapters' folders in both; `[""]` for one without a folder of its own.
    """

    folder: Path
    source: Path
    names: list[str]


def plan_of(folder: Path) -> PushPlan:
    """The plan of an upload, from the folder with its files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    return PushPlan(sizes, (folder / CARD_FILE).read_text(encoding="utf-8"))


def upload(
    staged: Staged,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload a folder with adapters; arguments, result and errors as in [`push_adapters`]."""
    api = HfApi(token=token)
    message = commit_message or f"Upload {'adapter' if staged.names == [''] else f'{len(staged.names)} adapters'}"
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        _check_method(staged.folder, repo_id, api, revision)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=staged.folder, commit_message=message, revision=revision
        )
    except HfHubHTTPError as error:
        raise OSError(f"The Hub refused the upload to '{repo_id}': {str(error).strip().splitlines()[0]}") from error
    return str(commit.commit_url)


def _check_method(folder: Path, repo_id: str, api: HfApi, revision: str | None) -> None:
    """
    Refuse to put a LoRA adapter where the repository has a native one, or the other way round, and to leave an earlier
    LoRA adapter next to a native one that is replaced.
    """
    try:
        there = set(api.list_repo_files(repo_id, revision=revision))
    except RevisionNotFoundError:
        return  # uploading says so
    own = sorted(path.relative_to(folder).as_posix() for path in folder.rglob(CONFIG_FILE))
    # Of a repository with many adapters, all have one layout
    path = next((path for path in own if path in there), None)
    if path is None:
        return
    ours, theirs = (
        "LoRA" if read_json(file, "adapter configuration", dict).get("peft_type") == "LORA" else "native"
        for file in (folder / path, Path(api.hf_hub_download(repo_id, path, revision=revision)))
    )
    if ours != theirs:
        both = ", or both with --format native --format lora" if theirs == "native" else ""
        raise ValueError(
            f"'{repo_id}' has a {theirs} adapter where the {ours} one would go ({path}): push to another repository{both}."
        )
    places = [f"{config.removesuffix(CONFIG_FILE)}{LORA_FOLDER}/" for config in own if config in there]
    left = [place for place in places if f"{place}{CONFIG_FILE}" in there and f"{place}{CONFIG_FILE}" not in own]
    if left:
        raise ValueError(
            f"'{repo_id}' also has a LoRA adapter in {left[0]}: push both with --format native --format lora, or its rows stay "
            "those of the earlier adapter."
        )


@contextmanager
def staged_adapters(
    adapters: str | os.PathLike | PeftModel, repo_id: str, base_model: str | None, license: str | None
) -> Iterator[Staged]:
    """
    The adapters that [`push_adapters`] uploads, with the same errors, in a temporary folder. The card of a repository
    with many is not there yet, see [`write_collection_card`].
    """
    with tempfile.TemporaryDirectory() as work:
        if isinstance(adapters, PeftModel):
            name = adapters.active_adapter
            directory = Path(work) / "saved"
            adapters.save_pretrained(directory, selected_adapters=[name])
            directory = directory if name == "default" else directory / name
        else:
            directory = Path(adapters)
        names = [""] if _is_adapter(directory) else sorted(p.name for p in directory.glob("*/") if _is_adapter(p))
        if not names:
            raise FileNotFoundError(
                f"There is no finished adapter in '{directory}', and none in its folders: check the path."
            )
        staged = Path(work) / "staged"
        for name in names:
            _stage(directory / name, staged / name, "/".join([repo_id, *filter(None, [name])]), base_model, license)
        yield Staged(staged, directory, names)


def _is_adapter(folder: Path) -> bool:
    return all((folder / file).is_file() for file in ADAPTER_FILES)


def _stage(folder: Path, target: Path, name: str, base_model: str | None, license: str | None) -> None:
    """A copy of the adapter's files that names the base as readers know it, and the adapter as it is called on the Hub."""
    target.mkdir(parents=True, exist_ok=True)
    config = read_config(folder)
    read_report(folder)
    for file in (*ADAPTER_FILES, REPORT_FILE):
        if (folder / file).is_file():
            _check_own_file(folder / file)
            shutil.copyfile(folder / file, target / file)
    local = str(config.base_model_name_or_path or "")
    if base_model is None and Path(local).is_dir():
        raise ValueError(
            f"The adapter in '{folder}' was trained on the folder '{local}', which nobody else has: pass the base model's Hub id "
            "(--base-model)."
        )
    if base_model is not None:
        config.base_model_name_or_path = base_model
        config.save_pretrained(str(target))
        write_card(target, config)  # leaves a text that was edited as it is
        if (target / REPORT_FILE).is_file():
            report = read_report(target)
            settings = {**report.get("settings", {}), "model": base_model}
            write_json(target / REPORT_FILE, {**report, "model": base_model, "settings": settings})
    card = ModelCard.load(target / CARD_FILE)
    card.data.license = license or card.data.license
    unedited = is_unedited(card.text)
    text = card.text.replace(REPOSITORY, name)
    if base_model is not None and not unedited:  # a text that saving has left as it was
        text = text.replace(f"`{local}`", f"`{base_model}`")
        if Path(local).is_absolute():  # where it lay on this machine
            text = text.replace(local, base_model)
    card.text = signed(body_of(text)) if unedited else text
    card.save(target / CARD_FILE)


def _check_own_file(path: Path) -> None:
    """
    Refuse a link that would upload a file from elsewhere. Links in the Hub's cache lead to its folder `blobs`.
    """
    folder, real = path.parent.resolve(), path.resolve()
    if folder not in real.parents and real.parent.name != "blobs":
        raise ValueError(
            f"'{path}' is a link to '{real}', outside of the adapter's folder: put the file itself there."
        )


def write_collection_card(staged: Staged, repo_id: str, license: str | None, lora: bool = False) -> None:
    """
    Write the card of a repository with many adapters. A single adapter has a card already, which stays.

    Args:
        staged ([`Staged`]): the adapters, each with its card.
        repo_id (`str`): the repository.
        license (`str`, *optional*): for the card.
        lora (`bool`, *optional*, defaults to `False`): the adapters are LoRA adapters without native ones.
    """
    if staged.names == [""]:
        return
    cards = {name: ModelCard.load(staged.folder / name / CARD_FILE) for name in staged.names}
    data = ModelCardData(
        base_model=sorted({card.data.base_model for card in cards.values()}),
        library_name="peft",
        pipeline_tag="text-generation",
        tags=sorted({*TAGS, *(tag for card in cards.values() for tag in card.data.tags if tag == "lora")}),
        license=license,
    )
    lines = [f"- [`{name}`]({name}): {card.text.strip().splitlines()[0].lstrip('# ')}" for name, card in cards.items()]
    use = (
        "Each folder's card says how to load its LoRA adapter."
        if lora
        else _USE.format(repo=repo_id, first=staged.names[0])
    )
    body = _COLLECTION.format(count=len(cards), use=use, adapters="\n".join(lines))
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}").save(staged.folder / CARD_FILE)


_COLLECTION = """# {count} system prompts in learned tokens

Each folder holds an adapter made with [PEFT](https://github.com/huggingface/peft) and `peft_be`, which stands for a system prompt
(Behavior-Equivalent token, [arXiv 2511.23271](https://arxiv.org/abs/2511.23271)).

{use}

{adapters}

The rows were made to reproduce what the prompts do: treat the prompts as published with them.
"""

_USE = """```python
import peft_be  # registers BE_TOKEN with PEFT: without it, loading ends in KeyError: 'BE_TOKEN'

model, tokenizer = peft_be.load_adapter("{repo}/{first}")
```"""
