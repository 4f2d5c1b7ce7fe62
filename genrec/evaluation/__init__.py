"""Honest numbers: all items, all users, strong baselines on the same split."""

from genrec.evaluation.metrics import ranking_metrics
from genrec.evaluation.protocol import BASELINES, EvaluateSettings, evaluate_rankings

__all__ = ["BASELINES", "EvaluateSettings", "evaluate_rankings", "ranking_metrics"]
