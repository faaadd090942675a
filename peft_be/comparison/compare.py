"""Methods side by side: trained on the same queries under the same budget, scored on the same held-out ones."""

from __future__ import annotations

import itertools
import os
import shutil
import statistics
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from ..data import QuerySplits, as_queries, query_key, split_queries
from ..evaluation.answer_checks import AnswerCheck, check_applies, check_scores
from ..evaluation.fidelity import FidelityScorer
from ..evaluation.gap import AnswerKL, Gap
from ..evaluation.held_out import outside_the_prompt
from ..evaluation.latency import time_requests
from ..evaluation.stand_in import Prompt, StandIn
from ..evaluation.tasks import Task, evaluate_task
from ..files import append_record, read_json, read_records
from ..machine.versions import machine_of, versions
from ..models import DEFAULT_MODEL
from ..progress import OnProgress
from ..prompting import PromptRenderer
from ..prompting.context import check_prompts
from ..prompting.fingerprints import sha256
from ..recipe import recorded
from ..runs.config import changed
from ..runs.folder import RunFolder, failure
from ..runs.prepare import load_confirmed
from ..runs.report import warn_of_few_queries
from ..teacher import teacher_prompts
from .config import CompareConfig
from .methods.method import Job, Method
from .methods.registry import make_method
from .report.report import html_report, markdown_table


# Held out where no test queries are given
NUM_TEST_QUERIES = 24
SPLIT_SEED = 42


class ComparisonFolder(RunFolder):
    """The folder of a comparison: `results.json` and its reports, and `training/cells.jsonl` while it is unfinished."""

    RESULT = "results.json"

    @property
    def is_finished(self) -> bool:
        """Not while a method has failed: a resumed comparison tries it again."""
        if not super().is_finished:
            return False
        methods = read_json(self.directory / self.RESULT, "result", dict).get("methods") or []
        return not any(method.get("error") for method in methods)

    @property
    def cells_file(self) -> Path:
        return self.work / "cells.jsonl"

    def cells(self) -> list[dict]:
        """The finished runs. A record that is damaged or of an earlier version counts as none, and its method runs again."""
        needed = {"method", "seed", "kl", *(field.name for field in fields(AnswerKL))}
        return [cell for cell in read_records(self.cells_file) if needed <= cell.keys()]


def summary(spec: str, method: Method, done: dict, error: str | None) -> dict:
    """What `results.json` says of a method: what all its runs share, and the runs."""
    runs = [run for (name, _), run in done.items() if name == spec]
    shared = {name: runs[0][name] for name in ("tokens", "bytes")} if runs else {"tokens": None, "bytes": None}
    own = [{name: value for name, value in run.items() if name not in ("method", *shared)} for run in runs]
    zero = next((AnswerKL.of_run(run) for (name, _), run in done.items() if name == "none"), None)
    for run in own:
        run["gap"] = zero and asdict(Gap.between(AnswerKL.of_run(run), zero))
        run["kl_gap_closed"] = run["gap"] and run["gap"]["mean"]
    return {"name": spec, "trains": method.trains, **shared, "runs": own, "error": error}


def add_check_scores(results: dict, checks: list[AnswerCheck], queries: list) -> None:
    """Add to each run its [`check_scores`], where the method stands for [BE]; none if no prompt has failed."""
    runs = {method["name"]: method["runs"] for method in results["methods"]}
    if not runs["none"]:
        return
    for run in itertools.chain.from_iterable(runs.values()):
        texts = zip(queries, results["full_answers"], runs["none"][0]["answers"], run["answers"])
        answers = [dict(zip(("query", "full", "no_prompt", "be"), own)) for own in texts]
        run["checks"] = check_scores(checks, answers)


