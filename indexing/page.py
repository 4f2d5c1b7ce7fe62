"""One HTML page of an index, for people: what ``core.page`` says of pages holds. The same report gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from genrec.core.files import write_json
from genrec.core.page import (
    FIRST,
    MUTED,
    NUM_COLOURS,
    SERIES,
    TEXT,
    bar,
    captioned,
    clean,
    colour_legend,
    escaped,
    facts,
    few_ticks,
    fitted,
    folded,
    head_row,
    listed,
    new_axes,
    number,
    plain_style,
    plural,
    scroll_table,
    section,
    share,
    short,
    table_row,
    text_width,
    tiles,
    title_span,
    to_svg,
    write_html,
)
from genrec.indexing.report import together

PLOTTED_LEVELS, TABLE_LEVELS = 6, 12
_ORDINALS = ("first", "second", "third")


def save_report(folder: str | Path, report: Mapping[str, Any], name: str = "index_report") -> Path:
    """Writes ``NAME.json``, the report, and ``NAME.html``, its page, and returns the path of the page.

    Args:
        folder: Made where it is missing.
        report: What ``index_report`` returns.
        name: Name of both files.

    Raises:
        MissingExtraError: If matplotlib is not installed.
        RunError: If the file system refuses.
    """
    folder = Path(folder)
    write_index_page(folder / f"{name}.html", report)
    write_json(folder / f"{name}.json", report)
    return folder / f"{name}.html"


def write_index_page(path: str | Path, report: Mapping[str, Any]) -> None:
    """Writes the page of an index, whole or not at all.

    Args:
        path: The HTML file.
        report: What ``index_report`` returns.

    Raises:
        MissingExtraError: If matplotlib is not installed.
        RunError: If the file system refuses.
    """
    with plain_style():
        sections = [
            _summary(report),
            section("Level by level", _levels(report) + _usage(report)),
            section("The code tree", _tree_section(report)),
            section("The items on a map", _map_section(report)),
            section("Training", _training(report)),
            section("Examples", _examples(report)),
            section("Details", _details(report)),
        ]
    version = (report.get("versions") or {}).get("genrec")
    write_html(
        Path(path), str(report["name"]), "Item index", _lead(report), sections, version=version, style=_STYLE
    )


# ---------------------------------------------------------------- in numbers


def _lead(report: Mapping[str, Any]) -> str:
    lengths = report["lengths"]
    count = (
        plural(lengths["longest"], "token")
        if lengths["shortest"] == lengths["longest"]
        else f"{lengths['shortest']} to {plural(lengths['longest'], 'token')}"
    )
    sizes = {level["codebook_size"] for level in report["levels"] if level["codebook_size"]}
    of = f", each one of {sizes.pop():,}" if len(sizes) == 1 else ""
    one = report["num_items"] == 1
    return f"Made by {escaped(report['method'])}. {'The item is' if one else 'Every item is'} named by {count}{of}."


def _summary(report: Mapping[str, Any]) -> str:
    collisions, lengths = report["collisions"], report["lengths"]
    same = lengths["shortest"] == lengths["longest"]
    found = [
        ("Items", f"{report['num_items']:,}", ""),
        ("Tokens", f"{report['num_tokens']:,}", "added to a model"),
        (
            "Levels",
            f"{lengths['longest']:,}",
            "" if same else f"{lengths['shortest']:,} to {lengths['longest']:,}, mean {lengths['mean']:.2f}",
        ),
    ]
    before, after = collisions["rate_before"], collisions["rate_after"]
    if before is not None:
        found.append(("Collision rate", share(before), f"{share(after)} after the policy"))
    else:
        found.append(("Collision rate", share(after), "items whose code another has"))
    if collisions["policy"]:
        touched = collisions["num_items_touched"] or 0
        found.append(("Items touched", f"{touched:,}", f"by the policy {escaped(collisions['policy'])}"))
    if report["dead_share"] is not None:
        found.append(("Unused tokens", share(report["dead_share"]), f"of {report['codebook_tokens']:,}"))
    notes = "".join(f"<p>{escaped(note)}</p>" for note in report["notes"])
    said = _in_words(report["levels"][0])
    return f'<div class="summary many">{tiles(found)}{f"<p>{said}</p>" if said else ""}</div>' + (
        f'<div class="banner calm" role="note">{notes}</div>' if notes else ""
    )


def _in_words(first: Mapping[str, Any]) -> str:
    """Returns what it means to share a first token, in one sentence."""
    parts = []
    if first.get("semantic") is not None and first.get("semantic_all") is not None:
        parts.append(
            f"their texts have a mean cosine of {number(first['semantic'], 2)}, those of any two items "
            f"{number(first['semantic_all'], 2)}"
        )
    if (times := together(first)) is not None:
        parts.append(f"they are taken together {_times(times)} as often as any two")
    return f"Of items that share a first token: {'; '.join(parts)}." if parts else ""


def _times(value: float) -> str:
    return f"{value:,.1f} times" if value < 100 else f"{value:,.0f} times"


def _levels(report: Mapping[str, Any]) -> str:
    levels = report["levels"]
    books = any(level["codebook_size"] for level in levels)
    alike = any(level.get("semantic") is not None for level in levels)
    taken = any(together(level) is not None for level in levels)
    heads = ["Level", "Tokens used", *(["Share used"] * books), "Entropy", "Perplexity", "Largest token"]
    heads += ["Distinct beginnings", *(["Text alike"] * alike), *(["Taken together"] * taken)]
    lines = []
    for level in levels:
        size = level["codebook_size"]
        short_codes = level["items"] < report["num_items"]
        cells = [
            f'<th scope="row">{level["level"]}'
            + (f"<small>{plural(level['items'], 'item')}</small>" * short_codes)
        ]
        cells[0] += "</th>"
        cells.append(f"<td>{level['tokens']:,}{f'<small>of {size:,}</small>' if size else ''}</td>")
        if books:
            used = level["used_share"]
            cells.append(f"<td>{number(None)}</td>" if used is None else f"<td>{share(used)}{bar(used)}</td>")
        cells += [f"<td>{number(level['entropy'], 3)}</td>", f"<td>{level['perplexity']:,.1f}</td>"]
        cells += [f"<td>{plural(level['largest'], 'item')}</td>", f"<td>{level['prefixes']:,}</td>"]
        if alike:
            cells.append(f"<td>{number(level.get('semantic'), 3)}</td>")
        if taken:
            times = together(level)
            cells.append(f"<td>{number(None) if times is None else _times(times)}</td>")
        lines.append(table_row(cells))
    head = head_row(heads)
    label = "Every level of the index"
    table = scroll_table(head, f"<tbody>{''.join(lines[:TABLE_LEVELS])}</tbody>", label, "levels")
    more = scroll_table(head, f"<tbody>{''.join(lines[TABLE_LEVELS:])}</tbody>", "Further levels", "levels")
    said = [
        "<dfn>Entropy</dfn> of the tokens over items, in nats; <dfn>perplexity</dfn> is its exponential, the number of "
        "tokens that would be as diverse if all were used alike."
    ]
    first = levels[0]
    if alike:
        said.append(
            f"<dfn>Text alike</dfn>: mean cosine of text vectors ({escaped(report['text_encoder'])}) of two items with "
            f"the same beginning up to this level; of any two it is {number(first.get('semantic_all'), 3)}."
        )
    if taken:
        said.append(
            "<dfn>Taken together</dfn>: how often two such items stand near each other in a training history, as a "
            "multiple of any two items."
        )
    if alike or taken:
        said.append("A dash: no two items share so much.")
    rest = (
        folded(f"{plural(len(lines) - TABLE_LEVELS, 'level')} more", more)
        if len(lines) > TABLE_LEVELS
        else ""
    )
    return f'{table}<p class="note">{" ".join(said)}</p>{rest}'


# ---------------------------------------------------------------- usage


def _usage(report: Mapping[str, Any]) -> str:
    figures = []
    for level in report["levels"][:PLOTTED_LEVELS]:
        size = level["codebook_size"] or level["tokens"]
        even = level["items"] / size
        figure, axes = new_axes(320, 190, (46, 10, 14, 40), "y")
        edges, heights = [0], []
        for items, tokens in level["sizes"]:
            heights.append(items)
            edges.append(edges[-1] + tokens)
        axes.stairs(heights, edges, fill=True, color=FIRST, alpha=0.85, linewidth=0)
        axes.plot([0, size], [even, even], color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_xlim(0, size)
        axes.set_ylim(0, max(level["largest"], even) * 1.12)
        axes.xaxis.set_major_locator(few_ticks(4))
        axes.yaxis.set_major_locator(few_ticks(4))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(
                lambda value, _: f"{value:,.0f}" if value == int(value) else f"{value:g}"
            )
        axes.set_xlabel("tokens, the most used first", color=MUTED)
        said = "even share " + f"{even:,.{0 if even >= 10 else 1}f}".removesuffix(".0")
        axes.annotate(
            said,
            (1, even),
            (0, 4),
            ("axes fraction", "data"),
            "offset points",
            ha="right",
            color=MUTED,
            fontsize=11,
        )
        of = f" of {level['codebook_size']:,}" if level["codebook_size"] else ""
        label = (
            f"Items per token at level {level['level']}: {level['tokens']:,}{of} tokens used, the largest by "
            f"{plural(level['largest'], 'item')}, {said}"
        )
        title = f"Level {level['level']}<span>items per token, {level['tokens']:,}{of} used</span>"
        figures.append(captioned(to_svg(figure, label), title))
    hidden = len(report["levels"]) - len(figures)
    note = (
        f'<p class="note">Drawn are the first {len(figures)} levels; {hidden} more are in the table.</p>'
        if hidden
        else ""
    )
    return f'<h3 class="gap">How evenly tokens are used</h3><div class="plots three">{"".join(figures)}</div>{note}'


# ---------------------------------------------------------------- colours of first tokens


def _colours(report: Mapping[str, Any]) -> dict[str, int]:
    """Returns the number of the colour of each of the largest first tokens; all others, and lone items, are grey."""
    largest = report["first_tokens"][:NUM_COLOURS]
    return {first["token"]: place for place, first in enumerate(largest) if first["items"] > 1}


def _called(first: Mapping[str, Any]) -> str:
    """Returns what the items of a token have in common, or the token's name where that is nothing."""
    return ", ".join(first.get("common") or ()) or first["token"]


