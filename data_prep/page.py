"""What a prepared data set is like, for people: as text, and as one HTML page (what ``core.page`` says of pages holds)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from genrec.core.errors import require
from genrec.core.page import (
    FIRST,
    MINUS,
    MUTED,
    SERIES,
    TEXT,
    bar,
    captioned,
    colour_legend,
    escaped,
    facts,
    few_ticks,
    folded,
    head_row,
    listed,
    new_axes,
    plain_style,
    plural,
    scroll_table,
    section,
    share,
    table_row,
    tiles,
    to_svg,
    write_html,
)

PAGE, WIDTH = "report.html", 100
_COLOURS = {"train": SERIES[0], "valid": SERIES[1], "test": SERIES[3], "context": SERIES[2]}
_PARTS = {"valid": "validation"}
_TIMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "iso": "ISO text"}


def report_table(report: Mapping[str, Any]) -> str:
    """Returns the report of a data set as text of at most 100 columns.

    Args:
        report: What ``prepare`` returns.
    """
    r = _Figures(report)
    blocks = [_wrapped(r.origin)]
    lines = []
    for step in r.steps:
        counts = [(step[unit], step.get(f"{unit}_taken")) for unit in _UNITS]
        lines.append(
            [
                step["step"],
                *(t for n, gone in counts for t in (f"{n:,}", "" if gone is None else f"{gone:,}")),
            ]
        )
    blocks.append(_aligned(["step", *(name for unit in _UNITS for name in (unit, "taken"))], lines))
    lines = [[name, f"{size:,}", share(part)] for name, size, part in r.parts]
    blocks.append(_aligned(["part", "interactions", "share"], lines) + "\n" + _wrapped(r.asked))
    lines = [
        [name, *(f"{value:,.1f}" if n == 2 else f"{value:,}" for n, value in enumerate(curve))]
        for name, curve in r.curves
    ]
    blocks.append(_aligned(["interactions of", *_CURVE], lines) + "\n" + _wrapped(r.popular))
    if r.ratings:
        lines = [[name, f"{size:,}", share(part)] for name, size, part in r.ratings]
        blocks.append(_aligned(["rating", "interactions", "share"], lines))
    lines = [
        [f"{name} (of each {of})", f"{size:,}", share(part), *([f"{cleaned:,}"] * r.cleaned)]
        for name, of, size, part, cleaned in r.coverage
    ]
    blocks.append(_aligned(["column", "filled", "share", *(["cleaned"] * r.cleaned)], lines))
    blocks.append("\n".join(_wrapped(note) for note in (*r.notes, r.ties, r.aside) if note))
    return "\n\n".join(blocks)


def save_page(folder: str | Path, report: Mapping[str, Any]) -> Path:
    """Writes ``report.html``, the page of a data set, and returns its path. The same report gives the same bytes.

    Args:
        folder: Made where it is missing.
        report: What ``prepare`` returns.

    Raises:
        MissingExtraError: If matplotlib is not installed.
        RunError: If the file system refuses.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    r = _Figures(report)
    with plain_style():
        sections = [
            _summary(r),
            section("What the filters took", _steps(r)),
            section("What is held out", _parts(r)),
            section("Users and items", _curves(r)),
            section(
                "Ratings, texts and other columns" if r.ratings else "Texts and other columns", _known(r)
            ),
            section("Good to know", _notes(r)),
            section("Details", _details(r)),
        ]
    write_html(
        folder / PAGE, r.name, "Data set", escaped(r.origin), sections, version=report["genrec"], style=_STYLE
    )
    return folder / PAGE


# ---------------------------------------------------------------- figures

_UNITS = ("interactions", "users", "items")
_CURVE = ("least", "median", "mean", "90%", "most")


