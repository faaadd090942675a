from __future__ import annotations

from dataclasses import dataclass

from transformers.training_args import OptimizerNames
from trl import SFTConfig

from ..checks import check_choice, check_training_args, check_unused
from ..recipe import GGT_NAME, Recipe, setting


# Fields of other optimizers. GGT has its own betas and no weight decay
ADAM_ONLY = ("adam_beta1", "adam_beta2", "adam_epsilon", "optim_args", "optim_target_modules", "weight_decay")


@dataclass
class BEDistillConfig(Recipe, SFTConfig):  # type: ignore[misc]  # SFTConfig's learning rate is never None
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

    bf16: bool | None = setting(False, "Autocast to bfloat16; the base model's dtype rules.")
    eval_strategy: str = setting("steps", "When to validate.")
    save_total_limit: int | None = setting(2, "Checkpoints to keep; the best one is kept, too.")
    load_best_model_at_end: bool = setting(True, "Keep the rows that validated best.")
    logging_nan_inf_filter: bool = setting(False, "Hide losses that are not finite in the log.")
    remove_unused_columns: bool = setting(False, "The rows are made by the trainer.")
    train_sampling_strategy: str = setting("group_by_length", "Batches of similar length.")

    def __post_init__(self):
        Recipe.__post_init__(self)
        check_training_args(self)
        if self.optim not in (GGT_NAME, *(name.value for name in OptimizerNames)):
            raise ValueError(
                f"optim must be {GGT_NAME}, or an optimizer of transformers such as adamw_torch, got {self.optim!r:.60}."
            )
        if self.optim == GGT_NAME:
            check_unused(self, ADAM_ONLY, f"with optim='{GGT_NAME}'")
        self.learning_rate = self.peak_learning_rate
        # What the best checkpoint is chosen by: the held-out KL, or, where there are no queries, the reconstruction
        metric = "kl" if self.kd_weight > 0 else "reconstruction_loss"
        self.metric_for_best_model: str | None = (
            metric if self.metric_for_best_model is None else self.metric_for_best_model
        )
        check_choice("metric_for_best_model", self.metric_for_best_model, (metric,))
        if self.greater_is_better:
            raise ValueError(f"greater_is_better=True would keep the worst rows by the {metric}: leave it out.")
        self.greater_is_better: bool | None = False
        if self.accelerator_config is None:  # the next batch is copied to a GPU while it computes
            self.accelerator_config: dict | None = {"non_blocking": self.dataloader_pin_memory}
        with_ggt = self.optim == GGT_NAME
        if with_ggt:  # which transformers does not know, and would refuse
            self.optim = "adamw_torch"
        SFTConfig.__post_init__(self)
        if with_ggt:
            self.optim = GGT_NAME