def _svg(width: float, height: float, kind: str, label: str, body: Iterable[str]) -> str:
    return (
        f'<svg class="plot drawn {kind}" viewBox="0 0 {_n(width)} {_n(height)}" role="img" aria-label="{escaped(label)}">'
        f"{''.join(body)}</svg>"
    )


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _fill(colour: int | None, child: int) -> str:
    """Returns the classes of a block: its colour, and which of two shades, so that neighbours are told apart."""
    return f"rest s{child % 2}" if colour is None else f"c{colour} s{child % 2}"


# ---------------------------------------------------------------- the tree


def _tree_section(report: Mapping[str, Any]) -> str:
    tree = report["tree"]
    if tree is None:
        return ""
    names = {first["token"]: _called(first) for first in report["first_tokens"]}
    # A third level of which hardly a part is large enough to be drawn says nothing.
    wholes = [tree["children"]]
    while below := [part for node in wholes[-1] for part in node.get("children") or ()]:
        wholes.append(below)
    sizes = [sum(node["items"] for node in nodes) for nodes in wholes]
    depth = max(min(2, len(sizes)), sum(size >= sizes[0] / 10 for size in sizes))
    pictures = _tree(report, names, depth, True) + _tree(report, names, depth, False)
    named = any(first["common"] for first in report["first_tokens"])
    bare = any(not first["common"] for first in report["first_tokens"])
    drawn, rest = len(tree["children"]), tree["rest"]
    part = f" of the {drawn} largest of {tree['tokens']:,} first tokens" if rest["tokens"] else ""
    note = (
        f"From left to right the {listed(_ORDINALS[:depth])} token of the code{part}; heights are numbers of items"
        + (f", in all {1 - rest['items'] / tree['items']:.0%} of the catalogue" if part else "")
        + "; the figures above count different beginnings of codes. Parts too thin to be drawn are put together, pale. "
        + ("The words are those that set the items of a token apart from all others" if named else "")
        + (", at a later level from those of the part before" if named and depth > 1 else "")
        + ("; a bare token has no such words. " if named and bare else ". " if named else "")
        + "Coloured are the largest first tokens."
    )
    return f'{pictures}<p class="note">{note}</p>'


