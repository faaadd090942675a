from __future__ import annotations

from peft import UniLoraConfig

from ...checks import COUNT, check_number
from .learned_weights import LearnedWeights
from .method import Job


class UniLoRA(LearnedWeights):
    """
    Prompt distillation into as many numbers as [BE] has: Uni-LoRA (arXiv 2506.00799), PEFT's `UNILORA`. One learned vector
    fills the LoRA matrices of all linear layers, each of their entries with one of its numbers, which a seed chooses.

    Args:
        theta_d_length (`int`, *optional*): the vector's length, as in `UniLoraConfig`. `None` takes d: as many bytes as one row
            of [BE].
        learning_rate (`float`, *optional*, defaults to `1e-1`): as in [`LearnedAdapter`].
        **settings: further arguments of [`LearnedAdapter`].

    Raises:
        `ValueError`: a number is out of range.
    """

    def __init__(self, theta_d_length: int | None = None, learning_rate: float = 1e-1, **settings):
        if theta_d_length is not None:
            check_number("theta_d_length", theta_d_length, COUNT, whole=True)
        super().__init__(learning_rate, **settings)
        self.theta_d_length = theta_d_length

    def config(self, job: Job) -> UniLoraConfig:
        length = self.theta_d_length or job.model.get_input_embeddings().embedding_dim
        return UniLoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", theta_d_length=length)
