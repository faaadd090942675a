"""How a prompt P is read: from a file, or from the folder of a skill as coding agents have them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..files import is_blank, parse_json, read_text
from .messages import PROMPT_FILES, check_prompt


SKILL_FILE = "SKILL.md"
_ALLOWED = (
    "a .txt or .md file with the system prompt, a .json file with a list of chat messages, or a folder with a "
    + SKILL_FILE
)
# What looks like a link in code is none
_CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]*`", re.MULTILINE | re.DOTALL)
# Not those of images
_LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(\s*<?([^)\s>]+)[^)\n]*\)")


def load_prompt(path: str | os.PathLike) -> str | list[dict[str, str]]:
    """
    Read a prompt P.

    Args:
        path (`str` or `os.PathLike`):
            `.txt` or `.md`: a system prompt in UTF-8; the newline that ends the file is not part of it. `.json`: a list of
            chat messages (`[{"role": ..., "content": ...}, ...]`) in front of the user's turn: an optional system message
            and worked examples as user and assistant messages. A folder: a skill, whose text is that of its `SKILL.md` and,
            after it, of the markdown files in the folder that it links, or that those link, each once, in the order of the
            links, and with its name as a heading. Links to the web and to other kinds of files are not followed.

    Returns:
        `str` or `list[dict]`: what [`PromptRenderer`] takes as its `prompt`.

    Raises:
        `FileNotFoundError`: if there is no such file, or none that a skill links.
        `ValueError`: if the file is no usable prompt; one sentence says why.
    """
    path = Path(path)
    if (path / SKILL_FILE).is_file():
        text = _read_skill(path)
    elif path.suffix.lower() in PROMPT_FILES:
        text = read_text(path, "prompt file").removesuffix("\n")
    else:
        raise ValueError(f"Cannot read the prompt '{path}': pass {_ALLOWED}.")
    if is_blank(text):
        raise ValueError(f"The prompt file '{path}' is empty: there is nothing to compress.")
    if path.suffix.lower() != ".json":
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
        for target in _LINK.findall(_CODE.sub("", text)):
            linked = _linked(folder, name, target)
            if linked is not None and linked not in names:
                names.append(linked)
    return "\n\n".join(texts)


def _linked(folder: Path, name: str, target: str) -> str | None:
    """The markdown file, from the folder on, that a link in another one leads to; `None` for other links."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc or not parts.path.lower().endswith((".md", ".markdown")):
        return None
    linked = Path(os.path.normpath(Path(name).parent / unquote(parts.path)))
    if not (folder / linked).resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"'{folder / name}' links '{target}', which is not in the skill's folder: copy the file there."
        )
    if not (folder / linked).is_file():
        raise FileNotFoundError(f"'{folder / name}' links '{target}', and there is no such file: mend the link.")
    return linked.as_posix()
