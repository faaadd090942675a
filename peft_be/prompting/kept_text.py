"""Kept text: what of P must be exact stays text, after [BE] in the system turn."""

from __future__ import annotations

from itertools import pairwise

from ..files import is_blank, shown, well_formed
from .messages import check_prompt


# Between [BE] and the kept text, and between its parts. vLLM puts the same between the parts of a message
SEPARATOR = "\n"


def with_kept_text(be: str, kept_text: str | None) -> str:
    """The content of the system turn: how [BE] is spelled, and the kept text if there is one."""
    return be if kept_text is None else f"{be}{SEPARATOR}{kept_text}"


def find_kept_text(prompt: str | list[dict[str, str]], keep: list[str] | None) -> str | None:
    """
    The kept text of a prompt: parts of it in the order in which they stand there, a line each. `None` if there are none.

    Args:
        prompt (`str` or `list[dict]`): P. A part may come from any of its messages.
        keep (`list[str]`, *optional*): the parts, without the white space around them.

    Raises:
        `ValueError`: a part is empty, does not stand in P, or shares characters with another one.
    """
    if not keep:
        return None
    contents = [well_formed(message["content"]) for message in check_prompt(prompt)]
    places = []
    for part in (well_formed(part).strip() for part in keep):
        if is_blank(part):
            raise ValueError("A kept text (--keep) is empty: leave it out, or give a part of the prompt.")
        found = [(number, content.find(part)) for number, content in enumerate(contents) if part in content]
        if not found:
            raise ValueError(
                f"The prompt does not say {shown(part)}, which is to be kept (--keep): give a part of the prompt as it "
                "stands there."
            )
        places.append((*found[0], part))
    places.sort()
    for (message, start, part), (next_message, next_start, next_part) in pairwise(places):
        if message == next_message and next_start < start + len(part):
            raise ValueError(
                f"The kept texts (--keep) {shown(part)} and {shown(next_part)} share a part of the prompt: give it once."
            )
    return SEPARATOR.join(part for _, _, part in places)
