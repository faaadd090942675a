from ...evaluation.stand_in import StandIn
from .attention import AttentionSampling
from .be import BE
from .bounds import FullPrompt, NoPrompt
from .cartridge import Cartridge
from .distillation import Distillation
from .llmlingua import LLMLingua2
from .lora import LoRA
from .method import Job, Method
from .paper import PaperBE
from .prune_then_be import PruneThenBE
from .pruning import Pruner
from .reconstruction import MemoryToken, Reconstruction
from .registry import METHODS, make_method
from .reordered import Reordered
from .self_information import SelfInformation
from .soft_prompt import SoftPrompt
from .truncation import Truncation
from .unilora import UniLoRA


__all__ = [
    "AttentionSampling",
    "BE",
    "Cartridge",
    "Distillation",
    "FullPrompt",
    "Job",
    "LLMLingua2",
    "LoRA",
    "METHODS",
    "MemoryToken",
    "Method",
    "NoPrompt",
    "PaperBE",
    "PruneThenBE",
    "Pruner",
    "Reconstruction",
    "Reordered",
    "SelfInformation",
    "SoftPrompt",
    "StandIn",
    "Truncation",
    "UniLoRA",
    "make_method",
]
