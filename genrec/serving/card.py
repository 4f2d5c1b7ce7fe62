"""The model card that writes itself from what a run recorded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genrec.core.hub import UNNAMED, is_repo_id, source_name, write_card
from genrec.data_prep.card import terms_in_words, version_in_words
from genrec.evaluation.click import CLICK_METRICS, click_protocol, click_test_lines
from genrec.evaluation.report import beam_line, metric_names, protocol_line, rows, test_lines
from genrec.indexing.card import index_line
from genrec.serving.licence import licence_of

if TYPE_CHECKING:
    from genrec.recipe import Recipe


_WAYS = {
    "constrained": "writing item identifiers; constrained decoding lets it write only\nitems that exist",
    "grounded": "writing titles, in whose place the items with the nearest titles are taken",
    "fused": "writing item identifiers, only such as exist, and titles, in whose place the\nitems with the nearest titles "
    "are taken; both lists are fused",
}


def write_model_card(run_dir: Path, recipe: Recipe, report: dict[str, Any]) -> None:
    """Writes ``README.md`` into a run.

    It says base model and licence, data and terms, index, training, metrics with baselines, who is served worst, limits,
    and how to load. Names of folders are left out.

    Raises:
        RunError: If the disk refuses.
    """
    data, own, protocol = report["data"], report["model"]["metrics"], report["protocol"]
    names = metric_names(own)
    base, origin = _base(report), _origin(report)
    licence = licence_of(report["training"]["backbone"])
    front: dict[str, Any] = {
        **_front(report),
        "pipeline_tag": "text-generation",
        "tags": ["recommender-system", "generative-retrieval", "sequential-recommendation"],
        # Of the model alone: the Hub counts every result in here as the model's own. Baselines are in the table.
        "model-index": [
            {
                "name": recipe.name,
                "results": [
                    {
                        "task": {"type": "recommendation", "name": "Next-item recommendation"},
                        "dataset": {
                            "type": origin,
                            "name": origin,
                            "split": protocol["on"],
                            "args": {
                                "protocol": protocol["split"],
                                "candidates": protocol["candidates"],
                                "log_sha256": data["log_sha256"],
                            },
                        },
                        "metrics": [
                            {"type": name, "value": round(own[name], 4), "name": name} for name in names
                        ],
                    }
                ],
            }
        ],
    }
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(f"{metrics[m]:.4f}" for m in names) + " |"
        for name, metrics in rows(report)
    ]
    method, grounding = recipe.decoding.method, recipe.decoding.grounding
    beams = grounding.beams if method == "grounded" else report["beams"]
    tests = "".join(f"- {line}\n" for line in test_lines(report))
    groups = "".join(f"- {line}\n" for line in slice_lines(report["model"]))
    later = (
        "Training items of other users may be later than a test item. "
        if data["split"] == "leave-one-out"
        else ""
    )
    text = f"""# {recipe.name}

A language model that recommends by {_WAYS[method]}. Made by genrec {report["versions"]["genrec"]}.

## Licence and terms

- Model: {licence.sentence(base)}
- Data: {origin}; terms: {terms_in_words(data)}. They hold for the titles and item ids in these files, and may hold for
  what was learned from the log.

## Intended use

To rank the {protocol["num_items"]:,} items of its catalogue for someone whose history it is given: items of this catalogue,
oldest first. It suits research and trying out on data like its own. It is not meant for people's access to work, credit,
housing, health or news without a study of its effects there, nor for catalogues or kinds of users that it was not measured
on. What it writes outside an item's identifier or title has no meaning.

## How to use it

```python
from genrec import Recommender

recommender = Recommender.from_pretrained("{UNNAMED}")  # or a folder
recommender.recommend([["ITEM_ID", "ITEM_ID"]], k=10)
```

## Results

{chr(10).join(lines)}

{protocol_line(report)} The last row minus each baseline, with 95% intervals and a paired randomisation test
over users, corrected by Holm:

