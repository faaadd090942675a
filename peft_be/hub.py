"""Adapters on the Hub: one in a repository, or many, each in a folder of its name."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError


# What an adapter consists of. Nothing else of its folder is uploaded
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md", "training.json")


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
    patterns = ["/".join([*folder, file]) for file in ADAPTER_FILES]
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


def push_adapters(
    directory: str | os.PathLike,
    repo_id: str,
    base_model: str | None = None,
    license: str | None = None,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """
    Upload an adapter to the Hub, or all adapters in the subfolders of a folder, as `compress_prompts` leaves it.

    Only what makes an adapter is uploaded. Neither the prompt nor a query is in it, but the row was made to reproduce what the
    prompt does: see the card.

    Args:
        directory (`str` or `os.PathLike`): the adapter's folder, or a folder of such folders.
        repo_id (`str`): `user/repo`; it is created if there is none.
        base_model (`str`, *optional*):
            The base model's Hub id. Needed where the adapter was trained on a local folder, which readers do not have.
        license (`str`, *optional*): for the card, as in the Hub's list of licences, for instance `apache-2.0`.
        private (`bool`, *optional*): whether a new repository is private; `None` is the account's default.
        token (`str`, *optional*): the access token; `None` is that of `hf auth login` or `HF_TOKEN`.

    Returns:
        `str`: the address of the upload.

    Raises:
        `FileNotFoundError`: there is no adapter in the folder.
        `ValueError`: the base model is a local folder, and no `base_model` was given.
        `OSError`: the Hub refuses or cannot be reached.
    """
    directory = Path(directory)
    names = [""] if _is_adapter(directory) else sorted(p.name for p in directory.glob("*/") if _is_adapter(p))
    if not names:
        raise FileNotFoundError(
            f"There is no finished adapter in '{directory}', and none in its folders: check the path."
        )
    with tempfile.TemporaryDirectory() as staged:
        staged = Path(staged)
        for name in names:
            _stage(directory / name, staged / name, base_model, license)
        if names != [""]:
            _write_collection_card(staged, names, repo_id, license)
        api = HfApi(token=token)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            what = "adapter" if names == [""] else f"{len(names)} adapters"
            commit = api.upload_folder(repo_id=repo_id, folder_path=staged, commit_message=f"Upload {what}")
        except HfHubHTTPError as error:
            raise OSError(
                f"The Hub refused the upload to '{repo_id}': {str(error).strip().splitlines()[0]}"
            ) from error
    return str(commit.commit_url)


def _is_adapter(folder: Path) -> bool:
    return all((folder / file).is_file() for file in ADAPTER_FILES)


def _stage(folder: Path, target: Path, base_model: str | None, license: str | None) -> None:
    """A copy of the adapter's files that names the base as readers know it."""
    target.mkdir(parents=True, exist_ok=True)
    for file in ADAPTER_FILES:
        shutil.copyfile(folder / file, target / file)
    config = json.loads((target / "adapter_config.json").read_text())
    local = config["base_model_name_or_path"]
    if base_model is None and Path(local).is_dir():
        raise ValueError(
            f"The adapter in '{folder}' was trained on the folder '{local}', which nobody else has: pass the base model's Hub id "
            "(--base-model)."
        )
    card = ModelCard.load(target / "README.md")
    if license is not None:
        card.data.license = license
    if base_model is not None:
        config["base_model_name_or_path"] = card.data.base_model = base_model
        (target / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        card.text = card.text.replace(local, base_model)
        report = json.loads((target / "training.json").read_text())
        report["model"] = report["settings"]["model"] = base_model
        (target / "training.json").write_text(json.dumps(report, indent=2) + "\n")
    card.save(target / "README.md")


def _write_collection_card(staged: Path, names: list[str], repo_id: str, license: str | None) -> None:
    cards = {name: ModelCard.load(staged / name / "README.md") for name in names}
    data = ModelCardData(
        base_model=sorted({card.data.base_model for card in cards.values()}),
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["peft_be", "behavior-equivalent-token", "prompt-compression"],
        license=license,
    )
    lines = [f"- [`{name}`]({name}): {card.text.strip().splitlines()[0].lstrip('# ')}" for name, card in cards.items()]
    body = _COLLECTION.format(count=len(names), repo=repo_id, first=names[0], adapters="\n".join(lines))
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}").save(staged / "README.md")


_COLLECTION = """# {count} system prompts in learned tokens

Each folder holds an adapter made with [PEFT](https://github.com/huggingface/peft) and `peft_be`, which stands for a system prompt
(Behavior-Equivalent token, [arXiv 2511.23271](https://arxiv.org/abs/2511.23271)):

```python
import peft_be  # registers BE_TOKEN with PEFT: without it, PEFT raises KeyError: 'BE_TOKEN'

model, tokenizer = peft_be.load_adapter("{repo}/{first}")
```

{adapters}

The rows were made to reproduce what the prompts do: treat the prompts as published with them.
"""
