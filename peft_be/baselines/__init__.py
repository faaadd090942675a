from .be import BE
from .bounds import FullPrompt, NoPrompt
from .cartridge import Cartridge
from .distillation import Distillation
from .method import Job, Method, StandIn
from .methods import METHODS, make_method
from .paper import PaperBE
from .reconstruction import MemoryToken, Reconstruction
from .soft_prompt import SoftPrompt


__all__ = [
    "BE",
    "Cartridge",
    "Distillation",
    "FullPrompt",
    "Job",
    "METHODS",
    "MemoryToken",
    "Method",
    "NoPrompt",
    "PaperBE",
    "Reconstruction",
    "SoftPrompt",
    "StandIn",
    "make_method",
]
