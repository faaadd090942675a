"""The package's tasks and the lm-evaluation-harness give [BE] the same scores on the same items."""

import random
from pathlib import Path

import pytest
import torch
import yaml
from peft import get_peft_model

from peft_be import BETokenConfig, PromptRenderer, load_model
from peft_be.evaluation.stand_in import StandIn
from peft_be.evaluation.tasks import BBH, GSM8K, evaluate_task, load_task


lm_eval = pytest.importorskip("lm_eval", reason="needs the lm-evaluation-harness: pip install lm-eval")

DATA = Path(__file__).parent / "data"
SHIPPED = Path(lm_eval.__file__).parent / "tasks"
# The harness's own tasks, but for the data and for what belongs to the prompt
LOCAL = """
include: {include}
task: {name}_local
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
training_split: null
fewshot_split: null
num_fewshot: 0
description: ""
"""
LOCAL_BBH = r"""
doc_to_text: "Q: {{question}}\nA: Let's think step by step."
doc_to_target: "{{final}}"
"""


@pytest.fixture(scope="module")
def load(smollm2_dir):
    """Gives the model and an adapter whose rows are the embeddings of a prompt: not trained, but of some effect."""

    def load(prompt, folder):
        model, tokenizer = load_model(smollm2_dir, torch.float32)
        table, ids = model.get_input_embeddings(), PromptRenderer(tokenizer, prompt).prompt_ids
        rows = table.weight[torch.tensor(ids)].clone()
        config = BETokenConfig.for_tokenizer(tokenizer, table.num_embeddings, len(rows))
        peft_model = get_peft_model(model, config)
        peft_model.base_model.set_rows("default", rows)
        peft_model.save_pretrained(folder)
        return peft_model.unload(), tokenizer, StandIn(rows=rows)

    return load


def harness_score(settings, filter_name, answer, reference):
    """What the harness makes of an answer with a task's own filter and metric."""
    from lm_eval.api.metrics import exact_match_fn
    from lm_eval.filters.extraction import RegexFilter

    steps = next(f["filter"] for f in settings["filter_list"] if f["name"] == filter_name)
    arguments = {name: value for name, value in steps[0].items() if name != "function"}
    given = RegexFilter(**arguments).apply([[answer]], [{}])[0][0]
    metric = {k: v for k, v in settings["metric_list"][0].items() if k.startswith(("ignore", "regexes"))}
    return exact_match_fn(predictions=[given], references=[reference], **metric)["exact_match"]


def test_numbers_are_found_as_the_harness_finds_them():
    settings = yaml.safe_load((SHIPPED / "gsm8k" / "gsm8k.yaml").read_text())
    rng, right = random.Random(0), 0
    for _ in range(3000):
        pieces = rng.choices(
            ["1", "18", "1,018", "$18", "-18", "18.", "18.00", "a", " ", "\n", "$", ".", ","], k=rng.randint(1, 5)
        )
        answer, reference = "".join(pieces), "3 * 6\n#### " + rng.choice(["18", "1,018", "-18", "1", "18.00"])
        ours = GSM8K([{"question": "?", "answer": reference}]).score([answer])["score"]
        assert ours == harness_score(settings, "flexible-extract", answer, reference), answer
        right += ours
    assert right > 200


def test_answers_of_bbh_are_found_as_the_harness_finds_them():
    template = yaml.safe_load((SHIPPED / "bbh" / "cot_zeroshot" / "_cot_zeroshot_template_yaml").read_text())
    settings = {
        **template,
        **yaml.safe_load((SHIPPED / "bbh" / "cot_zeroshot" / "boolean_expressions.yaml").read_text()),
    }
    for answer in (
        "So the answer is True.",
        "not True = False. So the answer is False.\n\nThe answer is True.",
        "The answer is (B).",
        "The answer is clear. So the answer is True.",
        "True.",
    ):
        for final in ("True", "False", "(B)"):
            ours = BBH([{"question": "?", "final": final}]).score([answer])["score"]
            assert ours == harness_score(settings, "strict-match", answer, final), (answer, final)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, include, more, prompt, template, filters",
    [
        (
            "gsm8k",
            "gsm8k/gsm8k.yaml",
            "",
            'Solve the problem. End with "The answer is" and the number.',
            "Question: {question}\nAnswer:",
            {"flexible": "flexible-extract"},
        ),
        (
            "bbh",
            "bbh/cot_zeroshot/boolean_expressions.yaml",
            LOCAL_BBH,
            'Be brief. End with "So the answer is True." or "So the answer is False."',
            None,
            {"exact_match": "strict-match"},
        ),
    ],
)
def test_same_answers_and_same_score(
    load, smollm2_dir, tmp_path, monkeypatch, name, include, more, prompt, template, filters
):
    from lm_eval.tasks import TaskManager

    import peft_be.evaluation.lm_eval  # noqa: F401

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    data = DATA / f"{name}.jsonl"
    model, tokenizer, stand_in = load(prompt, tmp_path / "adapter")
    task = load_task(name, data, template=template, max_answer_length=96)
    ours = evaluate_task(task, model, tokenizer, stand_in, batch_size=8)

    (tmp_path / "tasks").mkdir()
    local = LOCAL.format(include=SHIPPED / include, name=name, data=data) + more
    (tmp_path / "tasks" / "local.yaml").write_text(local)
    theirs = lm_eval.simple_evaluate(
        model="peft_be",
        model_args={"pretrained": str(smollm2_dir), "adapter": str(tmp_path / "adapter"), "dtype": "float32"},
        tasks=[f"{name}_local"],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        gen_kwargs={"max_gen_toks": 96},
        batch_size=8,
        device="cpu",
        bootstrap_iters=0,
    )
    samples = theirs["samples"][f"{name}_local"]
    for metric, filtered in filters.items():
        rows = sorted((s for s in samples if s["filter"] == filtered), key=lambda s: s["doc_id"])
        answers = [s["resps"][0][0] for s in rows]
        assert answers == [answer.split(task.stop[0])[0] for answer in ours["answers"]]
        assert [s["exact_match"] for s in rows] == task.item_scores(answers)[metric]
        assert theirs["results"][f"{name}_local"][f"exact_match,{filtered}"] == ours["metrics"][metric]["score"]
