"""
Checks that a prompt's own sentences ask for, by rule: how an answer begins and ends, what it never says, how long it is, JSON, a language,
labels. English only. What depends on a condition ("If the customer is angry, begin with ...") is left to whoever reads the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from .file import load_checks


# A text in quotation marks; single ones may hold an apostrophe
_QUOTED = r"""(?:["\u201c](\s*[^"\u201c\u201d\s][^"\u201c\u201d\n]*)["\u201d]|(?<!\w)['\u2018](\s*[^\s'"][^\n"]*?)['\u2019](?!\w))"""
_QUOTES = rf"{_QUOTED}(?:,? (?:or|and|nor) {_QUOTED}|, {_QUOTED})*"
_ANSWER = r"(?:answer|response|message|repl(?=y|ies))(?:s|y|ies)?\b"
_EVERY = rf"(?:every|each|all|any|your)(?: single| of your)?(?: \w+)? {_ANSWER}"
_MUST = r"(?: (?:must|should|shall|will|always|has to|have to|needs? to))*"
# What says how all answers are to be, and a few more words of its sentence
_ANSWERING = (
    rf"\b(?:answer|respond|reply|speak|keep (?:{_EVERY}|{_ANSWER})|{_EVERY}{_MUST} be)\b[^.!?:\n\"\u201c]{{0,40}}?\b"
)
_NUMBERS = {"a single": 1} | dict(zip("one two three four five six seven eight nine ten".split(), range(1, 11)))
_NUMBER = rf"([1-9]\d{{0,5}}|{'|'.join(_NUMBERS)})"
_LANGUAGES = {
    "arabic": "ar", "chinese": "zh", "danish": "da", "dutch": "nl", "english": "en", "finnish": "fi", "french": "fr",
    "german": "de", "hindi": "hi", "italian": "it", "japanese": "ja", "korean": "ko", "norwegian": "no", "polish": "pl",
    "portuguese": "pt", "russian": "ru", "spanish": "es", "swedish": "sv", "turkish": "tr", "ukrainian": "uk",
}  # fmt: skip
# In front of an instruction in its sentence: it does not hold for all answers, or the other way round
_NOT_ALWAYS = re.compile(
    r"\b(?:if|when|whenever|unless|where|sometimes|may|might|can|could|for example|e\.g|never|not|avoid|without|no|(?-i:I))\b"
    r"|n['\u2019]t\b",
    re.IGNORECASE,
)
_OTHERS = re.compile(r"\b(?:else|except|otherwise)\b", re.IGNORECASE)
_SENTENCE_START = re.compile(r"[.!?][\"'\u2019\u201d)]*\s+|\n")
_PLACEHOLDER = re.compile(r"[<\[{]")
# The name of a check, and its kinds
Found = tuple[str, dict[str, Any]]
# Fewer worked answers may begin alike by chance
_MIN_WORKED = 4


@dataclass(frozen=True)
class Proposal:
    """
    A check that a prompt seems to ask for.

    Args:
        name (`str`): what to call it.
        kinds (`dict[str, Any]`): the check, as in a checks file.
        source (`str`): what of the prompt says so.
    """

    name: str
    kinds: dict[str, Any]
    source: str


def propose_checks(prompt: str | list[dict[str, str]]) -> list[Proposal]:
    """
    The checks that a prompt seems to ask for, each once. Those that a worked answer of the prompt would not pass are left out.

    Args:
        prompt (`str` or `list[dict]`): P, as from [`load_prompt`].
    """
    messages = [{"role": "system", "content": prompt}] if isinstance(prompt, str) else prompt
    worked = [message["content"].strip() for message in messages if message["role"] == "assistant"]
    found: dict[str, Proposal] = {}
    for message in messages:
        if message["role"] == "system":
            for proposal in _of_text(message["content"]):
                found.setdefault(proposal.name, proposal)
    for proposal in _of_worked(worked):
        found.setdefault(proposal.name, proposal)
    return [proposal for proposal in found.values() if _holds(proposal, worked)]


def as_yaml(proposals: list[Proposal]) -> str:
    """A file of proposed checks, each after what of the prompt says so."""
    parts = ["# Proposed from the prompt's own sentences, by rule. Read each check; change or delete it.\n"]
    for proposal in proposals:
        check = yaml.safe_dump({proposal.name: proposal.kinds}, allow_unicode=True, sort_keys=False, width=10_000)
        parts.append(f"# {' '.join(proposal.source.split())}\n{check}")
    return "\n".join(parts)


def _holds(proposal: Proposal, worked: list[str]) -> bool:
    (check,) = load_checks({proposal.name: proposal.kinds})
    return all(map(check.passes, worked))


def _of_text(text: str) -> Iterator[Proposal]:
    for pattern, read in _RULES:
        for match in re.finditer(pattern, text, re.IGNORECASE):
            start = max((end.end() for end in _SENTENCE_START.finditer(text, 0, match.start())), default=0)
            if _NOT_ALWAYS.search(text, start, match.start()) or _OTHERS.search(match[0]):
                continue
            if found := read(match):
                yield Proposal(*found, source=text[start : match.end()].strip(" \t*#-"))


def _of_worked(worked: list[str]) -> Iterator[Proposal]:
    """What all worked answers begin and end with, in whole words and more than a single one."""
    if len(worked) < _MIN_WORKED:
        return
    source = f"All {len(worked)} worked answers do"
    start = re.sub(r"\S*$", "", os.path.commonprefix(worked)).strip()
    end = re.sub(r"^\S*", "", os.path.commonprefix([answer[::-1] for answer in worked])[::-1]).strip()
    if len(start.split()) > 1:
        yield Proposal(f'begins with "{start}"', {"starts_with": start}, source)
    if len(end.split()) > 1:
        yield Proposal(f'ends with "{end}"', {"ends_with": end}, source)


def _quoted(match: re.Match) -> list[str]:
    """The texts in quotation marks within a match."""
    return ["".join(groups).strip() for groups in re.findall(_QUOTED, match[0])]


def _form(verbs: str) -> str:
    """The pattern of "End every answer with ..." and of "Every answer must end with ..."."""
    return (
        rf"(?:\b(?:{verbs}) {_EVERY}|\b{_EVERY}{_MUST} (?:{verbs})|\balways (?:{verbs})) "
        rf"with(?: the \w+| exactly)?:? {_QUOTED}"
    )


def _begins(match: re.Match) -> Found | None:
    (text,) = _quoted(match)
    return None if _PLACEHOLDER.search(text) else (f'begins with "{text}"', {"starts_with": text})


def _ends(match: re.Match) -> Found | None:
    (text,) = _quoted(match)
    return None if _PLACEHOLDER.search(text) else (f'ends with "{text}"', {"ends_with": text})


def _never(match: re.Match) -> Found:
    texts = _quoted(match)
    return f"never says {', '.join(texts)}", {"never_says": texts}


def _length(match: re.Match) -> Found:
    bound, unit = match[1].lower(), match[4].lower()
    numbers = [_NUMBERS.get(number.lower()) or int(number) for number in match.group(2, 3) if number]
    low, high = min(numbers), max(numbers) - (bound in ("under", "fewer than", "less than"))
    units = f"{unit}{'s' * (high != 1)}"
    if bound == "at least":
        return f"has at least {low} {units}", {f"{unit}s": {"min": low}}
    if bound in ("in", "with", "exactly"):
        return f"has {'' if low == high else f'{low} to '}{high} {units}", {f"{unit}s": {"min": low, "max": high}}
    return f"has at most {high} {units}", {f"{unit}s": {"max": high}}


def _json(match: re.Match) -> Found:
    return "is JSON", {"json": True}


def _language(match: re.Match) -> Found:
    return f"is in {match[1].capitalize()}", {"language": _LANGUAGES[match[1].lower()]}


def _labels(match: re.Match) -> Found | None:
    labels = _quoted(match) or re.split(r",\s*(?:or |and )?|\s+or\s+", match["plain"] or "")
    labels = [label.strip() for label in labels if label.strip()]
    return ("is one of the labels", {"one_of": labels}) if len(labels) > 1 else None


_RULES: list[tuple[str, Callable[[re.Match], Found | None]]] = [
    (_form("begins?|starts?|opens?"), _begins),
    (_form("ends?|closes?|finish(?:es)?|concludes?|signs?(?: off)?"), _ends),
    (
        r"\b(?:never|do not|don['\u2019]t|must not|avoid) (?:ever )?"
        r"(?:(?:say|mention|utter|use|write|saying|using)(?: the| any)? (?:words?|phrases?|terms?)|say|mention|utter|saying):? "
        rf"{_QUOTES}",
        _never,
    ),
    (
        rf"{_ANSWERING}(at most|no more than|up to|a maximum of|under|fewer than|less than|at least|exactly|in|with) "
        rf"{_NUMBER}(?:(?: to | or |-|\u2013){_NUMBER})?\s+(?:\w+\s+)?(sentence|word|character)s?\b",
        _length,
    ),
    (rf"{_ANSWERING}(?:in|as|with)(?: an?| only| valid| single| strict)* JSON\b", _json),
    (
        r"\b(?:output|return|produce) (?=[^.\n]{0,30}\b(?:only|valid)\b)(?:an?|only|valid|single|strict| )* JSON\b",
        _json,
    ),
    (rf"{_ANSWERING}in ({'|'.join(_LANGUAGES)})\b", _language),
    (
        rf"{_ANSWERING}one of(?: these| the)?(?: following)?(?: \w+)?:? (?:{_QUOTES}|(?<=: )(?P<plain>[\w -]+(?:, [\w -]+)+))",
        _labels,
    ),
]
