"""Instruction data: (split, catalogue, index) -> prompt/completion rows, one renderer for all uses."""

from genrec.tasks.build import TASKS, TaskSettings, build_dataset
from genrec.tasks.render import Renderer

__all__ = ["TASKS", "Renderer", "TaskSettings", "build_dataset"]