class _Figures:
    """What text and page say of a report, worked out once.

    Attributes:
        origin: A sentence on where the data came from.
        steps: The report's, each with ``users_taken`` and so on but the first.
        parts: ``(name, interactions, share)``.
        curves: ``(of what, least, median, mean, 90% and most interactions)``.
        ratings: ``(rating, interactions, share)``.
        coverage: ``(column, of what, filled, share, cleaned)``.
        cleaned: Whether any text was.
        asked: A sentence on what is held out.
        popular: A sentence on how unequally items are taken.
        ties: A sentence on the users whose last interaction depends on the order of equal times; may be empty.
        aside: A sentence on bad rows; may be empty.
        span: First and last moment in words; None where there are no times.
        notes: Sentences on everything else.
    """

    def __init__(self, report: Mapping[str, Any]) -> None:
        self.report = r = report
        self.kept: dict[str, int] = r["kept"]
        source, size = str(r["source"]), self.kept["interactions"]
        self.name = source if "://" in source or source.startswith("hub:") else Path(source).name or source
        self.origin = (
            f"Read from {source}"
            + (f" as {r['format']}" if r["format"] != source else "")
            + f", on {r['engine']}."
        )
        self.steps = [dict(step) for step in r["steps"]]
        for before, after in zip(self.steps, self.steps[1:], strict=False):
            after |= {f"{unit}_taken": before[unit] - after[unit] for unit in _UNITS}
        self.parts = [(_PARTS.get(part, part), n, n / size) for part, n in r["parts"].items()]
        self.curves = [("a user", _summed_up(r["lengths"])), ("an item", _summed_up(r["popularity"]))]
        unrated = [("none", r["num_unrated"])] if r.get("num_unrated") else []
        rated = [(_rating(value, r["rating_step"]), n) for value, n in r.get("ratings", ())]
        self.ratings = [(name, n, n / size) for name, n in [*rated, *unrated]]
        self.coverage = (
            [
                (name, "item", n, n / self.kept["items"], r["cleaned"].get(name, 0))
                for name, n in r["text_coverage"].items()
            ]
            + [
                (name, "user", n, n / self.kept["users"], r["user_cleaned"].get(name, 0))
                for name, n in r.get("user_coverage", {}).items()
            ]
            + [
                (name, "interaction", n, n / size, r["log_cleaned"].get(name, 0))
                for name, n in r["log_coverage"].items()
            ]
        )
        self.cleaned = any(
            [*r["cleaned"].values(), *r.get("user_cleaned", {}).values(), *r["log_cleaned"].values()]
        )
        self.asked = self._asked()
        self.popular = self._popular()
        self.ties = self._ties()
        self.aside = self._aside()
        self.span = self._span()
        self.notes = [*self._times(), *self._catalogue(), *self._profiles()]

    def _asked(self) -> str:
        r, users = self.report, self.kept["users"]
        asked = r["num_evaluated_users"]
        who = f"All {plural(users, 'user')}" if asked == users else f"{asked:,} of {plural(users, 'user')}"
        words = f"Split: {r['split']}. {who} {'is' if asked == 1 else 'are'} evaluated"
        if r["num_test_rows"] != r["num_evaluated_users"]:
            words += f", by {plural(r['num_test_rows'], 'row')}"
        if r["split"] == "leave-one-out" and r["num_short_users"]:
            trains = "trains" if r["num_short_users"] == 1 else "train"
            words += (
                f"; {plural(r['num_short_users'], 'user')} with fewer than three interactions {trains} only"
            )
        if "context" in r["parts"]:
            words += "; what is context is neither trained on nor asked for"
        return f"{words}."

    def _popular(self) -> str:
        curve = self.report["popularity"]
        size = self.kept["items"]
        tops = [(part, math.ceil(part * size)) for part in (0.01, 0.1) if part * size >= 1]
        said = [
            f"the most popular {part:.0%} ({plural(n, 'item')}) {'has' if n == 1 else 'have'} {share(_top_share(curve, n))}"
            for part, n in tops
        ]
        words = f"Of the interactions {listed(said)}; " if said else ""
        words += f"Gini coefficient {_gini(curve):.2f} (0: every item is taken equally often)."
        return words[:1].upper() + words[1:]

    def _ties(self) -> str:
        r, users = self.report, self.kept["users"]
        last = r["num_users_last_tied"]
        if not last:
            return ""
        all_tested = r["split"] == "leave-one-out" and not r["num_short_users"]
        what = "test item" if all_tested else "last item"
        return (
            f"In {share(last / users)} of users ({last:,}) the last interaction ties with others: another tie rule can "
            f"change their {what}, and ties in random order would change that of "
            f"{share(r['num_users_last_by_chance'] / users)} of users. The rule here: {r['tie_rule']}."
        )

    def _aside(self) -> str:
        r = self.report
        aside = {
            "log": r["num_quarantined"],
            "catalogue": r["num_quarantined_items"],
            "users": r.get("num_quarantined_users", 0),
        }
        if not any(aside.values()):
            return ""
        said = [f"{plural(n, 'row')} of the {of}" for of, n in aside.items() if n]
        one = sum(aside.values()) == 1
        return f"{listed(said)} could not be used; {'it is' if one else 'they are'} in quarantine.jsonl, with the reason."

    def _span(self) -> tuple[str, str] | None:
        """Returns first and last moment in words, None where there are no times."""
        r = self.report
        if r["time"] == "row":
            return None
        if r["time"] == "number":
            return f"{r['span'][0]:,.15g}", f"{r['span'][1]:,.15g}"
        first, last = map(_utc, r["span"])
        form = "%Y-%m-%d" if first.date() != last.date() else "%Y-%m-%d %H:%M:%S"
        return first.strftime(form), last.strftime(form)

    def _times(self) -> Iterable[str]:
        r, size = self.report, self.kept["interactions"]
        if self.span is None:
            yield "There are no times: the order is that of the source's rows."
        elif r["time"] == "number":
            yield f"Times are numbers from {self.span[0]} to {self.span[1]}, of which only the order counts."
        else:
            yield f"Times from {self.span[0]} to {self.span[1]} (UTC), read as {_TIMES[r['time']]}."
        if r["num_ties"]:
            yield (
                f"{plural(r['num_ties'], 'interaction')} ({share(r['num_ties'] / size)}) "
                f"{'has' if r['num_ties'] == 1 else 'have'} the time of the one before of the same user."
            )
        repeats = r["num_repeats"]
        yield (
            f"{plural(repeats, 'interaction')} ({share(repeats / size)}) {'repeats' if repeats == 1 else 'repeat'} an item "
            "that the user had before."
            if repeats
            else "No user has an item twice."
        )

    def _catalogue(self) -> Iterable[str]:
        r, items = self.report, self.kept["items"]
        if r["num_catalogue_rows"]:
            of = (
                "all of which are in the log"
                if r["num_catalogue_rows"] == items
                else f"of which {items:,} are kept"
            )
            yield f"The catalogue has {plural(r['num_catalogue_rows'], 'item')}, {of}."
        else:
            yield "There is no catalogue: items are called by their ids."
        untitled = r["num_untitled_items"]
        if untitled and r["num_catalogue_rows"]:
            yield f"{plural(untitled, 'item')} without a title {'is' if untitled == 1 else 'are'} called by the id."
        if r["num_items_with_shared_title"]:
            yield f"{plural(r['num_items_with_shared_title'], 'item')} share a title with another."

    def _profiles(self) -> Iterable[str]:
        r = self.report
        if "num_user_rows" in r:
            without = r["num_users_without_profile"]
            known = self.kept["users"] - without
            yield (
                f"The table of users has {plural(r['num_user_rows'], 'row')}; {plural(known, 'user')} of the log have one"
                + (f", {without:,} have none." if without else ".")
            )


