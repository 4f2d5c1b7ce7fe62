"""The model card that writes itself from what a run recorded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from genrec.core.files import atomic_path
from genrec.evaluation.click import CLICK_METRICS, click_protocol, click_test_lines
from genrec.evaluation.report import beam_line, metric_names, protocol_line, rows, test_lines

if TYPE_CHECKING:
    from genrec.recipe import Recipe


_WAYS = {
    "constrained": "writing item identifiers; constrained decoding lets it write only\nitems that exist",
    "grounded": "writing titles, in whose place the items with the nearest titles are taken",
    "fused": "writing item identifiers, only such as exist, and titles, in whose place the\nitems with the nearest titles "
    "are taken; both lists are fused",
}


def write_card(run_dir: Path, recipe: Recipe, report: dict[str, Any]) -> None:
    """Writes ``README.md`` into a run: model, data, index, training, metrics with baselines, how to load."""
    training, data = report["training"], report["data"]
    own = report["model"]["metrics"]
    names = metric_names(own)
    results = [{"type": name, "value": round(own[name], 4), "name": name} for name in names]
    front = {
        "library_name": "genrec",
        "pipeline_tag": "text-generation",
        "tags": ["recommender-system", "generative-retrieval", "sequential-recommendation"],
        "model-index": [
            {
                "name": recipe.name,
                "results": [
                    {
                        "task": {"type": "recommendation", "name": "Next-item recommendation"},
                        "dataset": {"type": data["source"], "name": data["source"]},
                        "metrics": results,
                    }
                ],
            }
        ],
    }
    front |= _base_model(training)
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(f"{metrics[m]:.4f}" for m in names) + " |"
        for name, metrics in rows(report)
    ]
    method, grounding = recipe.decoding.method, recipe.decoding.grounding
    beams = grounding.beams if method == "grounded" else report["beams"]
    tests = "".join(f"- {line}\n" for line in test_lines(report))
    text = f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# {recipe.name}

A language model that recommends by {_WAYS[method]}. Made by genrec {report["versions"]["genrec"]}.

## Results

{chr(10).join(lines)}

{protocol_line(report)} The last row minus each baseline, with 95% intervals and a paired randomisation test
over users, corrected by Holm:

{tests}
## How to use it

```python
from genrec import Recommender

recommender = Recommender.from_pretrained("PATH_OR_HUB_ID")
recommender.recommend([["ITEM_ID", "ITEM_ID"]], k=10)
```

## What it is made of

{_made_of(recipe, report)}
- Lists: {own["valid_item_rate"]:.4f} of the listed items exist,
  {own["distinct_item_rate"]:.4f} are distinct; decoding with {beams} beams. {beam_line(report)}
{_versions(report)}

## Limits

Measured on one log, {data["split"]}, with one seed.
{"Training items of other users may be later than a test item. " if data["split"] == "leave-one-out" else ""}Popular items are recommended more often than rare ones. Items added after training are unknown to it.
The whole recipe is in recipe.yaml.
"""
    with atomic_path(run_dir / "README.md") as part:
        part.write_text(text, encoding="utf-8")


def write_click_card(run_dir: Path, recipe: Recipe, report: dict[str, Any]) -> None:
    """Writes ``README.md`` into a run that predicts clicks: model, data, training, metrics with baselines."""
    own, data = report["model"]["metrics"], report["data"]
    front = {
        "library_name": "genrec",
        "tags": ["recommender-system", "click-through-rate-prediction"],
        "model-index": [
            {
                "name": recipe.name,
                "results": [
                    {
                        "task": {"type": "recommendation", "name": "Click prediction"},
                        "dataset": {"type": data["source"], "name": data["source"]},
                        "metrics": [
                            {"type": name, "value": round(own[name], 4), "name": name}
                            for name in CLICK_METRICS
                        ],
                    }
                ],
            }
        ],
    }
    front |= _base_model(report["training"])
    lines = ["| | " + " | ".join(CLICK_METRICS) + " |", "|---" * (len(CLICK_METRICS) + 1) + "|"]
    lines += [
        f"| {entry['name']} | " + " | ".join(f"{entry['metrics'][name]:.4f}" for name in CLICK_METRICS) + " |"
        for entry in [*report["baselines"].values(), report["model"]]
    ]
    tests = "".join(f"- {line}\n" for line in click_test_lines(report))
    click = report["click"]
    text = f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# {recipe.name}

A language model that says whether a user will like an item. Made by genrec {report["versions"]["genrec"]}.

## Results

{chr(10).join(lines)}

{click_protocol(report)} Of LogLoss and ECE less is better. The last row minus each other, with 95% intervals and p of a
bootstrap over users, corrected by Holm:

{tests}
## How to use it

It answers yes or no and ranks nothing: `Recommender` is not for it. `genrec evaluate RUN` measures it.

## What it is made of

{_made_of(recipe, report)}
- Click model: {recipe.click.kind}, trained on {click["num_samples"]:,} samples in {click["train_s"]:.0f} s, epoch
  {click["best_epoch"]} kept; AUC on validation {click["valid_auc"]:.4f}.
{_versions(report)}

## Limits

Measured on one log, {data["split"]}, with one seed. Users and items that came after training are known by their history and their
text alone. The whole recipe is in recipe.yaml.
"""
    with atomic_path(run_dir / "README.md") as part:
        part.write_text(text, encoding="utf-8")


def _base_model(training: dict[str, Any]) -> dict[str, str]:
    """Returns the Hub name of the backbone, where it has one."""
    name = training["backbone"]
    return {"base_model": name} if "/" in name and not Path(name).exists() else {}


def _made_of(recipe: Recipe, report: dict[str, Any]) -> str:
    """Returns the lines on backbone, data, index and training."""
    training, data, index = report["training"], report["data"], report["index"]
    kept = data["kept"]
    return f"""- Backbone: {training["backbone"]}, {training["layers"]} layers kept; {training["num_trainable"]:,} of
  {training["num_weights"]:,} weights trained ({recipe.train.adapter}), the frozen ones held in
  {training["dtype"]}; {report["model_mb"]} MB saved. The backbone
  itself is not in these files, and its licence applies.
- Data: {data["source"]}, {kept["interactions"]:,} interactions of {kept["users"]:,} users and {kept["items"]:,}
  items, SHA-256 of the prepared log {data["log_sha256"][:16]}, of log and split {data["split_sha256"][:16]}. Ties in time: {data["tie_rule"]}
  ({data["num_ties"]:,} neighbouring pairs). The data's own terms apply to titles in these files.
- Index: {index["method"]}, {index["num_tokens"]:,} tokens, codes of at most {index["max_length"]} tokens, collision
  rate {index["collision_rate"]:.4f}, hash {index["hash"][:16]}.
- Training: {training["num_steps"]:,} steps in {training["train_s"]:.0f} s on {training["processes"]} process(es),
  {training["num_targets"]:,} targets an epoch, seed {report["seed"]}."""


def _versions(report: dict[str, Any]) -> str:
    return (
        f"""- Versions: {", ".join(f"{name} {version}" for name, version in report["versions"].items())}."""
    )
