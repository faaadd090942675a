from .bounds import FullPrompt, NoPrompt
from .method import Job, Method, StandIn


__all__ = ["FullPrompt", "Job", "Method", "NoPrompt", "StandIn"]
