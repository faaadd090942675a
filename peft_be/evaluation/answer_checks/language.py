"""The language of an answer, by the package langdetect."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ...files import shown


def language_test(code: Any) -> Callable[[str], bool]:
    """The test whether an answer is most likely in a language, such as `en`. A text without letters is in none."""
    if not isinstance(code, str):  # YAML reads no as false
        raise ValueError(f"must be the code of a language, got {shown(code)}: put quotes around it, as in 'no'.")
    known = {part for name in _detectors().get_lang_list() for part in (name, name.partition("-")[0])}
    if code not in known:
        raise ValueError(f"must be one of {', '.join(sorted(known))}, got {shown(code)}.")
    return lambda answer: code in _codes(answer)


def _codes(text: str) -> tuple[str, ...]:
    """The codes of a text's most likely language: Chinese is `zh-cn` or `zh-tw`, and `zh` in both cases."""
    from langdetect import LangDetectException

    detector = _detectors().create()
    detector.append(text)
    try:
        name = detector.detect()
    except LangDetectException:  # no letters
        return ()
    return name, name.partition("-")[0]


@functools.cache
def _detectors():
    try:
        from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory
    except ImportError:
        raise ImportError("needs the package langdetect: pip install langdetect.") from None
    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.set_seed(0)  # it draws samples of a text
    return factory
