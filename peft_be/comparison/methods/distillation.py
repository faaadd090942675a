from __future__ import annotations

from .learned_rows import LearnedRows


class Distillation(LearnedRows):
    """
    Eq. 3 alone, "KD" without reconstruction in table 2 of the paper, at the paper's temperature.

    With temperature 1, which is what [`compress_prompt`] has by default, this is [`BE`].
    """

    own_settings = {"kd_weight": 1.0, "temperature": 2.0}
