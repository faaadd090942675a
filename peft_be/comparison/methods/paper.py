from __future__ import annotations

from ...evaluation.stand_in import StandIn
from ...runs.config import PAPER
from .learned_rows import LearnedRows
from .method import Job


class PaperBE(LearnedRows):
    """
    [BE] by the authors' published scripts: both stages at every step, lambda 0.9 and tau 2 with tau^2 in front, one answer a
    step, of which the first 32 tokens count, a row that starts as noise of the embeddings' spread, AdamW at a constant 0.1, and
    `[BE] q` without a system turn. (Two faults of the scripts are left out: the learned row is float32, and its
    checkpoint is chosen on validation queries. The teacher's answers are kept, whereas the scripts write them anew at each step.)

    Args:
        num_tokens (`int`, *optional*, defaults to `1`): k; the paper has 1, and 2 for its largest prompts.
        learning_rate (`float`, *optional*, defaults to `0.1`): of AdamW, absolute. The scripts have 0.1 for roles, 0.01 for
            dialogues and 0.001 for GSM8K.
        **settings: as in [`LearnedRows`].
    """

    own_settings = PAPER

    def __init__(self, num_tokens: int = 1, learning_rate: float = 0.1, **settings):
        super().__init__(num_tokens, **settings)
        self.learning_rate = learning_rate

    def fit(self, job: Job) -> StandIn:
        # Our learning rates are in units of the start's RMS, which here is the embeddings' RMS
        spread = job.model.get_input_embeddings().weight.float().std().item()
        self.settings["learning_rate"] = self.learning_rate / spread
        return super().fit(job)
