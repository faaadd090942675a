"""How a prompt P is read: from a file, or from the folder of a skill as coding agents have them."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt

from ..files import is_blank, parse_json, read_text
from .messages import PROMPT_FILES, SKILL_FILE, check_prompt


_ALLOWED = (
    "a .txt or .md file with the system prompt, a .json file with a list of chat messages, or a folder with a "
    + SKILL_FILE
)


def load_prompt(path: str | os.PathLike) -> str | list[dict[str, str]]:
    """
    Read a prompt P.

    Args:
        path (`str` or `os.PathLike`):
            `.txt` or `.md`: a system prompt in UTF-8; the newline that ends the file is not part of it. `.json`: a list of
            chat messages (`[{"role": ..., "content": ...}, ...]`) in front of the user's turn: an optional system message
            and worked examples as user and assistant messages. A folder with a `SKILL.md`, or that file: a skill. Its text is
            `SKILL.md`, and after it each `.md` file in the folder that it links to, directly or through another file, in the
            order of the links and under its name as a heading. Links to the web and to other kinds of files are not followed.

    Returns:
        `str` or `list[dict]`: what [`PromptRenderer`] takes as its `prompt`.

    Raises:
        `FileNotFoundError`: if there is no such file, or a skill links to one that does not exist.
        `ValueError`: if the file is no usable prompt, or a skill links to a file outside its folder; one sentence says why.
    """
    path = Path(path)
    folder = path.parent if path.name == SKILL_FILE else path
    is_skill = (folder / SKILL_FILE).is_file()
    if is_skill:
        text = _read_skill(folder)
    elif path.suffix.lower() in PROMPT_FILES:
        text = read_text(path, "prompt file").removesuffix("\n")
    else:
        missing = "" if path.exists() else ", which does not exist"
        raise ValueError(f"Cannot read the prompt '{path}'{missing}: pass {_ALLOWED}.")
    if is_blank(text):
        raise ValueError(f"The prompt file '{path}' is empty: there is nothing to compress.")
    if is_skill or path.suffix.lower() != ".json":
        if _is_message_list(text):
            raise ValueError(f"The prompt file '{path}' holds chat messages in JSON: rename it to .json.")
        check_prompt(text, f"The prompt file '{path}'")
        return text
    messages = parse_json(text, f"the prompt file '{path}'")
    if isinstance(messages, str):
        raise ValueError(f"The prompt file '{path}' holds one JSON string: save the text as a .txt file instead.")
    return check_prompt(messages, f"The prompt file '{path}'")


def _is_message_list(text: str) -> bool:
    if not text.lstrip().startswith("["):
        return False
    try:
        messages = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return bool(messages) and all(
        isinstance(message, dict) and {"role", "content"} <= message.keys() for message in messages
    )


def _read_skill(folder: Path) -> str:
    names, texts = [SKILL_FILE], []
    for name in names:  # which grows
        text = read_text(folder / name, "file of the skill").strip("\n")
        texts.append(text if name == SKILL_FILE else f"## {name}\n\n{text}")
        for target in _links(text):
            linked = _linked(folder, name, target)
            if linked is not None and linked not in names:
                names.append(linked)
    unread = sorted({path.relative_to(folder).as_posix() for path in folder.rglob("*.md")} - set(names))
    if unread:
        warnings.warn(
            f"The prompt is without {', '.join(unread)}: nothing in the skill links there. Add links, as in [more](more.md), if it "
            "belongs to the prompt.",
            stacklevel=3,
        )
    return "\n\n".join(texts)


def _links(text: str) -> list[str]:
    """Where the links of a markdown text lead to, in order; those in code are none."""
    blocks = MarkdownIt("commonmark").parse(text)
    parts = [part for block in blocks for part in block.children or []]
    return [str(part.attrs["href"]) for part in parts if part.type == "link_open"]


def _linked(folder: Path, name: str, target: str) -> str | None:
    """The markdown file, from the folder on, that a link in another one leads to; `None` for other links."""
    try:
        parts = urlsplit(target)
    except ValueError:  # such as https://[your-domain]/
        return None
    if parts.scheme or parts.netloc or not parts.path.lower().endswith(".md"):
        return None
    told = f"'{folder / name}' links to '{target}', which"
    root = os.path.realpath(folder)
    path = os.path.realpath((folder / name).parent / unquote(parts.path).replace("\0", ""))
    if not Path(path).is_relative_to(root):
        raise ValueError(f"{told} is not in the skill's folder: copy the file there.")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{told} does not exist: fix the link.")
    return Path(path).relative_to(root).as_posix()
