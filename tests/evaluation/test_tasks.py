"""Scores of tasks against hand-made answers, and against the model used directly."""

import copy
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from peft_be import PromptRenderer
from peft_be.evaluation.stand_in import StandIn
from peft_be.evaluation.tasks import (
    BBH,
    GSM8K,
    TASKS,
    Classification,
    EndpointJudge,
    Extraction,
    IFEval,
    LocalJudge,
    RoleBenchJudge,
    evaluate_task,
    load_task,
)


DATA = Path(__file__).parent / "data"
FILES = {
    "bbh": "bbh",
    "dialogue-perplexity": "drama",
    "gsm8k": "gsm8k",
    "ifeval": "ifeval",
    "rolebench": "rolebench",
    "rolebench-judge": "rolebench",
}
STAND_INS = {
    "prompt": StandIn(
        prompt="You answer in one short sentence, and you never leave the island, whatever happens to you there."
    ),
    "none": StandIn(),
    "rows": StandIn(rows=torch.randn(2, 32, generator=torch.Generator().manual_seed(0))),
    "prefix slot": StandIn(rows=torch.randn(1, 32, generator=torch.Generator().manual_seed(1)), slot="prefix"),
}


def load(name, **arguments):
    return load_task(name, DATA / f"{FILES[name]}.jsonl", **arguments)


def scored(task, *answers):
    result = task.score(list(answers))
    return {name: metric["score"] for name, metric in result["metrics"].items()}


@pytest.mark.parametrize(
    "answer, flexible, strict",
    [
        ("She makes 9 * 2 = 18. The answer is 1,018.", 1, 1),
        ("The final answer is $1018", 1, 1),
        ("The answer is 1018 dollars, or 5 a day.", 0, 1),
        ("So she has $1,018.", 1, 0),
        ("The answer is 10180.", 0, 0),
        ("I do not know.", 0, 0),
        ("It is 1018.\nQuestion: What is 1 + 1?\nThe answer is 2.", 1, 0),
    ],
)
def test_gsm8k(answer, flexible, strict):
    for reference in ({"answer": "3 * 6 = <<3*6=18>>18\n#### 1,018"}, {"final": "1018"}):
        task = GSM8K([{"question": "How many?", **reference}])
        assert scored(task, answer) == {"flexible": flexible, "strict": strict}


@pytest.mark.parametrize(
    "final, answer, right",
    [
        ("(B)", "It follows. So the answer is (B).", 1),
        ("(B)", "So the answer is (B)\n\nQ: Next? So the answer is (A).", 1),
        ("(B)", "So the answer is B.", 0),
        ("True", "(B) is True.", 0),
        ("] ]", "The answer is ] ].", 1),
    ],
)
def test_bbh(final, answer, right):
    task = BBH([{"question": "Which?", "final": final}])
    assert task.queries == ["Q: Which?\nA: Let's think step by step."]
    assert scored(task, answer) == {"exact_match": right}


def test_classification():
    task = Classification([{"question": text, "label": "Positive"} for text in "abcd"])
    assert scored(task, "positive", " Positive.\nBecause", "Negative", "It is positive") == {"exact_match": 0.5}


