from __future__ import annotations

from dataclasses import dataclass, field

from trl import SFTConfig

from ..checks import COUNT, check_training_args


@dataclass
class AEConfig(SFTConfig):
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

    min_passage_length: int = field(default=64, metadata={"help": "Texts with fewer tokens are left out."})
    max_passage_length: int = field(default=256, metadata={"help": "Texts are cut to this many tokens."})

    learning_rate: float = field(default=1e-2, metadata={"help": "The initial learning rate of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "The learning rate schedule."})
    warmup_steps: float = field(default=5, metadata={"help": "Steps (or share of all steps) of linear warm-up."})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "Passages per step and device."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Trade compute for memory."})
    bf16: bool | None = field(default=False, metadata={"help": "Autocast to bfloat16; the base model's dtype rules."})
    logging_steps: float = field(default=5, metadata={"help": "Log every so many steps."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hide losses that are not finite in the log."}
    )
    report_to: str = field(default="none", metadata={"help": "Where to report to."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The rows are made by the trainer."})
    train_sampling_strategy: str = field(default="group_by_length", metadata={"help": "Batches of similar length."})

    def __post_init__(self):
        check_training_args(self, {"min_passage_length": COUNT, "max_passage_length": COUNT})
        if self.accelerator_config is None:  # the next batch is copied to a GPU while it computes
            self.accelerator_config = {"non_blocking": self.dataloader_pin_memory}
        super().__post_init__()
