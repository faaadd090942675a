"""
Fields, defaults and help texts of the three stages' settings. The configurations of trainers and of runs inherit them, and the
commands make their options from those. Imports no torch, for `peft-be --help`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from .checks import COUNT, NOT_NEGATIVE, POSITIVE, TRAINING_RANGES, Range, check_fields
from .files import is_blank, well_formed


# The value of `optim` that stands for [`GGT`], in addition to the names that transformers knows
GGT_NAME = "ggt"
INITS = ("auto", "neutral", "prompt", "text", "random")
RANGES = {
    **TRAINING_RANGES,
    "answer_batch_size": COUNT,
    "answer_temperature": NOT_NEGATIVE,
    "answer_top_p": Range(above=0, high=1),
    "init_scale": POSITIVE,
    "max_answer_length": COUNT,
    "max_kd_tokens": COUNT,
    "max_passage_length": COUNT,
    "min_passage_length": COUNT,
    "num_answers": COUNT,
    "reconstruction_interval": COUNT,
    "temperature": POSITIVE,
}


def setting(default, help: str, **metadata) -> Any:
    """
    A field of a dataclass with its help text, typed as `dataclasses.field` is. `recorded=False` marks one that changes no
    result.
    """
    return field(default=default, metadata={"help": help, **metadata})


@dataclass
class Recipe:
    """
    Settings of stages 1 and 2. The defaults are the recipe that came nearest to the full prompt in the same time
    (research/log.md). [`BEDistillConfig`] describes each field.
    """

    kd_weight: float = setting(1.0, "lambda of Eq. 4: 0 is stage 1 alone, 1 stage 2 alone; the paper has 0.9.")
    temperature: float = setting(1.0, "tau of Eq. 3; the paper has 2.")
    beta: float = setting(0.0, "Divergence: 0 is the forward KL, 1 the reverse KL, between them the JSD.")
    scale_by_temperature_squared: bool = setting(False, "Multiply Eq. 3 by tau^2.")
    reconstruction_interval: int = setting(32, "With kd_weight between 0 and 1: reconstruct at every n-th step only.")
    use_ae_token: bool = setting(True, "Reconstruct with [AE]; without it, [BE] is a memory token.")
    hard_labels: bool = setting(False, "Learn the answers' tokens, not the teacher's distributions: prompt tuning.")
    max_kd_tokens: int | None = setting(None, "Distil only so many tokens of an answer.")
    max_answer_length: int = setting(64, "Longest answer of the teacher, in tokens.")
    num_answers: int = setting(1, "Answers of the teacher to each query.")
    answer_temperature: float = setting(0.0, "Sampling temperature of the teacher's answers; 0 is greedy.")
    answer_top_p: float = setting(1.0, "Nucleus (top-p) of the sampling.")
    answer_batch_size: int = setting(64, "Queries that the teacher answers together.")
    answer_cache_dir: str | None = setting(
        None, "Where the teacher's work is kept; a run's default is the user's cache.", recorded=False
    )
    init: str | None = setting(
        "auto",
        "Where the rows start: neutral (You), prompt (P's first tokens, which can be read from the adapter), text, "
        "random, or auto: neutral for one row, prompt for several.",
    )
    init_text: str | None = setting(None, "The text of init 'text'.")
    init_scale: float | None = setting(None, "Factor on the start rows; by default it is measured.")

    optim: str = setting(GGT_NAME, "ggt, or an optimizer of transformers such as adamw_torch.")
    learning_rate: float | None = setting(
        None, "In units of the start rows' RMS; by default 0.05 for ggt and 0.2 for other optimizers."
    )
    lr_scheduler_type: str = setting("cosine", "The learning rate schedule.")
    warmup_steps: float = setting(10, "Steps (or share of all steps) of linear warm-up.")
    max_grad_norm: float = setting(1.0, "Gradients are clipped to this norm.")
    max_steps: int = setting(600, "Number of steps.")
    per_device_train_batch_size: int = setting(2, "Answers per step and device.")
    gradient_accumulation_steps: int = setting(1, "Batches per step.")
    per_device_eval_batch_size: int = setting(16, "Answers per validation batch.")
    gradient_checkpointing: bool = setting(False, "Trade compute for memory.")
    logging_steps: float = setting(20, "Log every so many steps (or share of all steps).")
    eval_steps: float = setting(100, "Validate every so many steps (or share of all steps).")
    save_steps: float = setting(100, "Save every so many steps (or share of all steps).")
    report_to: str = setting("none", "Where to report to, such as wandb.", recorded=False)
    seed: int = setting(42, "Seed of everything that is random.")

    def __post_init__(self):
        check_fields(self, RANGES)
        if not 0.0 <= self.kd_weight <= 1.0:
            raise ValueError(f"kd_weight is lambda of Eq. 4 and lies between 0 and 1, got {self.kd_weight}.")
        if not 0.0 <= self.beta <= 1.0:
            raise ValueError(f"beta lies between 0 (forward KL) and 1 (reverse KL), got {self.beta}.")
        if self.num_answers > 1 and self.answer_temperature == 0:
            raise ValueError("num_answers above 1 needs sampling: set answer_temperature above 0.")
        if self.init not in (None, *INITS):
            raise ValueError(f"Unknown init '{self.init}': choose one of {', '.join(INITS)}.")
        if isinstance(self.init_text, str):
            self.init_text = well_formed(self.init_text)
        if self.init == "text" and (not isinstance(self.init_text, str) or is_blank(self.init_text)):
            raise ValueError(f"init='text' needs a text that is not empty, got init_text={self.init_text!r}.")
        if self.init_text is not None and self.init != "text":
            raise ValueError(
                f"init_text is for init='text', and init is {self.init!r}: change init, or leave out init_text."
            )

    @property
    def answers_are_whole_and_greedy(self) -> bool:
        """Whether the teacher's answers are what the model with P would say, so that another can be asked for the same."""
        return self.answer_temperature == 0 and self.max_kd_tokens is None

    @property
    def peak_learning_rate(self) -> float:
        """`learning_rate`, or the optimizer's own: other optimizers' steps point in worse directions and partly cancel."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 0.05 if self.optim == GGT_NAME else 0.2


@dataclass
class AERecipe:
    """Settings of stage 0. [`AEConfig`] describes each field."""

    min_passage_length: int = setting(64, "Texts with fewer tokens are left out.")
    max_passage_length: int = setting(256, "Texts are cut to this many tokens.")

    learning_rate: float = setting(1e-2, "The highest learning rate of AdamW.")
    lr_scheduler_type: str = setting("cosine", "The learning rate schedule.")
    warmup_steps: float = setting(5, "Steps (or share of all steps) of linear warm-up.")
    max_grad_norm: float = setting(1.0, "Gradients are clipped to this norm.")
    max_steps: int = setting(200, "Number of steps.")
    per_device_train_batch_size: int = setting(4, "Passages per step and device.")
    gradient_accumulation_steps: int = setting(1, "Batches per step.")
    gradient_checkpointing: bool = setting(False, "Trade compute for memory.")
    logging_steps: float = setting(5, "Log every so many steps (or share of all steps).")
    eval_steps: float = setting(25, "Validate every so many steps (or share of all steps).")
    save_steps: float = setting(25, "Save every so many steps (or share of all steps).")
    report_to: str = setting("none", "Where to report to, such as wandb.", recorded=False)
    seed: int = setting(42, "Seed of everything that is random.")

    def __post_init__(self):
        check_fields(self, RANGES)


def recorded(config) -> dict:
    """The settings of a configuration that change the result, as a run records them."""
    record = {f.name: getattr(config, f.name) for f in fields(config) if f.metadata.get("recorded", True)}
    if isinstance(config, Recipe):
        record["learning_rate"] = config.peak_learning_rate
    return record
