"""One HTML page of an evaluation, for people: what ``core.page`` says of pages holds. The same report gives the same bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrec.core.page import (
    DASH,
    FIRST,
    MUTED,
    NUM_COLOURS,
    PAPER,
    ROLES,
    TEXT,
    bar,
    captioned,
    escaped,
    fact,
    facts,
    few_ticks,
    finite,
    folded,
    head_row,
    listed,
    new_axes,
    number,
    pair,
    plain_style,
    plural,
    scroll_table,
    section,
    short,
    table_row,
    thinned,
    tiles,
    title_span,
    to_svg,
    write_html,
)
from genrec.evaluation.click import CLICK_METRICS, FALLING, click_protocol
from genrec.evaluation.gates import gate_section
from genrec.evaluation.metrics import RANKING_METRICS
from genrec.evaluation.report import beam_line
from genrec.evaluation.slices import FEW_USERS

SIGNIFICANT = 0.05

# Name in a report before the "@", heading, and what a reader needs to know of it.
_BIAS = {
    "coverage": ("Coverage", "share of the catalogue that is recommended to anybody"),
    "gini": ("Gini", "0 where every item is recommended equally often, towards 1 where a few get everything"),
    "entropy": ("Entropy", "1 where every item is recommended equally often, 0 where only one is"),
    "novelty": ("Novelty", "mean surprise of the listed items; more is less known"),
    "popularity": ("Average popularity", "mean number of training interactions of the listed items"),
    "tail_share": ("Tail share", "share of the lists that goes to items of the long tail"),
}
_SPLITS = {"leave_one_out": "leave-one-out", "global_temporal": "global temporal"}
# Markers of matplotlib, each with its outline for the legends in a box of 12 by 12.
_MARKERS = {
    "o": '<circle cx="6" cy="6" r="4"/>',
    "s": '<path d="M2.5 2.5h7v7h-7z"/>',
    "^": '<path d="M6 1.5l4.5 8.5h-9z"/>',
    "D": '<path d="M6 1l5 5l-5 5l-5 -5z"/>',
    "v": '<path d="M6 10.5l4.5 -8.5h-9z"/>',
    "P": '<path d="M4.3 1.5h3.4v2.8h2.8v3.4h-2.8v2.8h-3.4v-2.8h-2.8v-3.4h2.8z"/>',
    "p": '<path d="M6 1.2l4.8 3.5l-1.8 5.6h-6l-1.8 -5.6z"/>',
    "X": '<path d="M3.5 1.2l2.5 2.5l2.5 -2.5l2.3 2.3l-2.5 2.5l2.5 2.5l-2.3 2.3l-2.5 -2.5l-2.5 2.5l-2.3 -2.3'
    'l2.5 -2.5l-2.5 -2.5z"/>',
}


def write_page(
    path: Path,
    report: dict[str, Any],
    *,
    curve: Sequence[tuple[int, float]] = (),
    examples: Sequence[dict[str, Any]] = (),
) -> None:
    """Writes the page of a run, whole or not at all. What the report does not have is left out.

    Args:
        path: The HTML file.
        report: What ``metrics.json`` holds.
        curve: ``(step, loss)`` of training.
        examples: ``{"user_id", "history": [titles, oldest first], "targets": [titles], "recommended":
            [(title, score or None, whether it is a hit)]}``.

    Raises:
        MissingExtraError: If matplotlib is not installed.
        RunError: If the file system refuses.
    """
    entries = {"model": report.get("model") or {}, **(report.get("baselines") or {})}
    models = _distinct(
        [
            _Model(
                key, entry.get("name") or (report.get("run") if key == "model" else key) or key, entry, place
            )
            for place, (key, entry) in enumerate(entries.items())
            if entry.get("metrics")
        ]
    )
    protocol, name = report.get("protocol") or {}, str(report.get("run") or "A run")
    tests = report.get("tests") or []
    with plain_style():
        sections = [
            _banner(protocol),
            _summary(models, tests),
            section("Accuracy", _metric_table(models)),
            section("Is the difference real?", _tests(models, tests, "model")),
            section("Accuracy by length of the list", _metric_at_k(models)),
            section("Who is served well", _slices(models)),
            section("What gets recommended", _bias(models)),
            gate_section(report.get("gates")),
            section("Learning", _curves(models, curve)),
            section("Examples", _examples(examples)),
            section("Details", _other_measures(models) + _tuning(models) + _made_with(report)),
        ]
    write_html(
        path, name, "Evaluation of a run", _protocol(protocol, report.get("seed")), sections, **_end(report)
    )


def write_comparison(path: Path, comparison: dict[str, Any]) -> None:
    """Writes the page of several runs side by side, whole or not at all.

    Args:
        path: The HTML file.
        comparison: ``{"runs": [{"name", "path", "seed", "entry"}], "protocol": {...}, "tests": [...]}``, entries and
            tests as in a report; a test names runs by path or name.

    Raises:
        MissingExtraError: If matplotlib is not installed.
        RunError: If the file system refuses.
    """
    models = _distinct(
        [
            _Model(
                str(run.get("path") or run["name"]),
                str(run["name"]),
                run["entry"],
                place,
                " · ".join(
                    [f"seed {run['seed']}"] * (run.get("seed") is not None)
                    + [str(run["path"])] * bool(run.get("path"))
                ),
            )
            for place, run in enumerate(comparison.get("runs") or [])
            if (run.get("entry") or {}).get("metrics")
        ]
    )
    protocol = comparison.get("protocol") or {}
    with plain_style():
        sections = [
            _banner(protocol),
            section("Accuracy", _metric_table(models)),
            section("Is the difference real?", _tests(models, comparison.get("tests") or [], None)),
            section("Accuracy by length of the list", _metric_at_k(models)),
            section("Who is served well", _slices(models)),
            section("What gets recommended", _bias(models)),
            section("Details", _other_measures(models)),
        ]
    name = f"{len(models)} run{'s' * (len(models) != 1)} compared"
    write_html(path, name, "Comparison", _protocol(protocol, None), sections, **_end(comparison))


def write_click_page(path: Path, report: dict[str, Any], *, curve: Sequence[tuple[int, float]] = ()) -> None:
    """Writes the page of a run that predicts clicks, whole or not at all.

    Args:
        path: The HTML file.
        report: What its ``metrics.json`` holds.
        curve: ``(step, loss)`` of training.

    Raises:
        MissingExtraError: If matplotlib is not installed.
        RunError: If the file system refuses.
    """
    entries = {"model": report["model"], **report["baselines"]}
    models = _distinct(
        [_Model(key, entry["name"], entry, place) for place, (key, entry) in enumerate(entries.items())]
    )
    own = models[0]
    with plain_style():
        numbers = tiles(
            (
                name,
                number(own.value(name)),
                f"95% interval {_interval(own.interval(name))}" if own.interval(name) else "",
            )
            for name in CLICK_METRICS
        )
        sections = [
            _banner(report["protocol"]),
            f'<div class="summary">{numbers}</div>',
            section("Every model", _click_metric_table(models)),
            section("Is the difference real?", _tests(models, report["tests"], "model")),
            section("Can probabilities be trusted?", _calibration(models)),
            gate_section(report.get("gates")),
            section("Learning", _curves(models, curve, "AUC")),
            section("Details", _tuning(models) + _made_with(report)),
        ]
    write_html(
        path,
        str(report["run"]),
        "Prediction of clicks",
        escaped(click_protocol(report)),
        sections,
        **_end(report),
    )


def _click_metric_table(models: Sequence[_Model]) -> str:
    best = {
        name: (min if name in FALLING else max)(
            value for model in models if (value := model.value(name)) is not None
        )
        for name in CLICK_METRICS
    }
    lines = []
    for model in sorted(models, key=lambda model: -(model.value("AUC") or 0.0)):
        note = "<small>this run</small>" if model.key == "model" else ""
        cells = [f'<th scope="row">{model.label}{note}</th>']
        for name in CLICK_METRICS:
            shown = number(model.value(name))
            shown = f"<strong>{shown}</strong>" if model.value(name) == best[name] else shown
            cells.append(f"<td>{shown}{_beneath(model.interval(name))}</td>")
        lines.append(table_row(cells, model.key == "model"))
    head = head_row(("Model", *CLICK_METRICS))
    return (
        scroll_table(head, f"<tbody>{''.join(lines)}</tbody>", "Metrics of every model", "metrics")
        + '<p class="note">Ordered by AUC; bold is the best of a column, the lowest of LogLoss and ECE (distance between what is said and what is so). Beneath a '
        "value its 95% interval over users.</p>"
    )


def _calibration(models: Sequence[_Model]) -> str:
    """Returns a plot a model: the share of yes in ten groups of rows by the probability that was said."""
    figures = []
    for model in models:
        points = np.array(model.entry["reliability"])
        figure, axes = new_axes(300, 240, (50, 12, 12, 42), "y")
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1)
        axes.plot(*points.T, color=FIRST, linewidth=1.8, marker="o", markersize=4)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("probability said", color=MUTED)
        error = f"ECE {number(model.value('ECE'))}"
        figures.append(
            captioned(to_svg(figure, f"{model.name}: {error}"), f"{model.label}<span>{error}</span>")
        )
    note = (
        "Rows in ten groups of equal size by the probability of yes: across, its mean; upwards, the share that said yes. On the grey line "
        "both are the same."
    )
    return f'<div class="plots">{"".join(figures)}</div><p class="note">{note}</p>'


def _end(report: Mapping[str, Any]) -> dict[str, Any]:
    version = (report.get("versions") or {}).get("genrec")
    return {"version": version, "footer": "Intervals are 95% intervals over users."}


@dataclass(frozen=True)
class _Model:
    """A row of the tables and a colour and a marker of the plots."""

    key: str
    name: str
    entry: dict[str, Any]
    place: int
    note: str = ""

    def value(self, metric: str) -> float | None:
        return finite(self.entry["metrics"].get(metric))

    def interval(self, metric: str) -> tuple[float, float] | None:
        return pair((self.entry.get("intervals") or {}).get(metric))

    @property
    def colour(self) -> str:
        return list(ROLES)[self.place % NUM_COLOURS]

    @property
    def marker(self) -> str:
        # Shifted at every round of the colours, so that no two of the first 64 look alike.
        return list(_MARKERS)[(self.place + self.place // NUM_COLOURS) % len(_MARKERS)]

    @property
    def label(self) -> str:
        """The name in HTML behind its mark."""
        return (
            f'<span class="model"><svg class="mark" viewBox="0 0 12 12" aria-hidden="true" style="fill:{ROLES[self.colour]}">'
            f"{_MARKERS[self.marker]}</svg><bdi>{escaped(short(self.name))}</bdi></span>"
        )


def _distinct(models: Sequence[_Model]) -> list[_Model]:
    """Returns the models, the notes in the names of those that would have one name."""
    names = [model.name for model in models]
    return [
        _Model(m.key, f"{m.name} ({m.note or m.key})", m.entry, m.place, "") if names.count(m.name) > 1 else m
        for m in models
    ]


# ---------------------------------------------------------------- text


def _interval(interval: tuple[float, float] | None) -> str:
    if interval is None:
        return ""
    between = " to " if interval[0] < 0 else DASH
    return f"{number(interval[0])}{between}{number(interval[1])}"


def _beneath(interval: tuple[float, float] | None) -> str:
    """Returns the interval as the small line beneath a value."""
    return f"<small>{_interval(interval)}</small>" if interval else ""


def _cut(name: str) -> tuple[str, int]:
    """Returns the family and the cut-off of a metric, ``("NDCG", 10)``; 0 where it has none."""
    family, _, k = name.partition("@")
    return family, int(k) if k.isdigit() else 0


def _ranking_names(metrics: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns the ranking metrics that any has, by family and then cut-off."""
    names = {name for each in metrics for name in each if _cut(name)[0] in RANKING_METRICS and _cut(name)[1]}
    return sorted(names, key=lambda name: (RANKING_METRICS.index(_cut(name)[0]), _cut(name)[1]))


