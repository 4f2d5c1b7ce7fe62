"""Honest numbers: all items, all users, strong baselines on the same split."""

from genrec.evaluation.baselines import BASELINES
from genrec.evaluation.metrics import ranking_metrics
from genrec.evaluation.protocol import EvaluateSettings, Judge

__all__ = ["BASELINES", "EvaluateSettings", "Judge", "ranking_metrics"]