def run_method(
    spec: str, settings: dict, job: Job, scorer: FidelityScorer, queries: list, task: Task | None = None
) -> dict:
    """
    Make one method's stand-in and score it.

    Args:
        spec (`str`): the method, see [`make_method`].
        settings (`dict`): its further arguments.
        job ([`Job`]): what it is given.
        scorer ([`FidelityScorer`]): of `queries` after P.
        queries (`list`): held-out queries.
        task ([`Task`], *optional*): what to score the stand-in on, too.

    Returns:
        `dict`, JSON-serialisable: the fields of [`Fidelity`]; `tokens` and `bytes` of the stand-in; `ttft_ms` of one request with
            nothing cached but learned keys and values, and its `kv_bytes`; `fit_seconds`; and of what was trained, `steps`,
            `curve` (`[step, validation KL]`), `curve_no_prompt` (the KL of no prompt on the same queries),
            `train_curve` (`[step, mean loss of distillation since the last entry]`), `norm`
            (`[step, mean length of the rows]`) and `reconstruction`; and `task`, its `score` and `stderr`.
    """
    start = time.perf_counter()
    stand_in = make_method(spec, **settings).fit(job)
    seconds = time.perf_counter() - start
    with stand_in.placed(job.model, job.tokenizer) as render:
        prompts = [render(query) for query in queries]
        fidelity = scorer.score(prompts, stand_in.prefix, spec)
        ttft_ms, kv_bytes = request_cost(job.model, prompts[0], stand_in)
    score = None if task is None else task_score(task, job, stand_in)
    steps = [entry["step"] for entry in stand_in.log]
    return {
        **asdict(fidelity),
        "tokens": stand_in.num_tokens(job.tokenizer),
        "bytes": stand_in.num_bytes(),
        "ttft_ms": ttft_ms,
        "kv_bytes": kv_bytes,
        "fit_seconds": seconds,
        "steps": max(steps, default=None),
        "curve": series(stand_in.log, "eval_kl"),
        "curve_no_prompt": next((value for _, value in series(stand_in.log, "eval_no_prompt_kl")), None),
        "train_curve": series(stand_in.log, "kd_loss"),
        "norm": series(stand_in.log, "be_norm"),
        "reconstruction": stand_in.reconstruction,
        "task": score,
    }


def task_score(task: Task, job: Job, stand_in: StandIn) -> dict:
    result = evaluate_task(task, job.model, job.tokenizer, stand_in)
    return {"score": result["score"], "stderr": result["standard_error"], "metrics": result["metrics"]}


def series(log: list[dict], name: str) -> list[list[float]]:
    return [[entry["step"], entry[name]] for entry in log if name in entry]


def request_cost(model: PreTrainedModel, prompt: list[int], stand_in: StandIn, repeats: int = 3) -> tuple[float, int]:
    """Milliseconds to the first token of one request, the median of `repeats` after a warm-up, and bytes of its KV."""
    cache = None
    if stand_in.prefix is not None:
        cache = DynamicCache(config=model.config)
        for layer, (keys, values) in enumerate(zip(stand_in.prefix.keys, stand_in.prefix.values)):
            cache.update(keys[None], values[None], layer)
    timings = [time_requests(model, [prompt], prefix=cache) for _ in range(repeats + 1)][1:]
    return statistics.median(timing.ttft_ms for timing in timings), timings[0].kv_bytes