def _headline(names: Sequence[str]) -> str:
    """Returns the metric that stands for all: NDCG@10, else the NDCG of the largest cut-off, else the last."""
    return next((n for n in ("NDCG@10", *reversed(names)) if n in names and n.startswith("NDCG@")), names[-1])


def _by_headline(models: Sequence[_Model]) -> list[_Model]:
    """Returns the models, best first by the metric that stands for all."""
    names = _ranking_names(model.entry["metrics"] for model in models)
    if not names:
        return list(models)
    worst = -math.inf
    return sorted(models, key=lambda model: -(worst if (v := model.value(_headline(names))) is None else v))


def _legend(models: Sequence[_Model]) -> str:
    if len(models) < 2:
        return ""
    return f'<ul class="legend">{"".join(f"<li>{model.label}</li>" for model in models)}</ul>'


# ---------------------------------------------------------------- what was measured


def _sampled(protocol: Mapping[str, Any]) -> bool:
    return "sampl" in str(protocol.get("candidates") or "").lower()


def _protocol(protocol: Mapping[str, Any], seed: object) -> str:
    """Returns one sentence that says how the numbers were made."""
    parts = []
    if split := protocol.get("split"):
        name = escaped(_SPLITS.get(str(split), split))
        on = {"test": ", test items", "valid": ", validation items"}.get(str(protocol.get("on")), "")
        parts.append(f"{name[:1].upper()}{name[1:]} split{on}")
    candidates, num_items = protocol.get("candidates"), protocol.get("num_items")
    if candidates and (candidates != "all items" or num_items is None):
        ranked = escaped(candidates) + (f" of {num_items:,} items" if num_items is not None else "")
    else:
        ranked = "" if num_items is None else f"all {plural(num_items, 'item')}"
    users, rows = protocol.get("num_users"), protocol.get("num_rows")
    whom = "" if users is None else f" for {plural(users, 'user')}"
    if users is not None and rows is not None and rows != users:
        whom += f" ({rows:,} lists)"
    if ranked:
        parts.append(f"{ranked} ranked{whom}")
    elif whom:
        parts.append(f"lists{whom}")
    if (seen := protocol.get("exclude_history")) is not None:
        parts.append(f"items of the history {'left out' if seen else 'allowed'}")
    if relevant := protocol.get("relevant"):
        said = {"one": "one relevant item a list", "many": "one or more relevant items a list"}
        parts.append(escaped(said.get(str(relevant), relevant)))
    if seed is not None:
        parts.append(f"seed {escaped(seed)}")
    sentence = "; ".join(parts)
    return f"{sentence[:1].upper()}{sentence[1:]}." if parts else ""