{tests}
## Who is served worst, and what is recommended

{groups}{_exposure_line(report, names)}
## What it is made of

{_made_of(recipe, report)} ranking the test rows took {report["rank_s"]:.0f} s.
- Lists: {own["valid_item_rate"]:.4f} of the listed items exist,
  {own["distinct_item_rate"]:.4f} are distinct; decoding with {f"{beams} beams. {beam_line(report)}".strip()}
{_versions(report)}

## Limits

Measured on one log, {data["split"]}, with one seed. {later}What users were not shown they could not take, and counts as a
miss. Items added after training are unknown to it. The base model's
own biases, which its card may name, go into what it makes of titles.
"""
    write_card(run_dir, front, text)


def write_click_card(run_dir: Path, recipe: Recipe, report: dict[str, Any]) -> None:
    """Writes ``README.md`` into a run that predicts clicks, as ``write_model_card`` does.

    Raises:
        RunError: If the disk refuses.
    """
    own, data, click = report["model"]["metrics"], report["data"], report["click"]
    base, origin = _base(report), _origin(report)
    front: dict[str, Any] = {
        **_front(report),
        "tags": ["recommender-system", "click-through-rate-prediction"],
        "model-index": [
            {
                "name": recipe.name,
                "results": [
                    {
                        "task": {"type": "recommendation", "name": "Click prediction"},
                        "dataset": {"type": origin, "name": origin, "split": report["protocol"]["on"]},
                        "metrics": [
                            {"type": name, "value": round(own[name], 4), "name": name}
                            for name in CLICK_METRICS
                        ],
                    }
                ],
            }
        ],
    }
    lines = ["| | " + " | ".join(CLICK_METRICS) + " |", "|---" * (len(CLICK_METRICS) + 1) + "|"]
    lines += [
        f"| {entry['name']} | " + " | ".join(f"{entry['metrics'][name]:.4f}" for name in CLICK_METRICS) + " |"
        for entry in [*report["baselines"].values(), report["model"]]
    ]
    tests = "".join(f"- {line}\n" for line in click_test_lines(report))
    text = f"""# {recipe.name}

A language model that says whether a user will like an item. Made by genrec {report["versions"]["genrec"]}.

## Licence and terms

- Model: {licence_of(report["training"]["backbone"]).sentence(base)}
- Data: {origin}; terms: {terms_in_words(data)}. They hold for the titles and item ids in these files, and may hold for
  what was learned from the log.

## Intended use

To say how likely someone whose history it is given is to like one item of its catalogue, on data like its own. It answers yes or no and
ranks nothing: `Recommender` is not for it. `genrec evaluate RUN` measures it.

## Results

{chr(10).join(lines)}

{click_protocol(report)} Of LogLoss and ECE less is better. The last row minus each other, with 95% intervals and p of a
bootstrap over users, corrected by Holm:

{tests}
## What it is made of

{_made_of(recipe, report)} answering the test rows took {report["answer_s"]:.0f} s.
- Click model: {recipe.click.kind}, trained on {click["num_samples"]:,} samples in {click["train_s"]:.0f} s, epoch
  {click["best_epoch"]} kept; AUC on validation {click["valid_auc"]:.4f}.
{_versions(report)}

## Limits

Measured on one log, {data["split"]}, with one seed. Users and items that came after training are known by their history and their
text alone.
"""
    write_card(run_dir, front, text)


def _base(report: Mapping[str, Any]) -> str:
    """Returns the name of the base model, without folders."""
    backbone = report["training"]["backbone"]
    return backbone if is_repo_id(backbone) and not Path(backbone).exists() else source_name(backbone)


def _origin(report: Mapping[str, Any]) -> str:
    """Returns the name of the data; a set that was prepared by an earlier version has none of its own."""
    return report["data"].get("origin") or source_name(report["data"]["source"])


def _front(report: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what stands at the head of every card: library, licence and base model."""
    base = _base(report)
    return {
        "library_name": "genrec",
        **licence_of(report["training"]["backbone"]).front,
        **({"base_model": base} if is_repo_id(base) else {}),
    }