def _rating(value: float, step: float | None) -> str:
    return f"{value:g}" if step is None else f"from {value:.4g}"


_Curve = Sequence[Sequence[int]]


def _summed_up(curve: _Curve) -> tuple[int, int, float, int, int]:
    """Returns least, median, mean, 90% and most; as many as 90% are the fewest that 90% do not exceed."""
    sizes, numbers = np.array(curve, np.int64).T
    upto = numbers.cumsum()
    median, high = (int(sizes[np.searchsorted(upto, part * upto[-1])]) for part in (0.5, 0.9))
    return int(sizes[0]), median, float(sizes @ numbers / upto[-1]), high, int(sizes[-1])


def _top_share(curve: _Curve, most: int) -> float:
    """Returns the share of all interactions that the ``most`` largest have."""
    sizes, numbers = np.array(curve, np.int64)[::-1].T
    left = np.clip(most - (numbers.cumsum() - numbers), 0, numbers)
    return float(sizes @ left / (sizes @ numbers))


def _gini(curve: _Curve) -> float:
    """Returns the Gini coefficient, 0 where all sizes are equal: one less twice the area below the Lorenz curve."""
    sizes, numbers = np.array(curve, np.float64).T
    upto = np.append(0, (sizes * numbers).cumsum() / (sizes @ numbers))
    return float(1 - (numbers / numbers.sum()) @ (upto[1:] + upto[:-1]))


