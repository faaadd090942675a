from __future__ import annotations

from dataclasses import dataclass

from trl import SFTConfig

from ..checks import check_training_args
from ..recipe import AERecipe, setting


@dataclass
class AEConfig(AERecipe, SFTConfig):
    r"""
    Configuration class for the [`AETrainer`], stage 0 of the paper (section 2.1).

    Describes the parameters that are specific to stage 0. Other fields of [`~trl.SFTConfig`] differ in their defaults
    only. The paper trains on about 1 GB of text for 2 epochs at a learning rate of 1e-3 and 32 passages a
    step; the higher default rate here is for the few hundred steps that a small machine has.

    Args:
        min_passage_length (`int`, *optional*, defaults to `64`):
            Texts with fewer tokens are left out.
        max_passage_length (`int`, *optional*, defaults to `256`):
            Texts are cut to this many tokens. A row of a batch is twice as long, plus one.
    """

    bf16: bool | None = setting(False, "Autocast to bfloat16; the base model's dtype rules.")
    logging_nan_inf_filter: bool = setting(False, "Hide losses that are not finite in the log.")
    remove_unused_columns: bool = setting(False, "The rows are made by the trainer.")
    train_sampling_strategy: str = setting("group_by_length", "Batches of similar length.")

    def __post_init__(self):
        AERecipe.__post_init__(self)
        check_training_args(self)
        if self.accelerator_config is None:  # the next batch is copied to a GPU while it computes
            self.accelerator_config: dict | None = {"non_blocking": self.dataloader_pin_memory}
        SFTConfig.__post_init__(self)
