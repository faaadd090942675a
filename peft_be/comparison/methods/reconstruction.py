from __future__ import annotations

from .learned_rows import LearnedRows


class Reconstruction(LearnedRows):
    """Stage 1 alone (Eq. 2): `[BE][AE] -> P`, "with [AE]" without alignment in table 2 of the paper. Reads no query."""

    own_settings = {"kd_weight": 0.0}


class MemoryToken(LearnedRows):
    """
    `[BE] -> P`, without [AE]: the memory token of table 1 (Kuratov et al., arXiv 2502.13063). The row learns to start the
    prompt's text, which is what the model then writes instead of an answer. Reads no query.
    """

    own_settings = {"kd_weight": 0.0, "use_ae_token": False}
