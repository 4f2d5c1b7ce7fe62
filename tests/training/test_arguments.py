"""What transformers and peft can do beyond genrec's own keys."""

import json

import pytest
import torch
from trained import hit_rate, trained_bytes, tuned

from genrec.core.errors import ModelError, RecipeError
from genrec.training import TrainSettings

pytestmark = pytest.mark.model


def rates(monkeypatch, run, **options):
    """The learning rates of the identifier rows, step by step."""
    seen = []
    step = torch.optim.AdamW.step

    def noted(self, *arguments, **rest):
        seen.append(self.param_groups[1]["lr"])
        return step(self, *arguments, **rest)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    run(**options)
    return seen


@pytest.mark.parametrize(
    ("schedule", "middle", "last"),
    [("linear", 0.5, 0.1), ("cosine", 0.5, 0.03), ("constant", 1.0, 1.0), ("inverse_sqrt", 0.58, 0.45)],
)
def test_rates_rise_and_go_on_as_the_schedule_says(
    schedule, middle, last, monkeypatch, tiny_backbone, log, items, tmp_path
):
    found = rates(
        monkeypatch,
        lambda **options: tuned(tiny_backbone, log, items, tmp_path / "run", max_steps=10, **options),
        warmup_steps=0.2,
        schedule=schedule,
    )
    peak = 1e-2
    assert found[:3] == pytest.approx([0, peak / 2, peak])
    assert found[6] == pytest.approx(middle * peak, rel=0.05)
    assert found[9] == pytest.approx(last * peak, rel=0.35)


def test_another_optimizer_and_its_arguments_are_transformers_own(tiny_backbone, log, items, tmp_path):
    plain = tuned(tiny_backbone, log, items, tmp_path / "plain", epochs=1)
    same = tuned(tiny_backbone, log, items, tmp_path / "same", epochs=1, arguments={"adam_beta2": 0.999})
    other = tuned(tiny_backbone, log, items, tmp_path / "other", epochs=1, arguments={"adam_beta2": 0.9})
    assert trained_bytes(plain) == trained_bytes(same) != trained_bytes(other)
    run = tuned(tiny_backbone, log, items, tmp_path / "adafactor", epochs=8, arguments={"optim": "adafactor"})
    assert hit_rate(run, log) > 0.9


def test_options_of_lora_are_pefts_own(tiny_backbone, log, items, tmp_path):
    run = tuned(tiny_backbone, log, items, tmp_path / "run", epochs=0.1, lora_options={"use_rslora": True})
    assert json.loads((run / "model" / "adapter_config.json").read_text())["use_rslora"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"arguments": {"seed": 1}}, RecipeError, r"train\.arguments\.seed is decided by genrec's own keys"),
        (
            {"arguments": {"adam_beta3": 1}},
            RecipeError,
            r"adam_beta3 is no argument.*Did you mean 'adam_beta",
        ),
        ({"arguments": {"optim": "adamm"}}, RecipeError, r"train\.arguments=\{'optim': 'adamm'\}: "),
        ({"lora_options": {"r": 4}}, ModelError, r"train\.lora_options\.r is decided by genrec's own keys"),
        (
            {"lora_options": {"use_rslore": 1}},
            ModelError,
            r"use_rslore is no argument.*Did you mean 'use_rslora'",
        ),
    ],
)
def test_what_is_unknown_or_decided_elsewhere_is_named(
    options, error, message, tiny_backbone, log, items, tmp_path
):
    with pytest.raises(error, match=message):
        tuned(tiny_backbone, log, items, tmp_path / "run", **options)


def test_settings_say_what_they_do_not_know():
    with pytest.raises(ValueError, match="'linear', 'cosine', 'inverse_sqrt' or 'constant'"):
        TrainSettings(schedule="cosin")
