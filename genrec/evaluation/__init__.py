"""Honest numbers: all items, all users, strong baselines on the same split."""

from genrec.evaluation.baselines import BASELINES
from genrec.evaluation.beyond import probability_metrics
from genrec.evaluation.metrics import click_metrics, ranking_metrics, rating_metrics
from genrec.evaluation.protocol import EvaluateSettings, Judge
from genrec.evaluation.text import text_metrics

__all__ = [
    "BASELINES",
    "EvaluateSettings",
    "Judge",
    "click_metrics",
    "probability_metrics",
    "ranking_metrics",
    "rating_metrics",
    "text_metrics",
]
