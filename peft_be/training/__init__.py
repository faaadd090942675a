from .ae_config import AEConfig
from .ae_trainer import AETrainer
from .be_distill_config import BEDistillConfig
from .be_distill_trainer import BEDistillTrainer
from .init import initial_rows
from .many_prompts import ManyPromptsTrainer


__all__ = ["AEConfig", "AETrainer", "BEDistillConfig", "BEDistillTrainer", "ManyPromptsTrainer", "initial_rows"]
