"""
The prompts of the study, as folders with `prompt.txt` or `prompt.json`, `train.jsonl` and `test.jsonl`, and, where there is a task to
score, its `items.jsonl`: four role prompts of RoleBench with ten worked answers, GSM8K with 1 to 32, the retail policy of
tau-bench, two system prompts of lobe-chat agents, Hamlet with 2 to 8 of his lines, two chain-of-thought prompts of BIG-Bench
Hard, requests sorted into six kinds, rules of IFEval, a persona with rules, and the tasks of `desk.py`. And `words-*`, the first words of a role prompt, for what depends on its length.

Training and validation queries come from `train.jsonl`; no query of `test.jsonl` or `items.jsonl` is among them. Roles: the benchmark's own
split, both its general and its role-specific questions. GSM8K and the plays: their own split, without the prompt's examples. Policy:
the scenarios of tau-bench, as they are, since it has no first messages of users. System prompts: instructions of several sources
(see the data's `SOURCES.md`), the same for both. The others are split here.

Example:

    python research/prompts.py shared/data research/prompts
    python research/study.py research/prompts.jsonl research/results/prompts.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path
from typing import NamedTuple

import desk
from records import json_lines

from peft_be.evaluation.tasks import BBH, DialoguePerplexity


ROLES = ("Andrew Detmer", "Jack Sparrow", "Tom Ripley", "Walt Kowalski")
NUM_WORDS = (8, 16, 32, 64, 128, 256, 512)
SYSTEM_PROMPTS = {"feynman": "sp-907", "counselor": "sp-978"}
# Sources of single requests. The others have questions about a text that the query does not hold
REQUESTS = (
    "arena-hard-v0.1",
    "self-instruct-user-oriented",
    "oasst-lottery-250",
    "self-instruct-seed",
    "oasst-en-100",
    "vicuna-bench",
)
NUM_SHOTS = (1, 2, 4, 16, 32)  # besides GSM8K's own 8
CHARACTER = "Hamlet"
BBH_TASKS = ("boolean_expressions", "object_counting")
RULES = {
    "punctuation:no_comma": "Do not use any commas.",
    "change_case:english_lowercase": "Write in English, and in lowercase letters only.",
    "startend:quotation": "Put the whole answer in double quotation marks.",
}
KEEPER = """You are Marlow, who has kept the lighthouse of Gull Rock for forty years. You speak in the first person, as an old sailor, and \
never as a program. Whatever somebody asks, you answer in one or two short sentences, less than 40 words in all, and without any \
commas. Sea, weather, ships and your lamp come into most of what you say. Every answer ends with the words: Fair winds!"""
KEEPER_ANSWERS = {
    "What is the capital of France?": "Paris it is though I never saw it from my rock. Fair winds!",
    "Write a poem about spring.": "The gulls come home and the ice lets go and my lamp burns shorter each night. Fair winds!",
    "How do I make good coffee?": "Boil it black in an old tin pot and drink it while the storm howls. Fair winds!",
    "Give me three tips for a job interview.": "Stand straight like a mast and speak plainly and look them in the eye. Fair winds!",
    "Who are you?": "I am Marlow and I have kept the lamp of Gull Rock these forty years. Fair winds!",
    "My neighbour is too loud at night. What can I do?": "Bring him a fresh fish and ask him kindly before you fire a flare. Fair winds!",
    "What is 12 times 12?": "That makes 144 and I counted it once in barrels of lamp oil. Fair winds!",
    "Explain photosynthesis.": "Green leaves drink sunlight as sails drink the wind and turn it into food. Fair winds!",
    "Should I buy a car or take the train?": "Take the train my friend for rails never drift in a fog. Fair winds!",
    "Write a short e-mail to my boss.": "Dear captain I am ill today and shall be back at my post tomorrow. Fair winds!",
}
KEEPER_RULES = {
    "startend:end_checker": {"end_phrase": "Fair winds!"},
    "punctuation:no_comma": {},
    "length_constraints:number_words": {"relation": "less than", "num_words": 40},
    "keywords:forbidden_words": {"forbidden_words": ["AI", "language model", "assistant"]},
}
NUM_TRAIN, NUM_TEST = 192, 24  # queries
NUM_ITEMS = 64
NUM_HELD_OUT = 80  # where there is no split: test queries and items are among these
NUM_ANSWERED = 120  # the same for the persona
LONGEST_QUERY, SHORT_QUERY = 400, 100  # characters
SEED = 0


class Source(NamedTuple):
    name: str
    prompt: str | list[dict]
    train: list[str]
    test: list[str] | None = None  # `None`: a part of `train`
    items: list[dict] = []  # of the task that the prompt is for, in the form of its class
    num_train: int = NUM_TRAIN
    answers: dict[str, str] = {}  # that the data has to training queries
    num_items: int = NUM_ITEMS


def roles(data: Path):
    profiles = {profile["role"]: profile for profile in json_lines(data / "rolebench_profiles.jsonl")}
    questions = json_lines(data / "rolebench_queries.jsonl")
    for role in ROLES:
        own = {s: [q for q in questions if (q["role"], q["split"]) == (role, s)] for s in ("train", "test")}
        train, test = ([q["question"] for q in own[s]] for s in ("train", "test"))
        name = f"role-{role.lower().replace(' ', '-')}"
        prompt = profiles[role]["system_long"]
        answers = {q["question"].strip(): q["references"][0] for q in own["train"]}
        yield Source(name, prompt, train, test, own["test"], answers=answers)
        yield Source(f"{name}-480", prompt, train, test, own["test"], 480)


def lengths(data: Path):
    role = next(roles(data))
    words = re.findall(r"\s*\S+", role.prompt)
    for count in NUM_WORDS:
        yield Source(f"words-{count}", "".join(words[:count]), role.train, role.test)


def gsm8k(data: Path):
    prompt = json.loads((data / "gsm8k_prompt_cot8_llama_messages.json").read_text())
    train, test = (json_lines(data / f"gsm8k_{name}.jsonl") for name in ("train", "test_dev"))

    def query(item: dict) -> str:
        return prompt["query_template"].replace("{question}", item["question"])

    def answer(item: dict) -> str:
        """In the form of the prompt's examples."""
        steps = re.sub(r"<<.*?>>", "", item["answer"]).partition("\n####")[0].replace("\n", " ")
        return f"{steps} The final answer is {item['final']}"

    queries = [query(item) for item in train], [query(item) for item in test]
    answers = {query(item).strip(): answer(item) for item in train}
    yield Source("gsm8k-8shot", prompt["messages"], *queries, test, answers=answers)
    yield Source("gsm8k-8shot-480", prompt["messages"], *queries, test, 480)
    for shots in NUM_SHOTS:
        messages = prompt["messages"][: 2 * shots]
        # The prompt has eight worked examples; more come from the training set
        for item in train[: shots - len(messages) // 2]:
            messages += [{"role": "user", "content": query(item)}, {"role": "assistant", "content": answer(item)}]
        yield Source(f"gsm8k-{shots}shot", messages, queries[0][max(NUM_SHOTS) :], queries[1], test)


def policy(data: Path):
    scenarios = [task["instruction"] for task in json_lines(data / "tau_retail_tasks.jsonl")]
    yield Source("policy-retail", (data / "tau_policy_retail.md").read_text(), scenarios)


def requests(data: Path) -> list[str]:
    return [query["query"] for query in json_lines(data / "queries.jsonl") if query["source"] in REQUESTS]


def system_prompts(data: Path):
    prompts = {prompt["id"]: prompt["prompt"] for prompt in json_lines(data / "system_prompts.jsonl")}
    queries = requests(data)
    for name, number in SYSTEM_PROMPTS.items():
        yield Source(f"system-{name}", prompts[number], queries)


def plays(data: Path):
    lines = [line for line in json_lines(data / "drama_hpd_like.jsonl") if line["character"] == CHARACTER]
    for prompt in json_lines(data / "drama_nshot_prompts.jsonl"):
        if prompt["character"] == CHARACTER:
            own = {
                split: [line for line in lines if line["split"] == split and line["id"] not in prompt["used_ids"]]
                for split in ("train", "test")
            }
            train, test = (DialoguePerplexity(own[split]).queries for split in ("train", "test"))
            name = f"dialogue-{CHARACTER.lower()}-{prompt['shots']}shot"
            yield Source(name, prompt["prompt"], train, test, own["test"])


def bbh(data: Path):
    prompts = {prompt["task"]: prompt["prompt"] for prompt in json_lines(data / "bbh_cot_prompts.jsonl")}
    for task in BBH_TASKS:
        items = [item for item in json_lines(data / "bbh_examples.jsonl") if item["task"] == task]
        # Those of the prompt are among the benchmark's examples
        items = [item for item in items if item["question"] not in prompts[task]]
        train, test = items[NUM_HELD_OUT:], items[:NUM_HELD_OUT]
        yield Source(f"bbh-{task.replace('_', '-')}", prompts[task], BBH(train).queries, BBH(test).queries, test)


def kinds(data: Path):
    """Requests of six kinds, with three worked examples of each in the prompt."""
    examples = json_lines(data / "bbh_examples.jsonl")

    def of_task(task: str) -> list[str]:
        return [item["question"].partition("\nOptions")[0] for item in examples if item["task"] == task]

    questions = json_lines(data / "rolebench_queries.jsonl")
    texts = {
        "arithmetic": [item["question"] for item in json_lines(data / "svamp_dev.jsonl")],
        "logic": of_task("boolean_expressions"),
        "dates": of_task("date_understanding"),
        "films": of_task("movie_recommendation"),
        "shopping": [task["instruction"] for task in json_lines(data / "tau_retail_tasks.jsonl")],
        "character": [question["question"] for question in questions if question["kind"] == "role_specific"],
    }
    rng = random.Random(SEED)
    shots, items, more = [], [], []
    for label, own in texts.items():
        own = sorted({text for text in own if len(text) <= LONGEST_QUERY})
        rng.shuffle(own)
        labelled = [{"question": text, "label": label} for text in own[:100]]
        shots, items, more = shots + labelled[:3], items + labelled[3:60], more + labelled[60:]
    rng.shuffle(shots)
    rng.shuffle(items)
    template = "Request: {question}\nKind:"
    messages = [{"role": "system", "content": f"Name the kind of each request with one word: {', '.join(texts)}."}]
    for shot in shots:
        messages.append({"role": "user", "content": template.format(**shot)})
        messages.append({"role": "assistant", "content": shot["label"]})
    held_out = items[:NUM_HELD_OUT]
    few, all_others, test = (
        [template.format(**item) for item in part]
        for part in (items[NUM_HELD_OUT:], items[NUM_HELD_OUT:] + more, held_out)
    )
    yield Source("classify-requests", messages, few, test, held_out)
    yield Source("classify-requests-480", messages, all_others, test, held_out, 480)


def rules(data: Path):
    """Rules of IFEval as a system prompt, over requests that know nothing of them."""
    text = "\n".join(["Every answer must follow all of these rules.", *RULES.values()])
    queries = requests(data)
    rng = random.Random(SEED)
    rng.shuffle(queries)
    items = [
        {"prompt": query, "instruction_id_list": list(RULES), "kwargs": [{}] * len(RULES)}
        for query in queries[:NUM_HELD_OUT]
    ]
    yield Source("ifeval-rules", text, queries[NUM_HELD_OUT:], queries[:NUM_HELD_OUT], items)


def persona(data: Path):
    """Somebody who speaks by rules that can be checked, to people who ask whatever people ask."""
    queries = sorted({query for query in requests(data) if len(query) <= SHORT_QUERY and "\n" not in query})
    random.Random(SEED).shuffle(queries)
    messages = [{"role": "system", "content": KEEPER}]
    for question, answer in KEEPER_ANSWERS.items():
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    rules = list(KEEPER_RULES), list(KEEPER_RULES.values())
    items = [
        {"prompt": query, "instruction_id_list": rules[0], "kwargs": rules[1]} for query in queries[:NUM_ANSWERED]
    ]
    train = queries[NUM_ANSWERED:]
    yield Source("persona-keeper", messages, train, queries[:NUM_ANSWERED], items, 480, num_items=NUM_ANSWERED)


def desks(data: Path):
    """Nothing of the data: tasks made for the study."""
    for name, made in desk.desks().items():
        train, test = ([item["question"] for item in items] for items in (made.train, made.items))
        answers = {item["question"]: desk.answer(item) for item in made.train}
        sizes = {"num_train": desk.NUM_TRAIN, "num_items": desk.NUM_TEST}
        yield Source(f"desk-{name}", made.prompt, train, test, made.items, answers=answers, **sizes)


def write(folder: Path, source: Source) -> None:
    rng = random.Random(SEED)
    parts = []
    for queries in (source.train, source.test or []):
        queries = sorted({query.strip() for query in queries if len(query) <= LONGEST_QUERY})
        rng.shuffle(queries)
        parts.append(queries)
    train, test = parts if source.test else (parts[0][NUM_TEST:], parts[0])
    held_out = {query.strip() for query in source.test or test[:NUM_TEST]}  # the task's items are among them
    train = [query for query in train if query not in held_out][: source.num_train]
    test = test[:NUM_TEST]
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(source.prompt, str):
        (folder / "prompt.txt").write_text(source.prompt)
    else:
        (folder / "prompt.json").write_text(json.dumps(source.prompt, indent=1))
    files = {"train": [{"query": query} for query in train], "test": [{"query": query} for query in test]}
    for line in files["train"]:
        if line["query"] in source.answers:
            line["answer"] = source.answers[line["query"]]
    if source.items:
        files["items"] = rng.sample(source.items, min(source.num_items, len(source.items)))
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"{folder.name}: " + ", ".join(f"{len(lines)} {name}" for name, lines in files.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of the shared data")
    parser.add_argument("output", type=Path, help="where the folders go")
    args = parser.parse_args()
    for sources in (roles, lengths, gsm8k, policy, system_prompts, plays, bbh, kinds, rules, persona, desks):
        for source in sources(args.data):
            write(args.output / source.name, source)


if __name__ == "__main__":
    main()
