"""What all methods share that learn rows of the input embedding with `BEDistillTrainer`."""

from __future__ import annotations

from ...evaluation.fidelity import reconstruction_scores
from ...evaluation.stand_in import StandIn
from ...losses import OutputHead
from ...prompting import PromptRenderer
from ...runs.compress import compress_prompt
from .method import Job, Method


class LearnedRows(Method):
    """
    Rows of the input embedding, learned with [`compress_prompt`]. Subclasses choose settings; all else (start,
    optimizer, batches and validation) is the same for all of them.

    Args:
        num_tokens (`int`, *optional*, defaults to `1`): k, the number of rows.
        **settings: fields of [`CompressConfig`] that replace the method's own.

    Raises:
        `ValueError`: `num_tokens` below 1.
    """

    trains = True
    own_settings: dict = {}

    def __init__(self, num_tokens: int = 1, **settings):
        if num_tokens < 1:
            raise ValueError(f"A method that learns rows needs at least one row, got {num_tokens}.")
        self.num_tokens = num_tokens
        self.settings = {**self.own_settings, **settings}

    def fit(self, job: Job) -> StandIn:
        # Where the model is, and not on a GPU that is there, too
        device = "cpu" if job.model.device.type == "cpu" else None
        settings = {"max_answer_length": job.max_answer_length, "device": device, **self.settings}
        if job.max_steps is not None:
            settings["max_steps"] = job.max_steps
        result = compress_prompt(
            job.prompt,
            job.splits,
            job.directory / "adapter",
            model=job.model,
            tokenizer=job.tokenizer,
            num_be_tokens=self.num_tokens,
            max_minutes=job.max_minutes,
            seed=job.seed,
            resume=(job.directory / "adapter").exists(),  # of a comparison that was killed
            on_progress=job.on_progress,
            **settings,
        )
        tuner, config = result.model.base_model, result.model.peft_config["default"]
        rows, used = tuner.get_rows("default"), result.report["settings"]
        reconstruction = None
        try:
            if used["kd_weight"] < 1 or used["reconstruction_steps"]:
                ae_row = None if config.ae_token_id is None else tuner.get_ae_row("default")
                prompt_ids = PromptRenderer(job.tokenizer, job.prompt).prompt_ids
                args = rows, ae_row, prompt_ids, OutputHead(job.model)
                reconstruction = reconstruction_scores(job.model, job.tokenizer, *args)
        finally:  # the next method is given the same model
            result.model.unload()
        own = {"slot": config.slot, "kept_text": config.kept_text, "log": result.report["log"]}
        return StandIn(rows=rows, reconstruction=reconstruction, **own)