def _banner(protocol: Mapping[str, Any]) -> str:
    found = ""
    if _sampled(protocol):
        found += (
            '<p class="banner" role="note"><strong>SAMPLED CANDIDATES: not comparable with full ranking</strong> '
            f"Ranked were {escaped(protocol['candidates'])}, not the whole catalogue. Such numbers are higher, and "
            "may order models differently.</p>"
        )
    if protocol.get("on") == "valid":
        found += (
            '<p class="banner calm" role="note">Measured on validation items, which settings are chosen by. '
            "Report test items.</p>"
        )
    return found


def _summary(models: Sequence[_Model], tests: Sequence[Mapping[str, Any]]) -> str:
    """Returns the run's two main numbers and one sentence of where they stand."""
    own = next((model for model in models if model.key == "model"), None)
    names = _ranking_names([own.entry["metrics"]]) if own else []
    if own is None or not names:
        return ""
    main = _headline(names)
    rates = [name for name in names if name.startswith("HR@")]
    shown = [main, *[name for name in rates if _cut(name)[1] == _cut(main)[1] and name != main]]
    numbers = tiles(
        (
            name,
            number(own.value(name)),
            f"95% interval {_interval(own.interval(name))}" if own.interval(name) else "",
        )
        for name in shown
    )
    known = {model.key: model for model in models}
    value = own.value(main)
    others = [(v, model) for model in models if model is not own and (v := model.value(main)) is not None]
    said = ""
    if value is not None and others:
        best, rival = max(others, key=lambda pair: pair[0])
        said = (
            f"On {main} the highest of {len(others) + 1} models."
            if value > best
            else f"On {main} <bdi>{escaped(rival.name)}</bdi> is {'level' if value == best else 'higher'}, "
            f"{number(best)}."
        )
    verdicts: dict[str, list[str]] = {}
    for test in (_Test.read(test, "model") for test in tests):
        if test.metric == main and test.a == "model" and test.b in known:
            verdicts.setdefault(test.verdict, []).append(f"<bdi>{escaped(known[test.b].name)}</bdi>")
    phrases = [
        f"{words} {listed(verdicts[verdict])}"
        for verdict, words in (
            ("ahead", "ahead of"),
            ("not told apart", "not told apart from"),
            ("behind", "behind"),
        )
        if verdict in verdicts
    ]
    if phrases:
        said += f" With these users it is {'; '.join(phrases)}."
    return f'<div class="summary">{numbers}{f"<p>{said.strip()}</p>" if said else ""}</div>'


