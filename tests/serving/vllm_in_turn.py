"""
Base models with a LoRA adapter each, loaded by vLLM one after the other in one process: answers, or why there are none.

Run by the interpreter of an environment with vLLM, with a JSON file of jobs by name. A job has `model` and `lora` (folders),
`prompts` (lists of ids), `length`, and optionally `options` of `LLM`, and `samples`: how many answers to the first prompt
are to be sampled. Writes a JSON file with `base` and `lora`, the greedy answers to all prompts, `samples`, or `error`.
"""

import gc
import json
import sys

from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.lora.request import LoRARequest


# LoRA for the embedding alone: vLLM's experts take none on CPU
OPTIONS = {
    "dtype": "float32", "enforce_eager": True, "max_model_len": 256, "block_size": 32, "enable_lora": True, "max_lora_rank": 8,
    "lora_target_modules": ["embed_tokens"],
}  # fmt: skip


def ask(llm: LLM, job: dict, prompts: list, adapter: LoRARequest | None = None, **settings) -> list[list[int]]:
    replies = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts],
        SamplingParams(max_tokens=job["length"], **settings),
        lora_request=adapter,
        use_tqdm=False,
    )
    return [list(reply.outputs[0].token_ids) for reply in replies]


def run(job: dict) -> dict:
    answers: dict = {}
    llm = None
    try:
        llm = LLM(job["model"], **{**OPTIONS, **job.get("options", {})})
        answers["base"] = ask(llm, job, job["prompts"], temperature=0, ignore_eos=True)
        adapter = LoRARequest("be", 1, job["lora"])
        llm.llm_engine.add_lora(adapter)
        answers["lora"] = ask(llm, job, job["prompts"], adapter, temperature=0, ignore_eos=True)
        answers["samples"] = ask(llm, job, job["prompts"][:1] * job.get("samples", 0), adapter, temperature=1)
    except Exception as error:
        answers["error"] = f"{type(error).__name__}: {error}"
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()
    return answers


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        jobs = json.load(file)
    results = {}
    for name, job in jobs.items():
        results[name] = run(job)
        # After each, for whoever looks at a run that was cut off
        with open(sys.argv[2], "w") as file:
            json.dump(results, file)
