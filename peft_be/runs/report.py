"""What a run says about its queries before it starts, and about itself at the end."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from ..adapters.provenance import best_figures
from ..data import QuerySplits, query_key
from ..training import BEDistillTrainer


# With fewer training or validation queries than these there is a warning: nothing was measured with so few
FEW_QUERIES, FEW_VALIDATION = 50, 12


def warn_of_few_queries(splits: dict[str, QuerySplits]) -> None:
    """Warn of too few queries to trust a result. `splits` are the queries of each prompt, by name."""

    def fewest(counts: dict[str, int], limit: int) -> tuple[int, str]:
        """The least count, and whose it is."""
        name, count = min(counts.items(), key=lambda item: item[1])
        others = sum(other < limit for other in counts.values()) - 1
        of = f" of '{name}'" if len(counts) > 1 else ""
        return count, of + (f" (and fewer than {limit} of {others} other prompts)" if others > 0 else "")

    train, of = fewest({name: len(own.train) for name, own in splits.items()}, FEW_QUERIES)
    if train < FEW_QUERIES:
        warnings.warn(
            f"There {'is' if train == 1 else 'are'} only {train} training quer{'y' if train == 1 else 'ies'}{of}: "
            "expect an adapter that follows the prompt on what these ask, and less on anything else. The fewest that "
            "were measured are 173, from which a task kept 68 % of its score, and 91 % from 432 (research/log.md). Give "
            "a few hundred.",
            stacklevel=1,
        )
    validation, of = fewest({name: len(own.validation) for name, own in splits.items()}, FEW_VALIDATION)
    if validation < FEW_VALIDATION:
        warnings.warn(
            f"Only {validation} quer{'y is' if validation == 1 else 'ies are'} held out for validation{of}: a KL on "
            "so few depends on single answers. Even on 19, eight rows seemed to close up to 0.37 more of the gap than "
            "they did on other queries (research/log.md). Trust peft-be eval with held-out queries instead.",
            stacklevel=1,
        )


def kept_figures(trainer: BEDistillTrainer) -> dict:
    """The figures of the rows that a training kept, among them those that a search goes by."""
    state, kl_no_prompt = trainer.state, trainer.no_prompt_kl.get("default")
    own = [entry for entry in state.log_history if entry["step"] == state.best_global_step]
    same = next((entry["eval_same_answers"] for entry in own if "eval_same_answers" in entry), None)
    same_no_prompt = None if same is None else trainer.no_prompt_same_answers["default"]
    metric = trainer.args.metric_for_best_model
    return best_figures(metric, state.best_metric, state.best_global_step, kl_no_prompt, same, same_no_prompt)


def training_report(
    settings: dict,
    splits: QuerySplits,
    steps: int,
    best: dict,
    seconds: float | None,
    log: list[dict],
    seen_before: Iterable[str] = (),
) -> dict:
    """What `training.json` says of an adapter. `seen_before` are the keys of the queries of an adapter that it started from."""
    return {
        "model": settings["model"],
        "settings": settings,
        "num_queries": {"train": len(splits.train), "validation": len(splits.validation)},
        # Hashes, so that an evaluation can leave out what was seen without the queries being published
        "seen_queries": sorted({*seen_before, *(query_key(query) for query in splits.train + splits.validation)}),
        "steps": steps,
        "best": best,
        # Unknown if the run was interrupted: it counts for `peft-be bench`
        "seconds": None if seconds is None else round(seconds, 1),
        "log": log,
    }
