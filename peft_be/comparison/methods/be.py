from __future__ import annotations

from .learned_rows import LearnedRows


class BE(LearnedRows):
    """[BE] with the default recipe of [`compress_prompt`]."""