def _metric_table(models: Sequence[_Model]) -> str:
    names = _ranking_names(model.entry["metrics"] for model in models)
    if not names:
        return ""
    models = _by_headline(models)
    families = {family: sum(_cut(name)[0] == family for name in names) for family, _ in map(_cut, names)}
    head = '<tr><th rowspan="2" scope="col">Model</th>' + "".join(
        f'<th colspan="{width}" scope="colgroup">{family}</th>' for family, width in families.items()
    )
    firsts = {next(name for name in names if _cut(name)[0] == family) for family in families}
    edge = {name: ' class="first"' if name in firsts else "" for name in names}
    head += "</tr><tr>" + "".join(
        f'<th scope="col"{edge[name]} abbr="{name}">@{_cut(name)[1]}</th>' for name in names
    )
    best = {
        name: max((v for model in models if (v := model.value(name)) is not None), default=None)
        for name in names
    }
    lines = []
    for model in models:
        own = model.key == "model" and len(models) > 1
        note = "this run" if own else model.note
        cells = [f'<th scope="row">{model.label}{f"<small>{escaped(note)}</small>" if note else ""}</th>']
        for name in names:
            value = number(model.value(name))
            if len(models) > 1 and best[name] is not None and model.value(name) == best[name]:
                value = f"<strong>{value}</strong>"
            cells.append(f"<td{edge[name]}>{value}{_beneath(model.interval(name))}</td>")
        lines.append(table_row(cells, own))
    note = "Beneath a value its 95% interval over users."
    if len(models) > 1:
        note = f"Ordered by {_headline(names)}; bold is the highest of a column. {note}"
    return (
        scroll_table(f"{head}</tr>", f"<tbody>{''.join(lines)}</tbody>", "Accuracy of every model", "metrics")
        + f'<p class="note">{note}</p>'
    )