def compare_methods(
    prompt: Prompt,
    queries: Iterable,
    output_dir: str | os.PathLike,
    methods: list[str],
    config: CompareConfig | None = None,
    *,
    model: str = DEFAULT_MODEL,
    test_queries: Iterable | None = None,
    task: Task | None = None,
    checks: list[AnswerCheck] | None = None,
    name: str = "prompt",
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    **changes,
) -> dict:
    """
    Train and score methods that replace a prompt by something shorter, all under one budget.

    Every method is given the same training and validation queries; seeds change what else is random. The full prompt answers
    the test queries once, and every method is scored on these answers; queries that stand in P are left out
    ([`outside_the_prompt`]). No prompt is always among the methods, as the zero of the KL gap. Where time is the budget, the
    teacher's work on the training queries is done first and counts for no method.

    Args:
        prompt (`str` or `list[dict]`): P.
        queries (`Iterable`): what users may ask, in any form that [`as_queries`] takes.
        output_dir (`str` or `os.PathLike`): folder for `results.json`, `report.html` and `table.md`; a finished run of a method
            is kept there until all are done.
        methods (`list[str]`): see [`make_method`].
        config ([`CompareConfig`], *optional*): the budget and the seeds.
        model (`str`, *optional*, defaults to `"smollm2"`): `smollm2`, a folder, a GGUF file or a Hub id.
        test_queries (`Iterable`, *optional*): held-out queries; `None` takes 24 of `queries`, or a fifth if there are
            fewer.
        task ([`Task`], *optional*): a task to score every method on, too.
        checks (`list[AnswerCheck]`, *optional*): what to count in the answers of every method, as from [`load_checks`].
        name (`str`, *optional*, defaults to `"prompt"`): what the report calls P.
        resume (`bool`, *optional*, defaults to `False`): go on with the interrupted run in `output_dir`.
        overwrite (`bool`, *optional*, defaults to `False`): replace an earlier run in `output_dir`, as in [`compress_prompt`].
        on_progress (`Callable[[str, int, int, dict], None]`, *optional*): called with what is being done, the work done, its
            total, and the latest values.
        **changes: fields of [`CompareConfig`] that replace those of `config`, for instance `seeds=(42, 43)`.

    Returns:
        `dict`: what `results.json` holds. A method that failed has its `error` there; `resume=True` tries it again.

    Raises:
        `ValueError`: an unknown method, no seed, too few queries, no test queries but such that stand in P, a check that applies
            to none of them, or a resumed run with other settings.
        `FileExistsError`: `output_dir` is in use, see `resume` and `overwrite`.
        `KeyboardInterrupt`: Ctrl-C; finished runs are kept, and `resume=True` goes on.
    """
    made = {spec: make_method(spec) for spec in dict.fromkeys(["full", "none", *methods])}
    config = changed(config, CompareConfig, changes)
    splits = _split(as_queries(queries), test_queries)
    splits.test, left_out = outside_the_prompt(prompt, splits.test)
    check_applies(checks or [], splits.test)
    warn_of_few_queries({name: splits})
    settings = {
        "prompt": sha256(prompt),
        "queries": sha256([splits.train, splits.validation, splits.test]),
        "model": model,
        "methods": list(made),
        **recorded(config),
        "task": task and {"name": type(task).__name__, "items": sha256([task.queries, task.references])},
        "checks": sha256([[check.name, check.rules] for check in checks]) if checks else None,
    }
    defaults = {**recorded(CompareConfig()), "checks": None}
    with ComparisonFolder(output_dir, settings, resume, overwrite, defaults) as folder:
        if folder.is_finished:
            return read_json(folder.directory / folder.RESULT, "result", dict)
        base, tokenizer = load_confirmed(folder, model, None, config.dtype, config.device)
        comparison = _Comparison(folder, config, base, tokenizer, prompt, splits, task, on_progress)
        comparison.check_task()
        about = {"left_out": left_out, "machine": machine_of(base), "versions": versions()}
        results = {"model": model, **comparison.run(made, name), **about}
        if checks:
            add_check_scores(results, checks, splits.test)
        folder.directory.joinpath("table.md").write_text(markdown_table(results), encoding="utf-8")
        folder.directory.joinpath("report.html").write_text(html_report(results), encoding="utf-8")
        # Failed methods can be tried again, and the results of the others are kept until then
        if any(method["error"] for method in results["methods"]):
            folder.publish(results)
        else:
            folder.finish(results)
        return results