def _tree(report: Mapping[str, Any], names: Mapping[str, str], depth: int, wide: bool) -> str:
    tree, colours = report["tree"], _colours(report)
    width, height, top = (1040.0, 620.0, 26.0) if wide else (360.0, 620.0, 24.0)
    size, lead = (14.0, 36.0) if wide else (12.0, 16.0)
    start = (380.0 if wide else 184.0) if depth > 1 else (620.0 if wide else 230.0)
    column = (width - start) / depth
    drawn = sum(child["items"] for child in tree["children"])
    scale = (height - top) / drawn
    blocks: list[str] = []
    centres: list[tuple[float, str, str, str]] = []

    def place(node: Mapping[str, Any], level: int, y: float, colour: int | None, path: str) -> None:
        x = start + level * column
        for number_, child in enumerate(node["children"]):
            tall = child["items"] * scale
            mine = colours.get(child["token"]) if level == 0 else colour
            words = names.get(child["token"], child["token"]) if level == 0 else _called(child)
            name = f"{path}{child['token']}"
            blocks.append(
                f'<rect class="l{level} {_fill(mine, number_)}" x="{_n(x)}" y="{_n(y)}" width="{_n(column - 3)}" '
                f'height="{_n(max(0.3, tall - (1 if tall > 4 else 0.3)))}">'
                f"<title>{escaped(clean(name))}: {plural(child['items'], 'item')}"
                f"{escaped('' if words == child['token'] else ', ' + words)}</title></rect>"
            )
            if level == 0:
                centres.append(
                    (y + tall / 2, words, f"{child['items']:,}", f"k{mine}" if mine is not None else "krest")
                )
            elif tall > size * 1.35 and column > 90:
                inner = fitted(words, size - 1, column - 20)
                blocks.append(
                    f'<text class="in" x="{_n(x + 8)}" y="{_n(y + tall / 2 + size * 0.33)}">{escaped(inner)}</text>'
                )
            if level + 1 < depth and "children" in child:
                place(child, level + 1, y, mine, name)
            y += tall
        if level and (rest := node["rest"])["items"]:
            tall = rest["items"] * scale
            blocks.append(
                f'<rect class="small {_fill(colour, 0)}" x="{_n(x)}" y="{_n(y)}" width="{_n(column - 3)}" '
                f'height="{_n(tall)}"><title>{plural(rest["tokens"], "small part")} of {plural(rest["items"], "item")} '
                "together</title></rect>"
            )

    place(tree, 0, top, None, "")
    for level in range(depth):
        distinct = report["levels"][level]["prefixes"]
        said = (
            f"{_ORDINALS[level]} token · {distinct:,}"
            if wide and level == 0
            else f"{_ORDINALS[level]} · {distinct:,}"
        )
        if not wide and depth > 2:
            said = f"{distinct:,}"
        blocks.append(f'<text class="head" x="{_n(start + level * column)}" y="{_n(top - 9)}">{said}</text>')
    step = size * 1.25
    shown = centres[: int((height - top) // step)]
    labels = []
    for y, (at, words, count, kind) in zip(
        _apart([c[0] for c in shown], step, top + step / 2, height - step / 2), shown, strict=True
    ):
        right = start - lead - 6
        counted = text_width(count, size) + 8
        labels.append(
            f'<path class="lead {kind}" d="M{_n(start - lead)} {_n(y)}L{_n(start - lead * 0.25)} {_n(at)}H{_n(start - 1)}"/>'
            f'<text class="name" text-anchor="end" x="{_n(right - counted)}" y="{_n(y + size * 0.35)}">'
            f"{escaped(fitted(words, size, right - counted))}</text>"
            f'<text class="count" text-anchor="end" x="{_n(right)}" y="{_n(y + size * 0.35)}">{count}</text>'
        )
    largest = "; ".join(f"{words} {count}" for _, words, count, _ in shown[:8])
    label = f"The code tree of {plural(tree['items'], 'item')}, largest first tokens: {largest}"
    return _svg(width, height, "wide" if wide else "narrow", label, [*blocks, *labels])


def _apart(wanted: Sequence[float], step: float, low: float, high: float) -> list[float]:
    """Returns rising places at least ``step`` apart between ``low`` and ``high``, near where they are wanted."""
    places: list[float] = []
    for number_, value in enumerate(wanted):
        least = low if not places else places[-1] + step
        places.append(min(max(value, least), high - step * (len(wanted) - 1 - number_)))
    return places


# ---------------------------------------------------------------- the map


def _map_section(report: Mapping[str, Any]) -> str:
    found = report["map"]
    if found is None:
        return ""
    colours = _colours(report)
    entries = [
        f'<li><svg class="mark" viewBox="0 0 12 12" aria-hidden="true"><circle class="c{colours[first["token"]]}" cx="6" '
        f'cy="6" r="5"/></svg><span>{title_span(_called(first), 60)} <small>{_token(first)}{plural(first["items"], "item")}'
        "</small></span></li>"
        for first in report["first_tokens"]
        if first["token"] in colours
    ]
    others = report["levels"][0]["tokens"] - len(entries)
    if entries and others:
        entries.append(
            '<li><svg class="mark" viewBox="0 0 12 12" aria-hidden="true"><circle class="rest" cx="6" cy="6" r="5"/></svg>'
            f"<span>{plural(others, 'other first token')}</span></li>"
        )
    part = found["num_items"] < report["num_items"]
    note = (
        f"{'A random sample of ' if part else ''}{plural(found['num_items'], 'item')}{'' if part else ', all that have text'}"
        f", placed by text alone ({escaped(report['text_encoder'])} vectors, "
        f"{'50 principal components, then t-SNE' if found['method'] == 't-SNE' else 'two principal components'}), so that "
        "items of alike text lie near each other"
        + ("; distances between far groups mean little" if found["method"] == "t-SNE" else "")
        + (
            ". Where a colour keeps together, the first token follows the text."
            if entries
            else ". No two items share a first token, so that there is nothing to colour."
        )
    )
    legend = f'<ul class="codes">{"".join(entries)}</ul>' if entries else ""
    return (
        f'<div class="map"><div>{_map(report, colours, True)}{_map(report, colours, False)}</div>{legend}</div>'
        f'<p class="note">{note}</p>'
    )


def _token(first: Mapping[str, Any]) -> str:
    return f"<bdi>{escaped(first['token'])}</bdi> · " if first.get("common") else ""


def _map(report: Mapping[str, Any], colours: Mapping[str, int], wide: bool) -> str:
    found = report["map"]
    width, height, radius, size, most = (
        (760.0, 640.0, 4.6, 13.0, 14) if wide else (360.0, 360.0, 3.4, 11.0, 7)
    )
    edge = 10.0
    spread = min(1.0, (width / height) * max(found["y"]) / (max(found["x"]) or 1)) if max(found["y"]) else 1.0
    across = (width - 2 * edge) * spread
    shift = (width - across) / 2

    def at(point: int) -> tuple[float, float]:
        x, y = found["x"][point], found["y"][point]
        return shift + x / (max(found["x"]) or 1) * across, height - edge - y / (max(found["y"]) or 1) * (
            height - 2 * edge
        )

    groups: dict[int | None, list[str]] = {None: [], **{colour: [] for colour in colours.values()}}
    for point, token in enumerate(found["first_tokens"]):
        x, y = at(point)
        groups[colours.get(token)].append(f"M{x:.1f} {y:.1f}h0")
    few = max(1.0, min(1.7, (600 / found["num_items"]) ** 0.5))
    body = [
        f'<path class="dots {"krest" if colour is None else f"k{colour}"}" stroke-width="{_n(radius * few)}" d="{"".join(d)}"/>'
        for colour, d in groups.items()
        if d
    ]
    taken: list[tuple[float, float, float, float]] = []
    labels: list[str] = []
    for entry in found["labels"]:
        x, y = at(entry["point"])
        words = fitted(entry["title"], size, 230 if wide else 125)
        long = text_width(words, size)
        for left, low, anchor in (
            (x + 8, y + size * 0.35, "start"),
            (x - 8 - long, y + size * 0.35, "end"),
            (x - long / 2, y - 9, "middle"),
            (x - long / 2, y + size + 7, "middle"),
        ):
            box = (left - 4, low - size - 2, left + long + 6, low + 6)
            inside = box[0] >= 0 and box[2] <= width and box[1] >= 0 and box[3] <= height
            mark = (x - 7, y - 7, x + 7, y + 7)
            if inside and not any(_meet(box, other) or _meet(mark, other) for other in taken):
                taken += [box, mark]
                place = {"start": left, "end": left + long, "middle": x}[anchor]
                token = found["first_tokens"][entry["point"]]
                colour = colours.get(token)
                labels.append(
                    f'<circle class="ring {"rest" if colour is None else f"c{colour}"}" cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}"/>'
                    f'<text class="name" text-anchor="{anchor}" font-size="{_n(size)}" x="{_n(place)}" y="{_n(low)}">'
                    f"<title>{escaped(short(entry['title'], 200))}: {escaped(token)}</title>{escaped(words)}</text>"
                )
                break
        if len(labels) == most:
            break
    label = f"Map of {plural(found['num_items'], 'item')} by text, coloured by first token"
    return _svg(width, height, "wide" if wide else "narrow", label, [*body, *labels])


def _meet(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


# ---------------------------------------------------------------- training


def _training(report: Mapping[str, Any]) -> str:
    looks = report["training"]
    if len(looks) < 2:
        return ""
    levels = len(looks[0]["usage"])

    def each(key: str) -> list[list[float | None]]:
        return [[look[key][level] for look in looks] for level in range(levels)]

    taken = [
        look["collaborative_purity"] / look["collaborative_purity_all"]
        if look.get("collaborative_purity") is not None and look.get("collaborative_purity_all")
        else None
        for look in looks
    ]
    alike = [look.get("semantic_purity") for look in looks]
    overall = [look.get("semantic_purity_all") for look in looks]
    epochs = [look["epoch"] for look in looks]
    wanted = (
        ("Collision rate", "of items", [[look["collision_rate"] for look in looks]], True, None),
        ("Tokens used", "by level", each("usage"), True, None),
        ("Perplexity", "by level", each("perplexity"), False, None),
        ("Vectors alike", "mean cosine", [alike], False, overall),
        ("Taken together", "times any two", [taken], False, [1.0] * len(looks)),
    )
    figures = [
        captioned(_curve(epochs, curves, percent, dashed, title), f"{title}<span>{what}</span>")
        for title, what, curves, percent, dashed in wanted
        if any(value is not None for curve in curves for value in curve)
    ]
    legend = colour_legend((SERIES[level % NUM_COLOURS], f"level {level + 1}") for level in range(levels))
    note = (
        "Alike are the vectors that codes are made of. The last two pictures are of items that share a first token; "
        "dashed is what any two items have. Epoch 0 is before training."
    )
    return f'{legend}<div class="plots three">{"".join(figures)}</div><p class="note">{note}</p>'


def _curve(
    epochs: Sequence[int],
    curves: Sequence[Sequence[float | None]],
    percent: bool,
    dashed: Sequence[float | None] | None,
    title: str,
) -> str:
    figure, axes = new_axes(320, 190, (46, 10, 12, 40), "y")
    if dashed is not None:
        known = [(x, y) for x, y in zip(epochs, dashed, strict=True) if y is not None]
        axes.plot(*zip(*known, strict=True), color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
    said = []
    for level, curve in enumerate(curves):
        known = [(x, y) for x, y in zip(epochs, curve, strict=True) if y is not None]
        axes.plot(
            *zip(*known, strict=True),
            color=SERIES[level % NUM_COLOURS] if len(curves) > 1 else TEXT,
            linewidth=1.8,
            marker="o",
            markersize=4,
        )
        said.append(f"{known[0][1]:.4g} to {known[-1][1]:.4g}")
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]), top=axes.get_ylim()[1] or 1)
    if percent:
        axes.set_ylim(top=min(1.04, axes.get_ylim()[1]))
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(few_ticks(5))
    axes.yaxis.set_major_locator(few_ticks(4))
    axes.yaxis.set_major_formatter(
        (lambda value, _: f"{100 * value:g}%")
        if percent
        else (lambda value, _: f"{value:,g}".replace("-", "\N{MINUS SIGN}"))
    )
    axes.set_xlabel("epoch", color=MUTED)
    return to_svg(figure, f"{title} over epochs: {'; '.join(said)}")


# ---------------------------------------------------------------- examples and details


def _examples(report: Mapping[str, Any]) -> str:
    cards = []
    for first in report["first_tokens"]:
        if first["items"] > 1 and first.get("titles"):
            titles = "".join(f"<li>{title_span(title, 90)}</li>" for title in first["titles"])
            cards.append(
                f'<article class="card"><h3><span dir="auto">{escaped(_called(first))}</span></h3>'
                f"<h4>{_token(first)}{plural(first['items'], 'item')}</h4><ul>{titles}</ul></article>"
            )
    near = [
        f'<article class="card"><h3>{title_span(example["title"], 90)}</h3>'
        f"<h4><bdi>{escaped(' '.join(example['code']))}</bdi></h4><ul>"
        + "".join(
            f"<li>{title_span(other['title'], 90)} <small>{other['shared']} of {len(example['code'])} tokens</small></li>"
            for other in example["neighbours"]
        )
        + "</ul></article>"
        for example in report["examples"]
    ]
    found = ""
    if cards:
        found += f'<h3>Items of the largest first tokens, drawn at random</h3><div class="cards">{"".join(cards)}</div>'
    if near:
        found += (
            '<h3 class="gap">Two items, drawn at random, and the items whose codes begin most like theirs</h3>'
            f'<div class="cards">{"".join(near)}</div>'
        )
    return found


def _details(report: Mapping[str, Any]) -> str:
    index = {
        "method": report["method"],
        "hash": report["hash"],
        "tokens of the longest code": report["lengths"]["longest"],
        "most items of one code": report["collisions"]["max_items_per_code"],
        **{f"touched by {name}": count for name, count in (report["collisions"]["touched_by"] or {}).items()},
    }
    parts = {"Index": index, "Settings": report["settings"], "Versions": report["versions"]}
    return folded("What it was made with", facts(parts))


_LIGHT = ["#2375eb", "#f7990c", "#1da9a0", "#f65359", "#9257a1", "#655400", "#2a3ca4", "#701467"]
_DARK = ["#0f84f0", "#e1aa1e", "#31f6f7", "#fa5e92", "#aa469e", "#807809", "#baa3de", "#dbf44d"]


def _variables(colours: Sequence[str], rest: str) -> str:
    return " ".join(f"--c{place}: {value};" for place, value in enumerate(colours)) + f" --rest: {rest};"


# Eight colours of near equal steps for normal sight, deuteranopia, protanopia and tritanopia, all apart from the grey:
# found by random search over the smallest OKLab distance under Machado, Oliveira and Fernandes' simulations (2009).
_STYLE = (
    f":root {{ {_variables(_LIGHT, '#c9c6bf')} }}\n"
    f"@media (prefers-color-scheme: dark) {{ :root {{ {_variables(_DARK, '#4a4e58')} }} }}\n"
    f"@media print {{ :root {{ {_variables(_LIGHT, '#c9c6bf')} }} }}\n"
    + "".join(
        f".c{place} {{ fill: var(--c{place}); }} .k{place} {{ stroke: var(--c{place}); }}\n"
        for place in range(NUM_COLOURS)
    )
    + """
.rest { fill: var(--rest); } .krest { stroke: var(--rest); }
.levels tbody th { min-width: 3rem; } .levels th small { padding-left: 0; }
.drawn { max-width: none; }
.drawn text { fill: var(--text); font-size: 14px; }
.narrow text { font-size: 12px; }
.drawn .head, .drawn .count { fill: var(--muted); }
.drawn .head { font-size: 12px; }
.drawn .in { stroke: none; font-size: 13px; }
.l0.rest.s1 { opacity: .8; }
.l1.s0 { opacity: .56; } .l1.s1 { opacity: .42; } .l2.s0 { opacity: .42; } .l2.s1 { opacity: .3; } .small { opacity: .2; }
.l1.rest, .l2.rest { opacity: .85; } .l1.rest.s1, .l2.rest.s1 { opacity: .6; } .small.rest { opacity: .4; }
.lead { fill: none; stroke-width: 1.2; }
.dots { fill: none; stroke-linecap: round; opacity: .85; } .dots.krest { opacity: .75; }
.ring { stroke: var(--text); stroke-width: 1.6; }
.narrow { display: none; }
.map { display: grid; grid-template-columns: minmax(0, 1fr) 17rem; gap: 1.5rem 2rem; align-items: start; }
.map .drawn { max-width: 48rem; }
.codes { list-style: none; margin: 0; padding: 0; font-size: .92rem; display: grid; gap: .55rem; }
.codes li { display: flex; gap: .5rem; align-items: baseline; }
.codes small, .card small { color: var(--muted); } .codes small { display: block; } .card small { white-space: nowrap; }
.card li { margin: .3rem 0; line-height: 1.4; }
@media (max-width: 58rem) { .map { grid-template-columns: minmax(0, 1fr); } .codes { grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); } }
@media (max-width: 40rem) { .wide { display: none; } .narrow { display: block; } }
"""
)
