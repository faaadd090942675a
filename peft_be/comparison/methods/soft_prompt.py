from __future__ import annotations

from .learned_rows import LearnedRows


class SoftPrompt(LearnedRows):
    """
    Prompt tuning (Lester et al., arXiv 2104.08691) on the answers that the model gives with P: their tokens are the labels.
    The rows stand where [BE] stands, start where it starts, and their checkpoint is chosen by the KL, too; what differs is
    that they never see the teacher's distributions.
    """

    own_settings = {"kd_weight": 1.0, "hard_labels": True}
