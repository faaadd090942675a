from __future__ import annotations

from dataclasses import dataclass, field

from transformers.training_args import OptimizerNames
from trl import SFTConfig

from ..checks import COUNT, NOT_NEGATIVE, POSITIVE, Range, check_choice, check_training_args
from ..files import is_blank, well_formed
from .init import INITS


# The value of `optim` that stands for [`GGT`], in addition to the names that transformers knows
GGT_NAME = "ggt"
RANGES = {
    "answer_batch_size": COUNT,
    "answer_temperature": NOT_NEGATIVE,
    "answer_top_p": Range(above=0, high=1),
    "init_scale": POSITIVE,
    "max_answer_length": COUNT,
    "max_kd_tokens": COUNT,
    "num_answers": COUNT,
    "reconstruction_interval": COUNT,
    "temperature": POSITIVE,
}


@dataclass
class BEDistillConfig(SFTConfig):
    r"""
    Configuration class for the [`BEDistillTrainer`], stages 1 and 2 of the paper (sections 2.2 and 2.3). Its defaults
    are the recipe that came nearest to the full prompt in the same time (research/log.md);
    [`~peft_be.comparison.methods.PaperBE`] has the paper's.

    Describes the parameters that are specific to the two stages, and `optim` and `learning_rate`, whose meaning differs
    from [`~trl.SFTConfig`]. Other fields differ in their defaults only.

    Args:
        kd_weight (`float`, *optional*, defaults to `1.0`):
            lambda of Eq. 4. `0.0` is stage 1 alone (reconstruction, Eq. 2; no queries needed), `1.0` is stage 2 alone
            (distillation, Eq. 3; no [AE] needed), anything between is Algorithm 1: both stages together. The paper has
            0.9; stage 2 alone comes nearer to the full prompt in the same time (research/log.md).
        temperature (`float`, *optional*, defaults to `1.0`):
            tau of Eq. 3. The paper has 2.
        beta (`float`, *optional*, defaults to `0.0`):
            Divergence of Eq. 3, as in TRL: `0.0` forward KL(teacher || student) as in the paper, `1.0` reverse KL,
            between the two the generalised JSD.
        scale_by_temperature_squared (`bool`, *optional*, defaults to `False`):
            Whether to multiply Eq. 3 by tau^2, so that its gradient does not shrink with tau. The paper's equation has no
            such factor, the authors' scripts do.
        reconstruction_interval (`int`, *optional*, defaults to `32`):
            With `kd_weight` between 0 and 1: reconstruct P at every n-th step only, with n times the weight. The
            expected gradient is the same, and a long P, which may have many times the tokens of a batch of answers,
            costs an n-th. The paper has 1.
        use_ae_token (`bool`, *optional*, defaults to `True`):
            Whether reconstruction asks with [AE]. `False` is the memory token, `[BE] -> P`: the ablation of section 3.
        hard_labels (`bool`, *optional*, defaults to `False`):
            Whether to learn the answers' tokens instead of the teacher's distributions: prompt tuning. Validation still
            measures the KL.
        max_kd_tokens (`int`, *optional*):
            Most tokens of an answer to distil, its first ones. `None` is the whole answer. The authors' scripts stop at 32.
        max_answer_length (`int`, *optional*, defaults to `64`):
            Longest answer the teacher writes, in tokens.
        num_answers (`int`, *optional*, defaults to `1`):
            Answers the teacher writes to each query; more than one needs `answer_temperature > 0`.
        answer_temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature of the teacher's answers; `0.0` is greedy.
        answer_top_p (`float`, *optional*, defaults to `1.0`):
            Nucleus (top-p) of the sampling.
        answer_batch_size (`int`, *optional*, defaults to `64`):
            Queries that the teacher answers together.
        answer_cache_dir (`str`, *optional*):
            Folder in which the teacher's answers and hidden states are kept for later runs. `None` is the folder
            `teacher` in `output_dir`.
        init (`str`, *optional*, defaults to `"auto"`):
            Where the rows start: `"auto"`, `"neutral"`, `"prompt"`, `"text"` or `"random"`, see [`initial_rows`]. `None` goes
            on from the adapter's rows. From rows that start from P's first tokens, these can be read after the training.
        init_text (`str`, *optional*):
            The text of `init="text"`, which no other `init` takes.
        init_scale (`float`, *optional*):
            Factor on the start rows. `None` measures [`residual_growth`], which makes them as long as the hidden states
            between the layers; `1.0` leaves them as long as embeddings are.
        optim (`str`, *optional*, defaults to `"ggt"`):
            `"ggt"` is [`GGT`], whose betas are its own and which has no weight decay; or any optimizer that
            [`~transformers.TrainingArguments`] knows, such as `"adamw_torch"`.
        learning_rate (`float`, *optional*):
            The highest learning rate, in units of the start rows' root mean square: what a step adds to a row's numbers.
            `None` is 0.05 for [`GGT`] and 0.2 for other optimizers, whose steps point in worse directions and partly cancel.
    """

    kd_weight: float = field(default=1.0, metadata={"help": "lambda of Eq. 4: 0 is stage 1 alone, 1 stage 2 alone."})
    temperature: float = field(default=1.0, metadata={"help": "tau of Eq. 3."})
    beta: float = field(default=0.0, metadata={"help": "0 is the forward KL, 1 the reverse KL, between them the JSD."})
    scale_by_temperature_squared: bool = field(default=False, metadata={"help": "Multiply Eq. 3 by tau^2."})
    reconstruction_interval: int = field(default=32, metadata={"help": "Reconstruct at every n-th step only."})
    use_ae_token: bool = field(default=True, metadata={"help": "Whether reconstruction asks with [AE]."})
    hard_labels: bool = field(default=False, metadata={"help": "Learn the answers' tokens: prompt tuning."})
    max_kd_tokens: int | None = field(default=None, metadata={"help": "Distil only so many tokens of an answer."})
    max_answer_length: int = field(default=64, metadata={"help": "Longest answer of the teacher, in tokens."})
    num_answers: int = field(default=1, metadata={"help": "Answers of the teacher to each query."})
    answer_temperature: float = field(
        default=0.0, metadata={"help": "Sampling temperature of the answers, 0 is greedy."}
    )
    answer_top_p: float = field(default=1.0, metadata={"help": "Nucleus (top-p) of the sampling."})
    answer_batch_size: int = field(default=64, metadata={"help": "Queries that the teacher answers together."})
    answer_cache_dir: str | None = field(default=None, metadata={"help": "Where the teacher's work is kept."})
    init: str | None = field(default="auto", metadata={"help": f"Where the rows start: {', '.join(INITS)}."})
    init_text: str | None = field(default=None, metadata={"help": "The text of init='text'."})
    init_scale: float | None = field(default=None, metadata={"help": "Factor on the start rows; None measures one."})

    optim: str = field(default=GGT_NAME, metadata={"help": "ggt, or an optimizer of transformers."})
    learning_rate: float | None = field(default=None, metadata={"help": "In units of the start rows' RMS."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "The learning rate schedule."})
    warmup_steps: float = field(default=10, metadata={"help": "Steps (or share of all steps) of linear warm-up."})
    max_steps: int = field(default=600, metadata={"help": "Number of update steps."})
    per_device_train_batch_size: int = field(default=2, metadata={"help": "Answers per step and device."})
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "Answers per validation batch."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Trade compute for memory."})
    bf16: bool | None = field(default=False, metadata={"help": "Autocast to bfloat16; the base model's dtype rules."})
    logging_steps: float = field(default=20, metadata={"help": "Log every so many steps."})
    eval_strategy: str = field(default="steps", metadata={"help": "When to validate."})
    eval_steps: float | None = field(default=100, metadata={"help": "Validate every so many steps."})
    save_steps: float = field(default=100, metadata={"help": "Save every so many steps."})
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints to keep; the best one is kept, too."}
    )
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Keep the rows that validated best."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hide losses that are not finite in the log."}
    )
    report_to: str = field(default="none", metadata={"help": "Where to report to."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The rows are made by the trainer."})
    train_sampling_strategy: str = field(default="group_by_length", metadata={"help": "Batches of similar length."})

    def __post_init__(self):
        check_training_args(self, RANGES)
        if not 0.0 <= self.kd_weight <= 1.0:
            raise ValueError(f"kd_weight is lambda of Eq. 4 and lies between 0 and 1, got {self.kd_weight}.")
        if not 0.0 <= self.beta <= 1.0:
            raise ValueError(f"beta lies between 0 (forward KL) and 1 (reverse KL), got {self.beta}.")
        if self.num_answers > 1 and self.answer_temperature == 0:
            raise ValueError("num_answers above 1 needs sampling: set answer_temperature above 0.")
        if self.optim not in (GGT_NAME, *(name.value for name in OptimizerNames)):
            raise ValueError(
                f"optim must be {GGT_NAME}, or an optimizer of transformers such as adamw_torch, got {self.optim!r:.60}."
            )
        if self.init not in (None, *INITS):
            raise ValueError(f"Unknown init '{self.init}': choose one of {', '.join(INITS)}.")
        if isinstance(self.init_text, str):
            self.init_text = well_formed(self.init_text)
        if self.init == "text" and (not isinstance(self.init_text, str) or is_blank(self.init_text)):
            raise ValueError(f"init='text' needs a text that is not empty, got init_text={self.init_text!r}.")
        if self.init_text is not None and self.init not in (None, "text"):
            raise ValueError(
                f"init_text is for init='text', and init is '{self.init}': change init, or leave out init_text."
            )
        if self.learning_rate is None:
            self.learning_rate = 0.05 if self.optim == GGT_NAME else 0.2
        # What the best checkpoint is chosen by: the held-out KL, or, where there are no queries, the reconstruction
        metric = "kl" if self.kd_weight > 0 else "reconstruction_loss"
        self.metric_for_best_model = metric if self.metric_for_best_model is None else self.metric_for_best_model
        check_choice("metric_for_best_model", self.metric_for_best_model, (metric,))
        if self.greater_is_better:
            raise ValueError(f"greater_is_better=True would keep the worst rows by the {metric}: leave it out.")
        self.greater_is_better = False
        if self.accelerator_config is None:  # the next batch is copied to a GPU while it computes
            self.accelerator_config = {"non_blocking": self.dataloader_pin_memory}
        with_ggt = self.optim == GGT_NAME
        if with_ggt:  # which transformers does not know, and would refuse
            self.optim = "adamw_torch"
        super().__post_init__()
        if with_ggt:
            self.optim = GGT_NAME
