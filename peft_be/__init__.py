"""One learned token in place of a long system prompt: the Behavior-Equivalent token (arXiv 2511.23271) for PEFT."""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .adapters.hub import push_adapters as push_adapters
    from .adapters.load import load_adapter as load_adapter
    from .adapters.load import load_adapters as load_adapters
    from .data import QuerySplits as QuerySplits
    from .data import as_queries as as_queries
    from .data import load_queries as load_queries
    from .evaluation import AnswerCheck as AnswerCheck
    from .evaluation import AuditConfig as AuditConfig
    from .evaluation import BenchConfig as BenchConfig
    from .evaluation import audit_leakage as audit_leakage
    from .evaluation import bench_inference as bench_inference
    from .evaluation import check_scores as check_scores
    from .evaluation import evaluate_fidelity as evaluate_fidelity
    from .evaluation import evaluate_reconstruction as evaluate_reconstruction
    from .evaluation import evaluate_refusals as evaluate_refusals
    from .evaluation import load_checks as load_checks
    from .models import load_model as load_model
    from .prompting import PromptRenderer as PromptRenderer
    from .prompting import load_prompt as load_prompt
    from .runs.compress import Compression as Compression
    from .runs.compress import compress_prompt as compress_prompt
    from .runs.compress_many import PromptResult as PromptResult
    from .runs.compress_many import compress_prompts as compress_prompts
    from .runs.config import CompressConfig as CompressConfig
    from .runs.config import PretrainAEConfig as PretrainAEConfig
    from .runs.manifest import PromptJob as PromptJob
    from .runs.pretrain_ae import PretrainedAE as PretrainedAE
    from .runs.pretrain_ae import pretrain_ae as pretrain_ae
    from .runs.synthesize import SynthesizedQueries as SynthesizedQueries
    from .runs.synthesize import synthesize_queries as synthesize_queries
    from .serving import PromptDirectory as PromptDirectory
    from .serving import PromptEmbeds as PromptEmbeds
    from .serving import export_gguf as export_gguf
    from .serving import export_lora as export_lora
    from .serving import export_lora_gguf as export_lora_gguf
    from .serving import export_merged as export_merged
    from .serving import import_lora as import_lora
    from .serving import strip_special_tokens as strip_special_tokens
    from .training import AEConfig as AEConfig
    from .training import AETrainer as AETrainer
    from .training import BEDistillConfig as BEDistillConfig
    from .training import BEDistillTrainer as BEDistillTrainer
    from .training import ManyPromptsTrainer as ManyPromptsTrainer
    from .tuner import BETokenConfig as BETokenConfig
    from .tuner import BETokenModel as BETokenModel


__version__ = "0.1.0"

# Each public name and its module, which is imported when the name is first used: `peft-be --help` needs neither torch
# nor PEFT, and registering BE_TOKEN with PEFT does not need TRL
_LAZY = {
    "AEConfig": "training",
    "AETrainer": "training",
    "AnswerCheck": "evaluation",
    "AuditConfig": "evaluation",
    "BEDistillConfig": "training",
    "BEDistillTrainer": "training",
    "BETokenConfig": "tuner",
    "BETokenModel": "tuner",
    "BenchConfig": "evaluation",
    "CompressConfig": "runs.config",
    "Compression": "runs.compress",
    "ManyPromptsTrainer": "training",
    "PretrainAEConfig": "runs.config",
    "PretrainedAE": "runs.pretrain_ae",
    "PromptDirectory": "serving",
    "PromptEmbeds": "serving",
    "PromptJob": "runs.manifest",
    "PromptResult": "runs.compress_many",
    "QuerySplits": "data",
    "SynthesizedQueries": "runs.synthesize",
    "PromptRenderer": "prompting",
    "as_queries": "data",
    "audit_leakage": "evaluation",
    "bench_inference": "evaluation",
    "check_scores": "evaluation",
    "compress_prompt": "runs.compress",
    "compress_prompts": "runs.compress_many",
    "evaluate_fidelity": "evaluation",
    "evaluate_reconstruction": "evaluation",
    "evaluate_refusals": "evaluation",
    "export_gguf": "serving",
    "export_lora": "serving",
    "export_lora_gguf": "serving",
    "export_merged": "serving",
    "import_lora": "serving",
    "load_adapter": "adapters.load",
    "load_adapters": "adapters.load",
    "load_checks": "evaluation",
    "load_model": "models",
    "load_prompt": "prompting",
    "load_queries": "data",
    "pretrain_ae": "runs.pretrain_ae",
    "push_adapters": "adapters.hub",
    "strip_special_tokens": "serving",
    "synthesize_queries": "runs.synthesize",
}

__all__ = list(_LAZY)


def __getattr__(name: str):
    if name == "tuner":  # PEFT's tuners are reached as attributes, too
        return import_module(".tuner", __name__)
    if name not in _LAZY:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    # PEFT as a whole first: while another thread imports it, modules of it that are named one by one are half made
    import_module("peft")
    value = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _without_kernel_advice(record: logging.LogRecord) -> bool:
    return not record.msg.startswith("Failed to load CPU gemm_4bit_forward")


# PEFT imports bitsandbytes, which on some processors prints at each import that an optional package is missing. It
# computes without that package
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_without_kernel_advice)


def _extend(peft) -> None:
    import_module(".tuner", __name__)  # registers BE_TOKEN
    import_module(".adapters.card", __name__).write_cards_on_save(peft)


# As soon as both are imported, whichever comes first: at once, or right after PEFT's import. `pip install --no-deps`, all that
# vLLM's plugin needs, leaves wrapt out
if find_spec("wrapt") is not None:
    import_module("wrapt").register_post_import_hook(_extend, "peft")