# ---------------------------------------------------------------- text


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ")


def _aligned(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table whose first column is text, wrapped where the table would be too wide, and whose others are numbers."""
    widths = [max(len(row[n]) for row in (heads, *rows)) for n in range(1, len(heads))]
    rest = sum(width + 2 for width in widths)
    first = min(max(len(row[0]) for row in (heads, *rows)), max(WIDTH - rest, 20))
    lines = []
    for row in (heads, *rows):
        *above, name = textwrap.wrap(row[0], first) or [""]
        cells = "".join(f"{cell:>{width + 2}}" for cell, width in zip(row[1:], widths, strict=True))
        lines += [*above, f"{name:<{first}}{cells}".rstrip()]
    return "\n".join([lines[0], "-" * (first + rest), *lines[1:]])


# ---------------------------------------------------------------- page


def _summary(r: _Figures) -> str:
    of = r.report["read"]

    def read(unit: str) -> str:
        return "" if of[unit] == r.kept[unit] else f"of {of[unit]:,} read"

    pairs = r.kept["interactions"] - r.report["num_repeats"]
    found = [(unit.capitalize(), f"{r.kept[unit]:,}", read(unit)) for unit in _UNITS]
    found.append(("Median history", f"{r.curves[0][1][1]:,}", f"mean {r.curves[0][1][2]:,.1f}"))
    found.append(("Density", share(pairs / (r.kept["users"] * r.kept["items"])), "of all pairs"))
    if "over_time" in r.report and r.span is not None:
        years = (r.report["span"][1] - r.report["span"][0]) / (365.25 * 86_400)
        days = years * 365.25
        value = (
            f"{years:.1f} years"
            if years >= 2
            else f"{days:,.0f} days"
            if days >= 2
            else f"{days * 24:.1f} hours"
        )
        found.append(("Time span", value, f"{r.span[0]} to {r.span[1]}"))
    aside = f'<div class="banner" role="note"><p>{escaped(r.aside)}</p></div>' if r.aside else ""
    ties = f'<div class="banner calm" role="note"><p>{escaped(r.ties)}</p></div>' if r.ties else ""
    return f'<div class="summary many">{tiles(found)}</div>{aside}{ties}'


def _steps(r: _Figures) -> str:
    lines = []
    for step in r.steps:
        cells = [f'<th scope="row">{escaped(step["step"])}</th>']
        for unit in _UNITS:
            taken = step.get(f"{unit}_taken")
            small = (
                ""
                if taken is None
                else f"<small>{MINUS}{taken:,} ({share(taken / (step[unit] + taken))})</small>"
                if taken
                else "<small>all kept</small>"
            )
            cells.append(f"<td>{step[unit]:,}{bar(step[unit] / r.steps[0][unit])}{small}</td>")
        lines.append(table_row(cells))
    return scroll_table(
        head_row(("Left after", *(unit.capitalize() for unit in _UNITS))),
        f"<tbody>{''.join(lines)}</tbody>",
        "Interactions, users and items left after each step",
        "bars steps",
    )


def _parts(r: _Figures) -> str:
    lines = [
        table_row(
            [
                f'<th scope="row">{name}</th>',
                f"<td>{size:,}</td>",
                f"<td>{share(part)}{bar(part, _COLOURS[key])}</td>",
            ]
        )
        for key, (name, size, part) in zip(r.report["parts"], r.parts, strict=True)
    ]
    table = scroll_table(
        head_row(("Part", "Interactions", "Share")),
        f"<tbody>{''.join(lines)}</tbody>",
        "Parts of the split",
        "bars",
    )
    picture = _over_time(r)
    note = f'<p class="note">{escaped(r.asked)}</p>'
    return f'<div class="plots"><div>{table}{note}</div>{picture}</div>'


def _over_time(r: _Figures) -> str:
    found = r.report.get("over_time")
    if not found or len(next(iter(found["parts"].values()))) < 2:
        return ""
    figure, axes = new_axes(400, 250, (46, 12, 12, 30), "y")
    counts = np.array(list(found["parts"].values()))
    edges = found["begin"] + found["seconds"] * np.arange(counts.shape[1] + 1)
    base = np.zeros(counts.shape[1])
    for part, own in zip(found["parts"], counts, strict=True):
        axes.stairs(base + own, edges, baseline=base, fill=True, color=_COLOURS[part], linewidth=0)
        base = base + own
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, base.max() * 1.06)
    axes.set_xticks(*_dates(edges[0], edges[-1]))
    _count_axis(axes.yaxis)
    most = int(base.argmax())
    top = f"{_utc(edges[most]):%Y-%m-%d}"
    unit = f"per {found['step']}"
    label = f"Interactions over time, {unit}: the most, {base[most]:,.0f}, from {top} on"
    legend = colour_legend((_COLOURS[part], _PARTS.get(part, part)) for part in found["parts"])
    return (
        f"<div>{captioned(to_svg(figure, label), f'Over time<span>interactions {unit}</span>')}{legend}</div>"
    )


def _dates(first: float, last: float, most: int = 6) -> tuple[list[float], list[str]]:
    """Returns at most so many round moments between two, in s, and their names."""
    for minutes in (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, *(1440 * days for days in (1, 2, 4, 7, 14))):
        numbers = range(math.ceil(first / 60 / minutes), math.floor(last / 60 / minutes) + 1)
        if len(numbers) <= most:
            moments = [60.0 * minutes * number for number in numbers]
            return moments, [f"{_utc(m):{'%m-%d' if m % 86_400 == 0 else '%H:%M'}}" for m in moments]
    begin, end = (12 * moment.year + moment.month - 1 for moment in map(_utc, (first - 1, last)))
    for months in (1, 2, 3, 6, 12, 24, 60, 120):
        numbers = range(begin // months + 1, end // months + 1)
        if len(numbers) <= most or months == 120:
            break
    starts = [datetime(n * months // 12, n * months % 12 + 1, 1, tzinfo=UTC) for n in numbers]
    return [start.timestamp() for start in starts], [
        f"{s:{'%Y-%m' if months < 12 else '%Y'}}" for s in starts
    ]


def _utc(moment: float) -> datetime:
    return datetime.fromtimestamp(float(moment), UTC)


def _count(value: float, _: object = None) -> str:
    return f"{value / 1e6:,g}M" if value >= 1e6 else f"{value:,g}"


def _count_axis(axis: Any) -> None:
    axis.set_major_locator(
        require("matplotlib.ticker", "train").MaxNLocator(5, steps=[1, 2, 5, 10], integer=True)
    )
    axis.set_major_formatter(_count)


def _log_ticks(low: float, high: float, most: int = 8) -> list[float]:
    """Returns at most about ``most`` round numbers between two, evenly far apart on a logarithmic axis."""
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1,)):
        found = [float(step * 10**ten) for ten in tens for step in steps if low <= step * 10**ten <= high]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]


def _log_axis(axis: Any, low: float, high: float) -> None:
    ticks = _log_ticks(low, high)
    axis.set_ticks(ticks, [_count(tick) for tick in ticks])
    axis.set_minor_locator(require("matplotlib.ticker", "train").NullLocator())


def _curves(r: _Figures) -> str:
    lines = [
        table_row(
            [
                f'<th scope="row">{name}</th>',
                *(
                    f"<td>{value:,.1f}</td>" if n == 2 else f"<td>{value:,}</td>"
                    for n, value in enumerate(curve)
                ),
            ]
        )
        for name, curve in r.curves
    ]
    table = scroll_table(
        head_row(("Interactions of", *(name.capitalize() for name in _CURVE))),
        f"<tbody>{''.join(lines)}</tbody>",
        "Interactions of users and items",
        "five",
    )
    plots = f'<div class="plots gap">{_lengths(r)}{_popularity(r)}</div>'
    return f'{table}<p class="note">{escaped(r.popular)}</p>{plots}'


def _edges(low: int, high: int) -> np.ndarray:
    """Returns the first sizes of bins from ``low`` on, and the end of the last above ``high``.

    Few sizes have a bin each; else a bin ends at about 1.4 times its begin and is never narrower than the one before.
    """
    if high - low < 30:
        return np.arange(low, high + 2)
    edges, width = [low], 1
    while edges[-1] <= high:
        width = max(width, round(edges[-1] * (math.sqrt(2) - 1)))
        edges.append(edges[-1] + width)
    return np.array(edges)


def _lengths(r: _Figures) -> str:
    sizes, numbers = np.array(r.report["lengths"], np.int64).T
    least, median, _, _, most = r.curves[0][1]
    edges = _edges(least, most)
    counts, _ = np.histogram(sizes, edges, weights=numbers)
    figure, axes = new_axes(400, 250, (46, 12, 12, 42), "y")
    if single := len(edges) == most - least + 2:
        axes.bar(edges[:-1], counts, 0.82, color=FIRST)
        axes.set_xlim(least - 0.7, most + 0.7)
        _count_axis(axes.xaxis)
    else:
        axes.set_xscale("log")
        wide = edges[1:] / edges[:-1]
        left, right = edges[:-1] * wide**0.06, edges[:-1] * wide**0.94
        axes.bar(left, counts, right - left, align="edge", color=FIRST)
        axes.set_xlim(edges[0], edges[-1])
        _log_axis(axes.xaxis, *axes.get_xlim())
    axes.set_ylim(0, counts.max() * 1.16)
    _count_axis(axes.yaxis)
    axes.set_xlabel("interactions of a user", color=MUTED)
    _marked(axes, float(median), f"median {median:,}", single or median * median > least * most)
    label = f"Users by number of interactions: {least:,} to {most:,}, median {median:,}"
    what = "users" if single else "users, bins grow with the length"
    return captioned(to_svg(figure, label), f"Length of histories<span>{what}</span>")


def _marked(axes: Any, x: float, text: str, left: bool = False) -> None:
    """Draws a dashed line across at x, and its name at the top."""
    axes.axvline(x, color=TEXT, linewidth=1.1, linestyle=(0, (4, 3)))
    axes.annotate(
        text,
        (x, 1),
        (-5 if left else 5, -3),
        ("data", "axes fraction"),
        "offset points",
        ha="right" if left else "left",
        va="top",
        color=MUTED,
        fontsize=11,
    )


def _popularity(r: _Figures) -> str:
    sizes, numbers = np.array(r.report["popularity"], np.int64)[::-1].T
    last = numbers.cumsum()
    ranks, heights = np.stack([last - numbers + 1, last], 1).ravel(), np.repeat(sizes, 2)
    # Points that would fall into one dot are one.
    cells = np.stack([np.log(ranks) / math.log(last[-1] + 1), np.log(heights) / math.log(sizes[0] + 1)], 1)
    _, kept = np.unique((cells * 400).round(), axis=0, return_index=True)
    kept = np.unique([0, *kept, len(ranks) - 1])
    figure, axes = new_axes(400, 250, (46, 12, 12, 42), "y")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.plot(ranks[kept], heights[kept], color=FIRST, linewidth=2)
    top, low = sizes[0] * 1.6, max(sizes[-1] * 0.8, 0.8)
    axes.set_xlim(0.9, last[-1] * 1.1)
    axes.set_ylim(low, top)
    _log_axis(axes.xaxis, 1, max(last[-1], 2))
    _log_axis(axes.yaxis, low, top)
    axes.set_xlabel("rank of the item", color=MUTED)
    for part in (0.01, 0.1):
        if part * last[-1] >= 1:
            _marked(axes, math.ceil(part * last[-1]), f"{part:.0%}", False)
    label = f"Interactions of an item by its rank: {sizes[0]:,} of the first, {sizes[-1]:,} of the last. {r.popular}"
    return captioned(to_svg(figure, label), "Popularity<span>interactions of an item</span>")


def _known(r: _Figures) -> str:
    heads = ["Column", "Of each", "Filled", *(["Cleaned"] * r.cleaned)]
    lines = [
        table_row(
            [
                f'<th scope="row"><bdi>{escaped(name)}</bdi></th>',
                f'<td class="words">{of}</td>',
                f"<td>{size:,}{bar(part)}<small>{share(part)}</small></td>",
                *([f"<td>{cleaned:,}</td>"] * r.cleaned),
            ]
        )
        for name, of, size, part, cleaned in r.coverage
    ]
    head = head_row(heads).replace('">Of each', '" class="words">Of each')
    table = scroll_table(
        head, f"<tbody>{''.join(lines)}</tbody>", "Columns and how many have something", "bars"
    )
    if r.cleaned:
        table += '<p class="note">Cleaned: texts that had tags or entities of HTML, control characters or runs of white space.</p>'
    if not r.ratings:
        return table
    lines = [
        table_row([f'<th scope="row">{name}</th>', f"<td>{size:,}</td>", f"<td>{share(part)}</td>"])
        for name, size, part in r.ratings
    ]
    numbers = scroll_table(
        head_row(("Rating", "Interactions", "Share")), f"<tbody>{''.join(lines)}</tbody>", "Ratings", "bars"
    )
    return f'<div class="plots"><div>{table}</div>{_ratings(r)}</div>' + folded(
        "The numbers of the ratings", numbers
    )


def _ratings(r: _Figures) -> str:
    found, step = r.report["ratings"], r.report["rating_step"]
    sizes = [size for _, size, _ in r.ratings]
    figure, axes = new_axes(400, 250, (46, 12, 12, 42), "y")
    if named := step is None and len(r.ratings) <= 12:
        axes.bar(range(len(sizes)), sizes, 0.72, color=FIRST)
        axes.set_xticks(range(len(sizes)), [name for name, _, _ in r.ratings])
        axes.set_xlim(-0.7, len(sizes) - 0.3)
        for place, (_, size, part) in enumerate(r.ratings):
            axes.annotate(
                share(part) if len(sizes) < 8 else f"{part:.0%}",
                (place, size),
                (0, 4),
                textcoords="offset points",
                ha="center",
                color=MUTED,
                fontsize=11,
            )
    else:
        values = np.array([value for value, _ in found])
        width = step or float(np.diff(values).min())
        axes.bar(values + (width / 2 if step else 0), sizes[: len(values)], width * 0.86, color=FIRST)
        axes.xaxis.set_major_locator(few_ticks(6))
    axes.set_ylim(0, max(sizes) * 1.14)
    _count_axis(axes.yaxis)
    axes.set_xlabel("rating", color=MUTED)
    said = "; ".join(f"{name}: {size:,}" for name, size, _ in r.ratings) if named else f"{len(found)} values"
    return captioned(to_svg(figure, f"Interactions by rating, {said}"), "Ratings<span>interactions</span>")


def _notes(r: _Figures) -> str:
    return f"<ul>{''.join(f'<li>{escaped(note)}</li>' for note in r.notes)}</ul>"


def _details(r: _Figures) -> str:
    report = r.report
    parts = {
        "Source": {key: report[key] for key in ("source", "format", "engine")},
        "Read as": {"time": report["time"], "split": report["split"], "equal times": report["tie_rule"]},
        "Prepared log": {"sha256": report["log_sha256"], "with its split": report["split_sha256"]},
        "Versions": {"genrec": report["genrec"]},
    }
    return folded("What it was made from", facts(parts))


_STYLE = """
.steps td small { white-space: normal; }
@media (max-width: 40rem) {
  .scroll .five tbody th, .scroll .bars tbody th { min-width: 4.5rem; }
  .bars .bar { min-width: 3.6rem; }
  .five th, .five td, .bars th, .bars td { padding-left: .25rem; padding-right: .35rem; }
}
"""