@dataclass(frozen=True)
class _Test:
    """A paired test, the run's own model first where it takes part."""

    metric: str
    a: str
    b: str
    difference: float | None
    interval: tuple[float, float] | None
    p: float | None
    p_holm: float | None
    method: str

    @classmethod
    def read(cls, test: Mapping[str, Any], own: str | None) -> _Test:
        a, b = str(test.get("a")), str(test.get("b"))
        difference, interval = finite(test.get("difference")), pair(test.get("interval"))
        if b == own and a != own:
            a, b = b, a
            difference = None if difference is None else -difference
            interval = None if interval is None else (-interval[1], -interval[0])
        p, p_holm = finite(test.get("p")), finite(test.get("p_holm"))
        return cls(
            str(test.get("metric")), a, b, difference, interval, p, p_holm, str(test.get("test") or "")
        )

    @property
    def verdict(self) -> str:
        """``ahead`` or ``behind`` where the corrected p (else p) is below 0.05, else ``not told apart``."""
        p = self.p if self.p_holm is None else self.p_holm
        if p is None or self.difference is None or p >= SIGNIFICANT or self.difference == 0:
            return "not told apart"
        return "ahead" if (self.difference > 0) != (self.metric in FALLING) else "behind"


def _tests(models: Sequence[_Model], tests: Sequence[Mapping[str, Any]], own: str | None) -> str:
    if not tests:
        return ""
    read = [_Test.read(test, own) for test in tests]
    labels = {model.name: model.label for model in models} | {model.key: model.label for model in models}
    marks = {"ahead": "▲", "behind": "▼", "not told apart": "≈"}
    all_own = own is not None and all(test.a == own for test in read)
    bodies = []
    for metric in dict.fromkeys(test.metric for test in read):
        rows = [test for test in read if test.metric == metric]
        reach = max(
            (abs(x) for t in rows for x in (t.difference, *(t.interval or ())) if x is not None), default=0.0
        )
        lines = [f'<tr class="group"><th colspan="7" scope="rowgroup">{escaped(metric)}</th></tr>']
        for test in rows:
            a, b = (labels.get(key, f"<bdi>{escaped(key)}</bdi>") for key in (test.a, test.b))
            verdict = test.verdict
            cells = [
                number(test.difference) if (test.difference or 0) <= 0 else f"+{number(test.difference)}",
                _interval(test.interval) or DASH,
                _forest(test, reach),
                _p(test.p),
                _p(test.p_holm),
                f'<span class="{verdict.replace(" ", "-")}">{marks[verdict]} {verdict}</span>',
            ]
            lines.append(
                f'<tr><th scope="row">{b if test.a == own else f"{a} against {b}"}</th>'
                + "".join(f"<td>{cell}</td>" for cell in cells)
                + "</tr>"
            )
        bodies.append(f"<tbody>{''.join(lines)}</tbody>")
    head = head_row(
        (
            "Against" if all_own else "Compared",
            "Difference",
            "95% interval",
            '<span class="hidden">Plot of the difference</span>',
            "p",
            "p, Holm",
            "Verdict",
        )
    )
    methods = ", ".join(sorted({test.method for test in read if test.method}))
    note = (
        f"{'This run' if all_own else 'The first named'} minus the other. Ahead or behind where the p corrected for "
        f"several comparisons (Holm) is below {SIGNIFICANT}; not told apart does not mean equal."
        + (f" Test: {escaped(methods)}." if methods else "")
    )
    return scroll_table(head, "".join(bodies), "Paired tests", "tests") + f'<p class="note">{note}</p>'


def _p(p: float | None) -> str:
    return "&lt;0.001" if p is not None and p < 0.001 else number(p, 3)


def _forest(test: _Test, reach: float) -> str:
    """Returns the difference and its interval beside a line at 0; the cells before it say the numbers."""
    if test.difference is None or not reach:
        return ""
    place = {x: f"{60 + 56 * x / reach:.1f}" for x in (test.difference, *(test.interval or ()))}
    line = ""
    if test.interval:
        line = f'<path class="range" d="M{place[test.interval[0]]} 8H{place[test.interval[1]]}"/>'
    return (
        f'<svg class="forest {test.verdict.replace(" ", "-")}" viewBox="0 0 120 16" aria-hidden="true">'
        f'<path class="zero" d="M60 0V16"/>{line}<circle cx="{place[test.difference]}" cy="8" r="3.2"/></svg>'
    )


