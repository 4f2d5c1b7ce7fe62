"""Fine-tuning: batches of near lengths, a loss at labels only, checkpoints that resume exactly."""

from genrec.training.finetune import finetune
from genrec.training.settings import ModelSettings, TrainSettings

__all__ = ["ModelSettings", "TrainSettings", "finetune"]
