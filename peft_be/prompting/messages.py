"""What a prompt P and a query may look like."""

from __future__ import annotations

import os
from typing import Any

from ..files import is_blank, shown


# The limit of a message, about a million tokens: more than models' contexts, and counting the tokens of more takes minutes
MAX_CHARACTERS = 2**22
# Longest text that may be a path
MAX_PATH = 1024
# The files of a prompt: a system text, or chat messages
PROMPT_FILES = (".txt", ".md", ".json")
SKILL_FILE = "SKILL.md"


def check_messages(messages: Any, name: str = "The prompt") -> list[dict[str, str]]:
    """
    Check a list of chat messages and return it reduced to `role` and `content`.

    Args:
        messages (`list[dict]`):
            Messages with a `role` (`"system"`, only as the first, `"user"` or `"assistant"`) and a text `content` of
            up to 4 million characters.
            Further keys may only be there with the value `None`, as they are in datasets.
        name (`str`, *optional*, defaults to `"The prompt"`):
            How error messages call the list.

    Raises:
        `ValueError`: if `messages` is anything else; the sentence says what and where.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError(f"{name} must be a non-empty list of chat messages with 'role' and 'content'.")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise ValueError(f"{name}: message {number} must be an object with 'role' and 'content'.")
        extra = [key for key, value in message.items() if key not in ("role", "content") and value is not None]
        if extra:
            raise ValueError(
                f"{name}: message {number} has the key {shown(extra[0])}; only 'role' and 'content' are used."
            )
        if message["role"] not in ("system", "user", "assistant"):
            raise ValueError(
                f"{name}: message {number} has the role {shown(message['role'])}; use 'system', 'user' or 'assistant'."
            )
        if message["role"] == "system" and number > 1:
            raise ValueError(f"{name}: message {number} is a system message; only the first message can be one.")
        if not isinstance(message["content"], str):
            kind = "a list of parts" if isinstance(message["content"], list) else type(message["content"]).__name__
            raise ValueError(f"{name}: the content of message {number} must be text, and is {kind}.")
        if (length := len(message["content"])) > MAX_CHARACTERS:
            raise ValueError(
                f"{name}: message {number} has {length:,} characters, and more than {MAX_CHARACTERS:,} fit no model."
            )
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def check_prompt(prompt: Any, name: str = "The prompt") -> list[dict[str, str]]:
    """
    Check a prompt P and return it as the list of messages in front of the user's turn.

    Args:
        prompt (`str` or `list[dict]`):
            A system text, or messages that do not end in a user's turn: that turn is the query.
        name (`str`, *optional*, defaults to `"The prompt"`):
            How error messages call it.

    Raises:
        `ValueError`: if it is empty or not such a prompt.
    """
    if isinstance(prompt, os.PathLike) or _names_a_file(prompt):
        raise ValueError(
            f"{name} is the path '{prompt}' and not what stands there: read it with peft_be.load_prompt(path)."
        )
    messages = check_messages([{"role": "system", "content": prompt}] if isinstance(prompt, str) else prompt, name)
    if all(is_blank(message["content"]) for message in messages):
        raise ValueError(f"{name} is empty: there is nothing to compress.")
    if messages[-1]["role"] == "user":
        raise ValueError(
            f"{name} ends in a user message, but the query is the user's next turn: end it in an assistant message, "
            "or put the text into a system message."
        )
    return messages


def _names_a_file(prompt: Any) -> bool:
    """Whether a text is the path of a prompt's file or of a skill, given where P itself was meant."""
    if not isinstance(prompt, str) or len(prompt) > MAX_PATH:
        return False
    return any(
        map(os.path.isfile, (prompt,) * prompt.lower().endswith(PROMPT_FILES) + (os.path.join(prompt, SKILL_FILE),))
    )


def check_query(query: Any, name: str = "The query") -> list[dict[str, str]]:
    """
    Check a query and return it as messages.

    Args:
        query (`str` or `list[dict]`):
            The user's turn, or a dialogue of user and assistant messages that ends in it.
        name (`str`, *optional*, defaults to `"The query"`):
            How error messages call it.

    Raises:
        `ValueError`: if it is not such a query.
    """
    messages = check_messages([{"role": "user", "content": query}] if isinstance(query, str) else query, name)
    if messages[0]["role"] == "system":
        raise ValueError(f"{name} starts with a system message, but that place belongs to the prompt: remove it.")
    if messages[-1]["role"] != "user":
        raise ValueError(f"{name} must end in a user message: leave the answer out, the model writes its own.")
    return messages