def _bias(models: Sequence[_Model]) -> str:
    names = [
        name
        for family in _BIAS
        for name in sorted({n for m in models for n in m.entry["metrics"] if _cut(n)[0] == family}, key=_cut)
        if any(model.value(name) is not None for model in models)
    ]
    if not names:
        return ""
    models = _by_headline(models)
    largest = {name: max((abs(model.value(name) or 0.0) for model in models), default=0.0) for name in names}
    lines = []
    for model in models:
        cells = []
        for name in names:
            value = model.value(name)
            drawn = bar(abs(value or 0.0) / (largest[name] or 1.0), model.colour) if len(models) > 1 else ""
            digits = 1 if largest[name] >= 100 else 2 if largest[name] >= 10 else 4
            cells.append(f"<td>{number(value, digits)}{drawn}</td>")
        cells.insert(0, f'<th scope="row">{model.label}</th>')
        lines.append(table_row(cells, model.key == "model" and len(models) > 1))
    heads = [_BIAS[_cut(name)[0]][0] + (f" @{_cut(name)[1]}" if _cut(name)[1] else "") for name in names]
    families = dict.fromkeys(_cut(name)[0] for name in names)
    meaning = "; ".join(f"<dfn>{_BIAS[family][0]}</dfn>: {_BIAS[family][1]}" for family in families)
    return (
        scroll_table(
            head_row(("Model", *heads)),
            f"<tbody>{''.join(lines)}</tbody>",
            "Popularity bias of every model",
            "bias",
        )
        + f'<p class="note">{meaning}.{" Bars end at the largest of their column." if len(models) > 1 else ""}</p>'
    )


def _other_measures(models: Sequence[_Model]) -> str:
    """Returns what was measured and stands in no other table, so that nothing of a report is hidden."""
    measured = [{**model.entry["metrics"], **(model.entry.get("unbiased") or {})} for model in models]
    names = [
        name
        for name in dict.fromkeys(name for values in measured for name in values)
        if _cut(name)[0] not in (*RANKING_METRICS, *_BIAS) and name not in ("num_users", "num_rows")
    ]
    timed = any(model.entry.get("seconds") is not None for model in models)
    if not names and not timed:
        return ""
    lines = []
    for model, values in zip(models, measured, strict=True):
        cells = [f"<td>{fact(values.get(name))}</td>" for name in names]
        if timed:
            cells.append(f"<td>{number(finite(model.entry.get('seconds')), 1)}</td>")
        lines.append(f'<tr><th scope="row">{model.label}</th>{"".join(cells)}</tr>')
    heads = [escaped(name.replace("_", " ")) for name in names] + ["seconds"] * timed
    table = scroll_table(
        head_row(("Model", *heads)), f"<tbody>{''.join(lines)}</tbody>", "Other measures", "plain"
    )
    return folded("Other measures", table)


def _tuning(models: Sequence[_Model]) -> str:
    lines = []
    for model in models:
        tuning = model.entry.get("tuning") or {}
        if not tuning:
            continue
        settings, trials = tuning.get("settings") or {}, tuning.get("trials") or []
        values = [
            value
            for trial in trials
            if trial.get("settings") == settings and (value := finite(trial.get("value"))) is not None
        ]
        where = " on ".join(str(part) for part in (tuning.get("metric"), tuning.get("on")) if part)
        chosen = "<br>".join(f"{escaped(name)} = {fact(value)}" for name, value in settings.items()) or DASH
        reached = number(max(values, default=None))
        lines.append(
            f'<tr><th scope="row">{model.label}</th><td class="words">{chosen}</td><td>{len(trials):,}</td>'
            f"<td>{reached}{f'<small>{escaped(where)}</small>' if where and values else ''}</td></tr>"
        )
    if not lines:
        return ""
    head = head_row(("Model", "Chosen settings", "Trials", "Value")).replace(
        '">Chosen', '" class="words">Chosen'
    )
    table = scroll_table(head, f"<tbody>{''.join(lines)}</tbody>", "How the baselines were tuned", "plain")
    return folded("How the baselines were tuned", table)


def _made_with(report: Mapping[str, Any]) -> str:
    protocol = report.get("protocol") or {}
    parts = {
        "Run": {"seed": report.get("seed"), "data hash": protocol.get("data_hash")},
        "Protocol": {k: v for k, v in protocol.items() if k != "data_hash"},
        "Data": report.get("data"),
        "Beam search": {"beside exact search": beam_line(report)} if report.get("beam_search") else None,
        "Grounding": report.get("grounding"),
        "Index": report.get("index"),
        "Training": report.get("training"),
        "Versions": report.get("versions"),
    }
    return folded("What it was made with", facts(parts))


