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
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from peft import PeftModel

from ..files import write_json
from .card import CARD_FILE, REPOSITORY, TAGS, body_of, is_unedited, signed, write_card
from .folder import ADAPTER_FILES, REPORT_FILE, read_config, read_report


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
    with _staged(adapters, repo_id, base_model, license) as (staged, _):
        files = sorted(path for path in staged.rglob("*") if path.is_file())
        sizes = {path.relative_to(staged).as_posix(): path.stat().st_size for path in files}
        return PushPlan(sizes, (staged / CARD_FILE).read_text(encoding="utf-8"))


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
        `ValueError`: the base model is a local folder, and no `base_model` was given.
        `OSError`: the Hub refuses or cannot be reached.
    """
    with _staged(adapters, repo_id, base_model, license) as (staged, names):
        api = HfApi(token=token)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            message = commit_message or f"Upload {'adapter' if names == [''] else f'{len(names)} adapters'}"
            commit = api.upload_folder(repo_id=repo_id, folder_path=staged, commit_message=message, revision=revision)
        except HfHubHTTPError as error:
            raise OSError(
                f"The Hub refused the upload to '{repo_id}': {str(error).strip().splitlines()[0]}"
            ) from error
    return str(commit.commit_url)


@contextmanager
def _staged(
    adapters: str | os.PathLike | PeftModel, repo_id: str, base_model: str | None, license: str | None
) -> Iterator[tuple[Path, list[str]]]:
    """A folder with all that is to be uploaded, and the adapters' folders in it; `[""]` for one without a folder of its own."""
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
        if names != [""]:
            _write_collection_card(staged, names, repo_id, license)
        yield staged, names


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


def _write_collection_card(staged: Path, names: list[str], repo_id: str, license: str | None) -> None:
    cards = {name: ModelCard.load(staged / name / CARD_FILE) for name in names}
    data = ModelCardData(
        base_model=sorted({card.data.base_model for card in cards.values()}),
        library_name="peft",
        pipeline_tag="text-generation",
        tags=TAGS,
        license=license,
    )
    lines = [f"- [`{name}`]({name}): {card.text.strip().splitlines()[0].lstrip('# ')}" for name, card in cards.items()]
    body = _COLLECTION.format(count=len(names), repo=repo_id, first=names[0], adapters="\n".join(lines))
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}").save(staged / CARD_FILE)


_COLLECTION = """# {count} system prompts in learned tokens

Each folder holds an adapter made with [PEFT](https://github.com/huggingface/peft) and `peft_be`, which stands for a system prompt
(Behavior-Equivalent token, [arXiv 2511.23271](https://arxiv.org/abs/2511.23271)):

```python
import peft_be  # registers BE_TOKEN with PEFT: without it, loading ends in KeyError: 'BE_TOKEN'

model, tokenizer = peft_be.load_adapter("{repo}/{first}")
```

{adapters}

The rows were made to reproduce what the prompts do: treat the prompts as published with them.
"""