@dataclass
class _Comparison:
    """What the runs of all methods share."""

    folder: ComparisonFolder
    config: CompareConfig
    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompt: Prompt
    splits: QuerySplits
    task: Task | None
    on_progress: OnProgress | None

    def check_task(self) -> None:
        """Raises a `ValueError` for a task that the full prompt cannot be asked, before the methods are trained."""
        if self.task is not None:
            renderer = PromptRenderer(self.tokenizer, self.prompt)
            prompts = [renderer.full(query) for query in self.task.queries]
            check_prompts(self.base, prompts, self.task.answer_lengths(self.tokenizer), self.task.queries)

    def run(self, made: dict[str, Method], name: str) -> dict:
        """Run all methods that are not done yet. Returns what `results.json` says of the methods and of their prompt."""
        if any(method.trains for method in made.values()):
            for split in ("train", "validation"):
                self._job("teacher", SPLIT_SEED).teacher_answers(split)
        renderer, length = PromptRenderer(self.tokenizer, self.prompt), self.config.max_answer_length
        full = teacher_prompts(self.base, renderer, self.splits.test, length)
        quotable = self.prompt, self.splits.test
        scorer = FidelityScorer(
            self.base, self.tokenizer, full, length, on_progress=self.on_progress, quotable=quotable
        )
        done = {(cell["method"], cell["seed"]): cell for cell in self.folder.cells()}
        errors: dict[str, str] = {}
        for spec, method in made.items():
            for seed in self.config.seeds if method.is_random else self.config.seeds[:1]:
                if (spec, seed) in done or spec in errors:
                    continue
                try:
                    done[spec, seed] = self._run_one(spec, seed, scorer)
                except Exception as error:
                    errors[spec] = failure(error)
        return {
            **_described(self.splits, self.folder.settings, self.task),
            "prompt": {"name": name, "tokens": len(renderer.prompt_ids)},
            "num_answer_tokens": sum(len(answer.ids) for answer in scorer.teacher),
            "cut_answers": scorer.cut_answers,
            "full_answers": scorer.texts,
            "methods": [summary(spec, method, done, errors.get(spec)) for spec, method in made.items()],
        }

    def _run_one(self, spec: str, seed: int, scorer: FidelityScorer) -> dict:
        job = self._job(spec, seed)
        cell = {"method": spec, "seed": seed, **run_method(spec, {}, job, scorer, self.splits.test, self.task)}
        append_record(self.folder.cells_file, cell)
        shutil.rmtree(job.directory, ignore_errors=True)
        return cell

    def _job(self, spec: str, seed: int) -> Job:
        return Job(
            self.base,
            self.tokenizer,
            self.prompt,
            self.splits,
            self.folder.work / f"{spec.replace(':', '-')}-{seed}",
            seed=seed,
            max_steps=self.config.max_steps,
            max_minutes=self.config.max_minutes,
            max_answer_length=self.config.max_answer_length,
            on_progress=self.on_progress,
        )


def _split(queries: list, test_queries: Iterable | None) -> QuerySplits:
    """Training, validation and test queries; where no test queries are given, some of the others."""
    if test_queries is None:
        distinct = list({query_key(query): query for query in queries}.values())
        test_queries = split_queries(distinct, None, 0.2, NUM_TEST_QUERIES, SPLIT_SEED).validation
    return split_queries(queries, test_queries, seed=SPLIT_SEED)


def _described(splits: QuerySplits, settings: dict, task: Task | None) -> dict:
    """What `results.json` says of how the methods were compared."""
    return {
        "settings": settings,
        "num_queries": {split: len(getattr(splits, split)) for split in ("train", "validation", "test")},
        "max_answer_length": settings["max_answer_length"],
        "budget": {name: settings[name] for name in ("max_steps", "max_minutes")},
        "seeds": list(settings["seeds"]),
        "task": task and type(task).__name__,
        "task_lower_is_better": task is not None and task.lower_is_better,
        "queries": [query if isinstance(query, str) else query[-1]["content"] for query in splits.test],
    }
