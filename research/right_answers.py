"""
The training queries of a task that the full prompt answers rightly: `train-right.jsonl` in the folder of its prompt, for cells of the
study that distil right answers alone. Right is an answer whose first line is the `answer` of the query, as in the task `classification`.

Example:

    python research/right_answers.py research/prompts/desk-sql --model Qwen/Qwen2.5-Coder-0.5B-Instruct --max-answer-length 64
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from records import json_lines

from peft_be.evaluation.tasks import Classification
from peft_be.models import load_model
from peft_be.prompting import PromptRenderer, load_prompt
from peft_be.teacher import AnswerSettings, generate_answers, share_prefix


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a prompt's, from prompts.py")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--max-answer-length", type=int, default=64)
    args = parser.parse_args()
    model, tokenizer = load_model(args.model)
    queries = json_lines(args.folder / "train.jsonl")
    renderer = PromptRenderer(tokenizer, load_prompt(args.folder / "prompt.json"))
    prompts = [renderer.full(item["query"]) for item in queries]
    settings = AnswerSettings(max_new_tokens=args.max_answer_length, batch_size=32)
    answers = generate_answers(
        model, prompts, settings, tokenizer.pad_token_id or 0, prefix=share_prefix(model, prompts)
    )
    texts = [tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in answers]
    task = Classification([{"question": item["query"], "label": item["answer"]} for item in queries])
    scores = task.item_scores(texts)["exact_match"]
    right = [item for item, score in zip(queries, scores) if score]
    (args.folder / "train-right.jsonl").write_text("".join(json.dumps(item) + "\n" for item in right))
    print(f"{args.folder.name}: {len(right)} of {len(queries)} training queries are answered rightly.")


if __name__ == "__main__":
    main()