def _examples(examples: Sequence[Mapping[str, Any]], last: int = 8) -> str:
    cards = []
    for example in examples:
        history, targets = list(example.get("history") or ()), list(example.get("targets") or ())
        card = f"<h3>User <bdi>{escaped(example.get('user_id', ''))}</bdi></h3>"
        if history:
            earlier = len(history) - last
            before = f' <span class="aside">last {last} of {len(history):,}</span>' if earlier > 0 else ""
            card += f"<h4>History{before}</h4><ul>"
            card += "".join(f"<li>{title_span(item)}</li>" for item in history[-last:]) + "</ul>"
        if targets:
            card += (
                f"<h4>Took next</h4><ul>{''.join(f'<li>{title_span(item)}</li>' for item in targets)}</ul>"
            )
        recommended = list(example.get("recommended") or ())
        lines = [
            ('<li class="hit">' if hit else "<li>")
            + title_span(item)
            + ('<span class="taken">✓ taken</span>' if hit else "")
            + (f'<span class="score">{number(score, 3)}</span>' if finite(score) is not None else "")
            + "</li>"
            for item, score, hit in recommended
        ]
        card += f"<h4>Recommended</h4><ol>{''.join(lines) or '<li>nothing</li>'}</ol>"
        cards.append(f'<article class="card">{card}</article>')
    if not cards:
        return ""
    scored = any(s is not None for example in examples for _, s, _ in example.get("recommended") or ())
    note = "History from the oldest to the newest."
    note += " The number behind a recommendation is the model's score." if scored else ""
    return f'<div class="cards">{"".join(cards)}</div><p class="note">{note}</p>'


# ---------------------------------------------------------------- plots


def _mark(axes: Any, model: _Model, x: Any, y: Any, few: bool = False, **options: Any) -> None:
    """Draws points as those of a model: the run's own are larger, those of few users are hollow."""
    own = model.key == "model"
    axes.plot(
        x,
        y,
        marker=model.marker,
        markersize=8 if own else 6.5,
        color=model.colour,
        linewidth=2.4 if own else 1.3,
        markerfacecolor=PAPER if few else model.colour,
        markeredgecolor=model.colour if few else PAPER,
        markeredgewidth=1.4 if few else 0.6,
        zorder=4 if own else 3,
        **options,
    )


def _metric_at_k(models: Sequence[_Model]) -> str:
    names = _ranking_names(model.entry["metrics"] for model in models)
    models, figures = _by_headline(models), []
    for family in ("HR", "NDCG"):
        ks = [_cut(name)[1] for name in names if _cut(name)[0] == family]
        if len(ks) < 2:
            continue
        figure, axes = new_axes(400, 270, (44, 12, 12, 42), "y")
        apart = min(0.07, 0.6 / len(models))
        for place, model in enumerate(models):
            shift = (place - (len(models) - 1) / 2) * apart
            found = [
                (x, v, model.interval(f"{family}@{k}"))
                for x, k in enumerate(ks)
                if (v := model.value(f"{family}@{k}")) is not None
            ]
            for x, _, interval in found:
                if interval:
                    axes.plot([x + shift] * 2, interval, color=model.colour, linewidth=1, alpha=0.75)
            _mark(axes, model, [x + shift for x, _, _ in found], [value for _, value, _ in found])
        axes.set_xticks(range(len(ks)), [str(k) for k in ks])
        axes.set_xlim(-0.4, len(ks) - 0.6)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(few_ticks(5))
        axes.set_xlabel("K", color=MUTED)
        label = f"{family} at K = {', '.join(map(str, ks))}: " + "; ".join(
            f"{model.name} {', '.join(number(model.value(f'{family}@{k}')) for k in ks)}" for model in models
        )
        figures.append(captioned(to_svg(figure, label), f"{family}@K"))
    if not figures:
        return ""
    note = "Lines at the points are 95% intervals over users. K is not drawn to scale."
    return f'{_legend(models)}<div class="plots">{"".join(figures)}</div><p class="note">{note}</p>'


def _slices(models: Sequence[_Model]) -> str:
    models = [model for model in _by_headline(models) if model.entry.get("slices")]
    figures, tables, few = [], [], False
    for title in dict.fromkeys(name for model in models for name in model.entry["slices"]):
        found = {
            model.key: {str(group["group"]): group for group in model.entry["slices"].get(title) or []}
            for model in models
        }
        groups = list(dict.fromkeys(group for of_model in found.values() for group in of_model))
        names = _ranking_names(
            g.get("metrics") or {} for of_model in found.values() for g in of_model.values()
        )
        if not names:
            continue
        svg, some = _dots(models, found, groups, _headline(names), title)
        few |= some
        figures.append(captioned(svg, f"By {escaped(title)}<span>{_headline(names)}</span>"))
        tables.append(_slice_table(models, found, groups, names, title))
    if not figures:
        return ""
    note = "Lines are 95% intervals over users."
    note += f" Hollow marks: fewer than {FEW_USERS} users, too few to conclude from." if few else ""
    return f'{_legend(models)}<div class="plots">{"".join(figures)}</div><p class="note">{note}</p>' + folded(
        "The numbers", "".join(tables)
    )