def _made_of(recipe: Recipe, report: Mapping[str, Any]) -> str:
    """Returns the lines on base model, data, index, recipe and, without its end, the cost of training."""
    training, data = report["training"], report["data"]
    kept = data["kept"]
    return f"""- Base model: {_base(report)}, {training["layers"]} layers kept; {training["num_trainable"]:,} of
  {training["num_weights"]:,} weights trained ({recipe.train.adapter}), the frozen ones held in
  {training["dtype"]}; {report["model_mb"]} MB saved. The frozen weights are not in these files.
- Data: {_origin(report)}, version: {version_in_words(data)}; {kept["interactions"]:,} interactions of {kept["users"]:,} users and
  {kept["items"]:,} items, SHA-256 of the prepared log {data["log_sha256"][:16]}, of log and split {data["split_sha256"][:16]}.
  Ties in time: {data["tie_rule"]} ({data["num_ties"]:,} neighbouring pairs).
- Index: {index_line(report["index"])}.
- Recipe: recipe.yaml, whole, with seed {report["seed"]}.
- Training cost: {training["num_steps"]:,} steps in {training["train_s"]:.0f} s on {training["processes"]} process(es),
  {training["num_targets"]:,} targets an epoch;"""


def _versions(report: Mapping[str, Any]) -> str:
    return f"- Versions: {', '.join(f'{name} {version}' for name, version in report['versions'].items())}."


def slice_lines(entry: Mapping[str, Any]) -> list[str]:
    """Returns for each slice of a model's entry which group is served worst and which best, with numbers, in words.

    Groups of fewer than 30 users are counted and not compared.
    """
    found = []
    for title, groups in entry["slices"].items():
        few = sum(bool(group.get("few")) for group in groups)
        left = f" {few} group(s) of fewer than 30 users are not compared." if few else ""
        compared = [group for group in groups if not group.get("few")]
        if len(groups) == 1:
            found.append(f'By {title}: all are "{groups[0]["group"]}".{left}')
            continue
        if len(compared) < 2:
            if groups:
                found.append(f"By {title}: no two groups are large enough to be compared.{left}")
            continue
        metric = list(compared[0]["metrics"])[-1]
        compared = sorted(
            (group for group in compared if metric in group["metrics"]), key=lambda g: g["metrics"][metric]
        )
        worst, best = compared[0], compared[-1]
        apart = worst["intervals"][metric][1] < best["intervals"][metric][0]
        sure = (
            "their intervals do not overlap" if apart else "their intervals overlap, so that it may be chance"
        )
        found.append(f"By {title}: worst {_group(worst, metric)}, best {_group(best, metric)}; {sure}.{left}")
    return found


def _group(group: Mapping[str, Any], metric: str) -> str:
    low, high = group["intervals"][metric]
    return f'"{group["group"]}" ({metric} {group["metrics"][metric]:.4f} [{low:.4f}, {high:.4f}], {group["num_users"]:,} users)'


def _exposure_line(report: Mapping[str, Any], names: list[str]) -> str:
    """Returns how the lists are spread over the catalogue, beside the data's own spread by way of the baselines."""
    own, k = report["model"]["metrics"], names[-1].partition("@")[2]
    if f"tail_share@{k}" not in own:
        return ""
    baselines = "".join(
        f"; {entry['name']}: {entry['metrics'][f'coverage@{k}']:.1%} and {entry['metrics'][f'tail_share@{k}']:.1%}"
        for entry in report["baselines"].values()
        if f"tail_share@{k}" in entry["metrics"]
    )
    return (
        f"- Lists of {k} reach {own[f'coverage@{k}']:.1%} of the catalogue, and {own[f'tail_share@{k}']:.1%} of what is listed is "
        f"of the long tail (items outside the fewest that make 80% of the interactions){baselines}.\n"
    )