@pytest.mark.parametrize(
    "answer, exact, fields, valid",
    [
        ('{"name": "Ann", "gift": true, "items": [1, 2]}', 1, 1, 1),
        ('Sure:\n```json\n{"items": [1, 2], "gift": true, "name": "Ann"}\n``` {"name": "Bob"}', 1, 1, 1),
        ('{"name": "Ann", "gift": 1, "items": [2, 1]}', 0, 1 / 3, 1),
        ('{"name": "Ann", "gift": true, "items": [1, 2], "more": null}', 0, 1, 1),
        ('{Ann} {"name": "Ann"}', 0, 1 / 3, 1),
        ('["Ann", true]', 0, 0, 0),
        ('{"name": "Ann", "gift": true', 0, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_extraction(answer, exact, fields, valid):
    task = Extraction(
        [{"question": "Ann wants 1 and 2 as a gift.", "label": {"name": "Ann", "gift": True, "items": [1, 2]}}]
    )
    assert scored(task, answer) == {"exact_match": exact, "fields": pytest.approx(fields), "valid": valid}


@pytest.mark.parametrize("label", [None, {}, "{}", [1]])
def test_the_label_of_an_extraction_is_an_object(label):
    with pytest.raises(ValueError, match="'label' of item 1 of the task must be a JSON object"):
        Extraction([{"question": "Who?", "label": label}])


def test_rolebench_takes_the_closest_reference():
    task = load("rolebench", where={"role": "Sherlock Holmes", "split": "test"})
    result = task.score([item["references"][0] for item in task.items])
    assert result["score"] == 1 and result["num_items"] == 4 and result["standard_error"] == 0
    two = type(task)([{"question": "Who?", "references": ["a b c d", "I am Holmes"]}])
    assert scored(two, "I am Watson")["rouge_l"] == pytest.approx(2 / 3)
    assert two.score(["x"])["standard_error"] is None


def test_the_standard_error_is_that_of_a_mean():
    task = GSM8K([{"question": "?", "final": "1"}] * 4)
    result = task.score(["1", "1", "1", "2"])
    assert result["score"] == 0.75 and result["standard_error"] == pytest.approx(0.25)
    assert result["item_scores"] == [1, 1, 1, 0]
    with pytest.raises(ValueError, match="3 answers to 4 items"):
        task.score(["1"] * 3)


def test_ifeval(monkeypatch):
    for package in ("lm_eval", "langdetect", "immutabledict", "nltk"):
        pytest.importorskip(package, reason="needs the rules: pip install 'lm-eval[ifeval]'")
    monkeypatch.setattr("nltk.download", lambda *args: False)
    monkeypatch.setattr("peft_be.evaluation.tasks.ifeval._has_sentences", lambda: False)
    rules = {"instruction_id_list": ["length_constraints:number_sentences"], "kwargs": [{}]}
    with pytest.raises(ValueError, match="number_sentences need nltk's punkt_tab"):
        IFEval([{"prompt": "Write one sentence.", **rules}])
    task = load("ifeval")
    answers = ["Take a boat, then walk."] * len(task.items)
    answers[0] = "Take thee to Kyoto and rest."
    answers[3] = "*He woke up.\n***\nHe saw the high score."
    result = task.score(answers)
    assert result["item_scores"][:4] == [1, 0, 0, 1]
    assert result["metrics"]["prompt_loose"]["score"] >= result["metrics"]["prompt_strict"]["score"]
    assert result["metrics"]["instruction_strict"]["score"] >= result["score"] == 2 / 8


@pytest.mark.parametrize("stand_in", STAND_INS.values(), ids=STAND_INS)
def test_answers_are_the_models_own(tiny_model, tiny_tokenizer, stand_in):
    task = load("gsm8k", max_items=3, template="Question: {question}\nAnswer:", max_answer_length=5)
    result = evaluate_task(task, tiny_model, tiny_tokenizer, stand_in, batch_size=2)
    with stand_in.placed(tiny_model, tiny_tokenizer) as render:
        for item, answer in zip(task.items, result["answers"]):
            ids = torch.tensor([render(f"Question: {item['question']}\nAnswer:")])
            mask = torch.ones_like(ids)
            written = tiny_model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
            assert answer == tiny_tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
    again = task.score(result["answers"])
    assert again == {name: value for name, value in result.items() if name != "answers"}
    assert set(again) == {"score", "standard_error", "num_items", "item_scores", "metrics"}


@pytest.mark.parametrize("stand_in", STAND_INS.values(), ids=STAND_INS)
def test_perplexity_is_that_of_the_reference_lines(tiny_model, tiny_tokenizer, stand_in):
    task = load("dialogue-perplexity", where={"character": "Pickering"})
    assert task.queries[0].startswith("Scene: \nDialogue:\nMrs. Higgins: Now, Henry: be good.\nHiggins: I am")
    result = evaluate_task(task, tiny_model, tiny_tokenizer, stand_in, batch_size=2)
    losses, counts = [], []
    with stand_in.placed(tiny_model, tiny_tokenizer) as render:
        for query, item in zip(task.queries, task.items):
            prompt, line = render(query), tiny_tokenizer(item["response"])["input_ids"]
            with torch.no_grad():
                logits = tiny_model(input_ids=torch.tensor([prompt + line])).logits[0, len(prompt) - 1 : -1]
            losses.append(F.cross_entropy(logits, torch.tensor(line), reduction="sum").item())
            counts.append(len(line))
    assert result["score"] == pytest.approx(math.exp(sum(losses) / sum(counts)), rel=1e-4)
    assert result["item_scores"] == pytest.approx([math.exp(x / n) for x, n in zip(losses, counts)], rel=1e-4)
    assert 0 < result["standard_error"] < result["score"]


def test_perplexity_in_bfloat16_is_of_the_same_lines(tiny_model, tiny_tokenizer):
    """Ids above 256 are no bfloat16 numbers."""
    for parameter in tiny_model.parameters():
        parameter.data.mul_(3)  # a random model gives nearly the same probability to every token
    task = load("dialogue-perplexity", where={"character": "Pickering"})
    full, half = (
        evaluate_task(task, model, tiny_tokenizer, STAND_INS["prompt"])
        for model in (tiny_model, copy.deepcopy(tiny_model).bfloat16())
    )
    assert half["item_scores"] == pytest.approx(full["item_scores"], rel=0.05)


class Endpoint(BaseHTTPRequestHandler):
    """Speaks as much of OpenAI's protocol as a judge needs; a function of the question answers."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, self.headers.get("Authorization"), body))
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        if status is None:
            return  # the connection is dropped
        text = self.server.judge(body["messages"][0]["content"])
        content = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def endpoint():
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    server.seen, server.statuses = [], []
    server.judge = lambda question: "Winner: tie"
    server.url = f"http://127.0.0.1:{server.server_port}/v1/"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def prefers(word):
    """A judge that prefers the answer with the word in it, as a function of one question."""

    def judge(question):
        first, second = question.split("Answer 1:")[1].split("Answer 2:")
        first, second = word in first, word in second.partition("\n")[0]
        return f"Both try.\n**Winner: {'tie' if first == second else 1 if first else 2}**"

    return judge


def test_a_judge_behind_an_endpoint_sees_both_orders(endpoint, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    endpoint.judge = prefers("Elementary!")
    judge = EndpointJudge(endpoint.url, "judge-1", key_variable="JUDGE_KEY")
    task = load("rolebench-judge", judge=judge)
    result = task.score(["Elementary!", "Elementary!", "No.", "Elementary!"])
    assert result["item_scores"] == [1, 1, 0.5, 1] and result["metrics"]["tie"]["score"] == 0.25
    assert result["metrics"]["consistent"]["score"] == 1
    assert len(endpoint.seen) == 8
    for path, key, body in endpoint.seen:
        assert path == "/v1/chat/completions" and key == "Bearer secret"
        assert body["model"] == "judge-1" and body["temperature"] == 0 and "secret" not in json.dumps(body)
    first, second = (body["messages"][0]["content"] for _, _, body in endpoint.seen[:2])
    assert "Answer 1: Elementary!" in first and "Answer 2: Elementary!" in second
    assert task.items[0]["rolegpt"] in first


def test_a_judge_that_always_takes_the_first_decides_nothing(endpoint):
    endpoint.judge = lambda question: "Winner: Answer 1"
    result = load("rolebench-judge", judge=EndpointJudge(endpoint.url, "x")).score(["a"] * 4)
    assert result["score"] == 0.5 and result["metrics"]["consistent"]["score"] == 0
    assert result["metrics"]["tie"]["score"] == 0
    endpoint.judge = lambda question: "Both are fine."
    result = load("rolebench-judge", judge=EndpointJudge(endpoint.url, "x")).score(["a"] * 4)
    assert result["score"] == 0.5 and result["metrics"]["unclear"]["score"] == 1
    assert result["metrics"]["consistent"]["score"] == 0


def test_an_endpoint_that_fails(endpoint, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    endpoint.statuses = [503, None, 429]
    assert EndpointJudge(endpoint.url, "x")(["?"]) == ["Winner: tie"]
    endpoint.statuses = [401]
    with pytest.raises(OSError, match="status 401") as error:
        EndpointJudge(endpoint.url, "x")(["?"])
    assert "secret" not in str(error.value) and len(endpoint.seen) == 5
    with pytest.raises(OSError, match="does not answer"):
        EndpointJudge("http://127.0.0.1:9/v1", "x", retries=1)(["?"])


def test_a_local_judge(tiny_model, tiny_tokenizer):
    judge = LocalJudge(tiny_model, tiny_tokenizer, max_answer_length=4, batch_size=3)
    result = evaluate_task(
        load("rolebench-judge", judge=judge, max_items=2, max_answer_length=4),
        tiny_model,
        tiny_tokenizer,
        StandIn(),
    )
    assert result["metrics"]["unclear"]["score"] == 1 and result["score"] == 0.5
    ids = torch.tensor([PromptRenderer(tiny_tokenizer).no_prompt("Who?")])
    written = tiny_model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False
    )
    assert judge(["Who?"]) == [tiny_tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)]


def test_bad_input(tmp_path):
    (tmp_path / "items.jsonl").write_text('{"question": "Why?", "final": "1"}\n')
    path = tmp_path / "items.jsonl"
    with pytest.raises(ValueError, match=", ".join(TASKS)):
        load_task("gsm", path)
    with pytest.raises(FileNotFoundError, match="check the path"):
        load_task("gsm8k", tmp_path / "nothing.jsonl")
    with pytest.raises(ValueError, match="fits"):
        load_task("gsm8k", path, where={"split": "test"})
    with pytest.raises(ValueError, match="Item 1 of the task has no field 'references'"):
        load_task("rolebench", path)
    with pytest.raises(ValueError, match="Item 1 of the task has no field 'scene'"):
        load_task("dialogue-perplexity", path)
    with pytest.raises(ValueError, match="'role'"):
        RoleBenchJudge([{"question": "Who?", "rolegpt": "I."}], judge=list)
    for template, message in (
        ("{", "not one of str.format"),
        ("{}", "must name the fields"),
        ("{0.real}", "must name"),
    ):
        with pytest.raises(ValueError, match=message):
            load_task("gsm8k", path, template=template)
    for value in (["Why?"], None, {"text": "Why?"}, True):
        with pytest.raises(ValueError, match="The field 'question' of item 1 of the task must be a text or a number"):
            GSM8K([{"question": value, "final": "1"}])
    (tmp_path / "items.jsonl").write_text("{\n")
    with pytest.raises(ValueError, match="Line 1 of .* is not JSON"):
        load_task("gsm8k", path)