_Groups = Mapping[str, Mapping[str, Mapping[str, Any]]]


def _num_users(found: _Groups, group: str) -> int | None:
    return next((g[group].get("num_users") for g in found.values() if group in g), None)


def _dots(
    models: Sequence[_Model], found: _Groups, groups: Sequence[str], metric: str, title: str
) -> tuple[str, bool]:
    """Returns a row a model under the name of every group, and whether a group has few users."""
    step, heading, gap = 11.0, 20.0, 8.0
    height = len(groups) * (heading + step * len(models) + gap)
    figure, axes = new_axes(340, height + 32, (8, 12, 4, 28), "x")
    axes.set_ylim(height, 0)
    some_few, top = False, 0.0
    texts: list[str] = []
    for group in groups:
        users = _num_users(found, group)
        few = users is not None and users < FEW_USERS
        some_few |= few
        count = "" if users is None else f" · {plural(users, 'user')}{', few' * few}"
        axes.text(
            0,
            top + heading - 6,
            "-",
            transform=axes.get_yaxis_transform(),
            color=TEXT,
            gid=f"user-{len(texts)}",
        )
        # Isolated, so that a name written from right to left leaves the count where it is.
        texts.append(f"\N{FIRST STRONG ISOLATE}{short(group, 34)}\N{POP DIRECTIONAL ISOLATE}{count}")
        for place, model in enumerate(models):
            entry, y = found[model.key].get(group) or {}, top + heading + step * (place + 0.5)
            value = finite((entry.get("metrics") or {}).get(metric))
            interval = pair((entry.get("intervals") or {}).get(metric))
            if value is None:
                continue
            if interval:
                axes.plot(interval, [y, y], color=model.colour, linewidth=2 if model.key == "model" else 1.2)
            _mark(axes, model, [value], [y], few, linestyle="none")
        top += heading + step * len(models) + gap
    axes.set_yticks([])
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(few_ticks(5))
    label = f"{metric} of {plural(len(models), 'model')} by {title}, groups {', '.join(texts)}; the numbers are in the tables below"
    return to_svg(figure, label, texts), some_few


def _slice_table(
    models: Sequence[_Model], found: _Groups, groups: Sequence[str], names: Sequence[str], title: str
) -> str:
    bodies = []
    for name in names:
        lines = [f'<tr class="group"><th colspan="{len(models) + 2}" scope="rowgroup">{name}</th></tr>']
        for group in groups:
            users = _num_users(found, group)
            cells = [f'<th scope="row"><bdi>{escaped(group)}</bdi></th><td>{fact(users)}</td>']
            for model in models:
                entry = found[model.key].get(group) or {}
                interval = pair((entry.get("intervals") or {}).get(name))
                value = number(finite((entry.get("metrics") or {}).get(name)))
                cells.append(f"<td>{value}{_beneath(interval)}</td>")
            lines.append(f"<tr>{''.join(cells)}</tr>")
        bodies.append(f"<tbody>{''.join(lines)}</tbody>")
    head = head_row(("Group", "Users", *(model.label for model in models)))
    return (
        f"<h3>By {escaped(title)}</h3>{scroll_table(head, ''.join(bodies), f'Numbers by {title}', 'plain')}"
    )


def _curves(models: Sequence[_Model], curve: Sequence[tuple[int, float]], metric: str = "NDCG@10") -> str:
    figures, notes = [], []
    drawn = [("Training loss", "step", curve)] + [
        (f"{model.label}: {metric} on validation", "epoch", model.entry.get("curve") or ())
        for model in models
    ]
    for title, unit, points in drawn:
        kept = np.array([point for point in points if math.isfinite(point[1])], np.float64).reshape(-1, 2)
        if len(kept) < 2:
            continue
        steps, values = thinned(kept).T
        figure, axes = new_axes(400, 220, (50, 12, 12, 42), "y")
        axes.plot(
            steps, values, color=FIRST, linewidth=1.8, marker="o" if len(steps) < 25 else "", markersize=4
        )
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(few_ticks(5))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        axes.yaxis.set_major_locator(few_ticks(5))
        axes.set_xlabel(unit, color=MUTED)
        first, final = kept[0], kept[-1]
        span = f"{number(first[1])} at {unit} {first[0]:,.0f}, {number(final[1])} at {unit} {final[0]:,.0f}"
        figures.append(captioned(to_svg(figure, f"{title}: {span}"), f"{title}<span>{span}</span>"))
        if len(steps) < len(kept):
            notes.append(
                f"{title}: each point is the mean of {math.ceil(len(kept) / len(steps)):,} or fewer."
            )
    note = f'<p class="note">{" ".join(notes)}</p>' if notes else ""
    return f'<div class="plots">{"".join(figures)}</div>{note}' if figures else ""
