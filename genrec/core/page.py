"""The plumbing of HTML pages: single files that open without a network, for people.

Plots are drawn by matplotlib and set into a page as SVG whose colours are names of the page's style sheet, so
that they follow light and dark. Nothing is loaded and no script runs. The same content gives the same bytes.
"""

from __future__ import annotations

import html
import io
import math
import re
import unicodedata
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from genrec.core.errors import require
from genrec.core.files import atomic_path

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
NUM_COLOURS = 8
# Stand-ins that matplotlib draws with and to_svg replaces by the style sheet's names.
ROLES = {f"#0001{n:02x}": f"var(--m{n})" for n in range(NUM_COLOURS)} | {
    "#000200": "var(--text)",
    "#000201": "var(--muted)",
    "#000202": "var(--rule)",
    "#000203": "var(--paper)",
}
*SERIES, TEXT, MUTED, RULE, PAPER = ROLES
FIRST = SERIES[0]


def clean(value: object) -> str:
    """Returns the text without characters that neither HTML nor XML allows."""
    return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", str(value))


def escaped(value: object) -> str:
    """Returns any value as text for the inside of HTML or of an attribute."""
    return html.escape(clean(value))


def short(text: str, most: int = 120) -> str:
    """Returns the text, cut to ``most`` characters where it is longer, the last of them an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def text_width(text: str, size: float) -> float:
    """Returns about how wide a text is in a page's font, a little more rather than less, in the unit of ``size``."""
    wide = {"W": 1.0, "F": 1.0}
    ems = (
        wide.get(unicodedata.east_asian_width(letter))
        or (
            0.34
            if letter in "iljtfrI.,:;'|!()[] "
            else 0.92
            if letter in "mwMW@%"
            else 0.7
            if letter.isupper()
            else 0.58
        )
        for letter in text
    )
    return size * sum(ems)


def fitted(text: str, size: float, width: float) -> str:
    """Returns the text, cut with an ellipsis where it would be wider than ``width``."""
    text = " ".join(clean(text).split())
    if text_width(text, size) <= width:
        return text
    while text and text_width(f"{text}…", size) > width:
        text = text[:-1]
    return f"{text.rstrip()}…"


def title_span(text: str, most: int = 120) -> str:
    """Returns a title of a user's in HTML, whichever way it is written, cut with the whole at hand."""
    whole = f' title="{escaped(text)}"' if short(text, most) != text else ""
    return f'<span dir="auto"{whole}>{escaped(short(text, most))}</span>'


def finite(value: Any) -> float | None:
    """Returns the number, None where it is missing or none."""
    return float(value) if value is not None and math.isfinite(value) else None


def pair(value: Any) -> tuple[float, float] | None:
    """Returns two finite numbers, None where there are no such two."""
    if value is None or len(value) != 2:
        return None
    low, high = finite(value[0]), finite(value[1])
    return None if low is None or high is None else (low, high)


def number(value: float | None, digits: int = 4) -> str:
    """Returns a number with its decimals, a dash for None."""
    return DASH if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def share(value: float) -> str:
    """Returns a share in per cent; none and all are said only where they are meant."""
    if value in (0, 1):
        return f"{value:.0%}"
    return f"{min(max(value, 0.0001), 0.9999):.2%}" if value < 0.1 or value > 0.999 else f"{value:.1%}"


def listed(names: Sequence[str]) -> str:
    """Returns ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def plural(count: int, noun: str) -> str:
    """Returns ``1 item``, ``2 items``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


# ---------------------------------------------------------------- pieces of the page


def section(title: str, body: str) -> str:
    """Returns a section below its heading, nothing where the body is empty."""
    return f"<section>\n<h2>{title}</h2>\n{body}\n</section>" if body else ""


def scroll_table(head: str, body: str, label: str, kind: str = "") -> str:
    """Returns a table that scrolls sideways on its own where it is wider than the page."""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escaped(label)}">'
        f'<table class="{kind}"><thead>{head}</thead>{body}</table></div>'
    )


def head_row(names: Iterable[str]) -> str:
    """Returns the row of a table's headings, given as HTML."""
    cells = "".join(f'<th scope="col">{name}</th>' for name in names)
    return f"<tr>{cells}</tr>"


def table_row(cells: Sequence[str], own: bool = False) -> str:
    """Returns a row of whole cells; ``own`` marks the one that the page is about."""
    return ('<tr class="own">' if own else "<tr>") + "".join(cells) + "</tr>"


def bar(part: float, colour: str = FIRST) -> str:
    """Returns a bar for the inside of a cell, filled up to ``part`` in [0, 1], in one of ``SERIES`` or ``MUTED``."""
    return f'<span class="bar"><span style="width:{part:.1%};background:{ROLES[colour]}"></span></span>'


def tiles(entries: Iterable[tuple[str, str, str]]) -> str:
    """Returns the main numbers of a page, large: name, value and the small line beneath it, all HTML."""
    found = "".join(
        f"<div><dt>{name}</dt><dd>{value}{f'<small>{note}</small>' if note else ''}</dd></div>"
        for name, value, note in entries
    )
    return f"<dl>{found}</dl>"


def colour_legend(entries: Iterable[tuple[str, str]]) -> str:
    """Returns what colours of ``SERIES`` stand for, ``(colour, HTML)``."""
    found = "".join(
        '<li><svg class="mark" viewBox="0 0 12 12" aria-hidden="true"><circle cx="6" cy="6" r="5" '
        f'style="fill:{ROLES[colour]}"/></svg> {name}</li>'
        for colour, name in entries
    )
    return f'<ul class="legend">{found}</ul>'


def folded(title: str, body: str) -> str:
    """Returns what opens when its title is clicked, nothing where the body is empty."""
    return f"<details><summary>{title}</summary>\n{body}</details>\n" if body else ""


def write_html(
    path: Path,
    title: str,
    kind: str,
    lead: str,
    sections: Sequence[str],
    *,
    version: str | None,
    footer: str = "",
    style: str = "",
) -> None:
    """Writes a page, whole or not at all.

    Args:
        path: The file.
        title: What the page is of, in the user's words.
        kind: What kind of page it is, HTML.
        lead: The sentence below the title, HTML.
        sections: HTML; empty ones are left out.
        version: Of genrec, where it is known.
        footer: The last sentence, HTML.
        style: Style that only this kind of page needs.

    Raises:
        RunError: If the file system refuses.
    """
    made = f"Made by genrec {escaped(version)}." if version else "Made by genrec."
    made = f"{made} {footer}".strip()
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escaped(title)} · genrec</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n<main>\n"
        f'<header>\n<p class="kind">{kind}</p>\n<h1><bdi>{escaped(title)}</bdi></h1>\n'
        + (f'<p class="lead">{lead}</p>\n' if lead else "")
        + "</header>\n"
        + "\n".join(section for section in sections if section)
        + f"\n</main>\n<footer>{made}</footer>\n</body>\n</html>\n"
    )
    with atomic_path(path) as part:
        part.write_text(page, encoding="utf-8")


def write_svg(path: Path, svg: str, style: str) -> None:
    """Writes a picture as an SVG file of its own, whole or not at all, in the colours of a page, light and dark.

    Args:
        path: The file.
        svg: The picture, its coordinates in pixels: ``<svg ... viewBox="0 0 W H" ...>``.
        style: Its style, in the page's variables.

    Raises:
        RunError: If the file system refuses.
    """
    _, _, width, height = re.search(r'viewBox="([^"]*)"', svg)[1].split()  # type: ignore[index]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
    inner = f"<style>{COLOURS}svg {{ background: var(--paper); font-family: system-ui, sans-serif; }}\n{style}</style>"
    start, end = svg.index(" ") + 1, svg.index(">") + 1
    with atomic_path(path) as part:
        part.write_text(f"{head}{svg[start:end]}{inner}{svg[end:]}\n", encoding="utf-8")


def facts(parts: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Returns a small table for each part that has a fact, side by side; nothing where none has."""
    found = ""
    for title, values in parts.items():
        lines = [
            f'<tr><th scope="row">{escaped(name.replace("_", " "))}</th><td class="words">{fact(value)}</td></tr>'
            for name, value in flat(values or {})
            if value is not None
        ]
        if lines:
            found += f'<h3>{title}</h3><table class="facts"><tbody>{"".join(lines)}</tbody></table>\n'
    return f'<div class="columns">{found}</div>' if found else ""


def flat(facts: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yields names and values, those of mappings inside with the names of all above."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{name} · ")
        else:
            yield f"{before}{name}", value


def fact(value: Any) -> str:
    """Returns any value of a report in HTML; of long lists the first dozen."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}".replace("-", MINUS)
    if isinstance(value, list | tuple):
        more = f" … ({len(value):,} in all)" if len(value) > 12 else ""
        return ", ".join(map(fact, value[:12])) + more
    return f"<bdi>{escaped(value)}</bdi>"


def plain_style() -> AbstractContextManager[None]:
    """Returns a context in which plots do not depend on the user's own matplotlib settings."""
    style = require("matplotlib.style", "train")
    return style.context(["default", {"svg.fonttype": "none", "svg.hashsalt": "genrec", "font.size": 12}])


def new_axes(
    width: float, height: float, margins: tuple[float, float, float, float], grid: str
) -> tuple[Any, Any]:
    """Returns a figure and its axes, sizes in the units of the SVG: left, right, top and bottom margin."""
    figure = require("matplotlib.figure", "train").Figure((width / 72, height / 72), dpi=72)
    left, right, top, bottom = margins
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    )
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(side == "bottom" and grid == "y")
        axes.spines[side].set_color(MUTED)
    axes.tick_params(length=0, labelcolor=MUTED, pad=5)
    axes.grid(axis=grid, color=RULE, linewidth=1)
    axes.set_axisbelow(True)
    return figure, axes


def to_svg(figure: Any, label: str, texts: Sequence[str] = ()) -> str:
    """Returns a figure as SVG for the inside of an HTML page.

    Args:
        figure: Of matplotlib.
        label: What it shows, for those who do not see it.
        texts: Words of users, set in for the texts whose id is ``user-0``, ``user-1`` and so on. They do not pass
            through matplotlib, which would read ``$`` as mathematics and has no letters for many scripts.
    """
    for artist in figure.findobj():
        artist.set_clip_on(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ET.fromstring(buffer.getvalue())
    # Two plots may have the same mark, and an id may come only once in a page.
    before = f"g{zlib.crc32(clean(label + buffer.getvalue()).encode()):08x}"
    for parent in list(root.iter()):
        parent.tag = parent.tag.rpartition("}")[2]
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
        parent.tail = None
        if parent.tag != "text":
            parent.text = None
    for node in root.iter():
        name = node.attrib.pop("id", "")
        if node.tag == "path" and re.fullmatch(r"m[0-9a-f]{10}", name):
            node.set("id", before + name)
        if name.startswith("user-"):
            node[0].text = clean(texts[int(name[5:])])
        for attribute, value in list(node.attrib.items()):
            del node.attrib[attribute]
            if attribute.endswith("href"):
                value = f"#{before}{value[1:]}"
            elif attribute == "style":
                value = re.sub(r"font-family:[^;]*;? ?", "", value)
                value = re.sub("#0001[0-9a-f]{2}|#0002[0-9a-f]{2}", lambda m: ROLES[m[0]], value)
            elif attribute in ("d", "x", "y", "transform"):
                value = re.sub(r"\d+\.\d+", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), value)
            if attribute.rpartition("}")[2] not in ("width", "height", "version"):
                node.set(attribute.rpartition("}")[2], " ".join(value.split()))
    root.set("class", "plot")
    root.set("role", "img")
    root.set("aria-label", clean(label))
    return ET.tostring(root, encoding="unicode")


def captioned(svg: str, title: str) -> str:
    """Returns a picture below its title, both HTML."""
    return f"<figure><figcaption>{title}</figcaption>{svg}</figure>"


def few_ticks(most: int) -> Any:
    """Returns a locator of at most so many round ticks."""
    return require("matplotlib.ticker", "train").MaxNLocator(most, steps=[1, 2, 2.5, 5, 10])


def thinned(points: np.ndarray, most: int = 200) -> np.ndarray:
    """Returns ``(points, 2)`` at most ``most`` points, means of equal stretches where there were more."""
    if len(points) <= most:
        return points
    return np.stack([part.mean(0) for part in np.array_split(points, most)])


# ---------------------------------------------------------------- style

COLOURS = """
:root {
  --paper: #fcfbf9; --card: #ffffff; --text: #1d1f24; --muted: #5a5e68; --rule: #e2dfd8; --own: #eef4fb;
  --good: #0a6b4d; --bad: #a83a0c; --warn: #8a2a06; --warn-paper: #fdf0e8;
  --m0: #0b5fb3; --m1: #c67a6c; --m2: #8a9110; --m3: #570060; --m4: #039cc3; --m5: #ab316e; --m6: #624d02; --m7: #5f101e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16181d; --card: #1c1f26; --text: #e8e6e1; --muted: #a5a9b4; --rule: #32363f; --own: #1d2a3a;
    --good: #5fd0a4; --bad: #ff9d6b; --warn: #ffb48a; --warn-paper: #38231a;
    --m0: #68b1f5; --m1: #ae6b00; --m2: #98ffc8; --m3: #8f6e9b; --m4: #d1e9ff; --m5: #f0ef75; --m6: #caaa6f; --m7: #668268;
  }
}
"""
_STYLE = (
    COLOURS
    + """* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--text); line-height: 1.55; font-size: 1rem;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", Arial, sans-serif;
}
main, footer { max-width: 68rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding: 3rem 0 .5rem; max-width: 46rem; }
h1, h2 { font-family: Charter, "Bitstream Charter", "Sitka Text", Cambria, "Noto Serif", Georgia, serif; }
h1 { font-size: clamp(1.7rem, 5vw, 2.5rem); line-height: 1.15; margin: 0 0 .6rem; font-weight: 600; }
h1, h3, tbody th, .words, li, p, figcaption { overflow-wrap: anywhere; }
h2 { font-size: 1.4rem; line-height: 1.25; font-weight: 600; margin: 0 0 .9rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; }
.gap { margin-top: 2rem; }
h4 { font-size: .78rem; color: var(--muted); font-weight: 600; margin: .9rem 0 .25rem; }
.kind { color: var(--muted); margin: 0 0 .2rem; font-size: .9rem; }
.lead { margin: 0; color: var(--muted); }
section { padding: 2.2rem 0 .4rem; }
.banner { border-left: 4px solid var(--warn); background: var(--warn-paper); color: var(--text); padding: .8rem 1rem; margin: 1.2rem 0 0; max-width: 46rem; }
.banner strong { display: block; color: var(--warn); font-size: 1.1rem; }
.banner p { margin: 0; } .banner p + p { margin-top: .4rem; }
.banner.calm { border-color: var(--m0); background: var(--own); }
.summary { margin: 1.4rem 0 0; }
.summary dl { display: flex; flex-wrap: wrap; gap: .6rem 3rem; margin: 0 0 .6rem; }
.summary dt { color: var(--muted); font-size: .9rem; }
.summary dd { margin: 0; font-size: 2.3rem; line-height: 1.15; font-variant-numeric: tabular-nums; }
.many dl { gap: .8rem 2.6rem; }
.many dd { font-size: 1.8rem; }
.summary small { display: block; font-size: .82rem; color: var(--muted); line-height: 1.5; }
.summary p { margin: 0; max-width: 46rem; }
.note { color: var(--muted); font-size: .85rem; margin: .7rem 0 0; max-width: 46rem; }
dfn { font-style: normal; font-weight: 600; }
.scroll { overflow-x: auto; }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--m0); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
.scroll table { min-width: 100%; }
th, td { padding: .5rem .7rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--rule); }
thead th { color: var(--muted); font-weight: 600; font-size: .85rem; vertical-align: bottom; border-color: var(--muted); }
th[scope=row], thead tr:first-child th:first-child, .words { text-align: left; }
td { white-space: nowrap; }
.words { white-space: normal; }
tbody th { font-weight: 400; min-width: 9rem; max-width: 20rem; }
.metrics thead th[colspan] { text-align: center; border-bottom: 0; padding-bottom: 0; color: var(--text); }
td small, th small { display: block; color: var(--muted); font-size: .75rem; white-space: nowrap; }
th small { white-space: normal; padding-left: 1.2rem; }
.own > * { background: var(--own); }
.own > th { font-weight: 600; box-shadow: inset 3px 0 0 var(--m0); }
.group th { text-align: left; font-weight: 600; padding-top: 1rem; }
.tests td { vertical-align: middle; }
.ahead { color: var(--good); }
.behind { color: var(--bad); }
.not-told-apart { color: var(--muted); }
.model { display: inline-flex; align-items: baseline; gap: .45rem; }
.mark { flex: none; width: .75rem; height: .75rem; }
.forest { width: 7.5rem; height: 1rem; vertical-align: middle; fill: currentColor; }
.forest path { stroke: currentColor; stroke-width: 1.6; }
.forest .zero { stroke: var(--muted); stroke-width: 1; opacity: .6; }
.bar, .bar > span { display: block; height: 5px; border-radius: 3px; }
.bar { margin-top: .3rem; background: var(--rule); min-width: 4.5rem; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.4rem; list-style: none; margin: 0 0 1rem; padding: 0; font-size: .88rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1.8rem 2.4rem; align-items: start; }
.plots.three { grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
.plots > * { min-width: 0; }
figure { margin: 0; }
figcaption { font-weight: 600; margin-bottom: .4rem; }
figcaption span { font-weight: 400; color: var(--muted); font-size: .85rem; margin-left: .6rem; }
.plot { display: block; width: 100%; height: auto; max-width: 29rem; overflow: visible; }
.plot * { stroke-linejoin: round; stroke-linecap: round; }
.plot text { font-variant-numeric: tabular-nums; paint-order: stroke; stroke: var(--paper); stroke-width: 4px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: 1rem; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 1rem 1.1rem; font-size: .92rem; min-width: 0; }
.card ul, .card ol { margin: 0; padding-left: 1.4rem; }
.card ul { list-style: none; padding-left: 0; }
.card li { margin: .1rem 0; }
.hit { font-weight: 600; }
.hit::marker { color: var(--good); }
.taken { color: var(--good); margin-left: .5rem; white-space: nowrap; }
.score { color: var(--muted); font-weight: 400; font-size: .8rem; margin-left: .5rem; font-variant-numeric: tabular-nums; }
.aside { font-weight: 400; }
details { border-top: 1px solid var(--rule); padding: .2rem 0; }
section > details:last-child { border-bottom: 1px solid var(--rule); }
summary { cursor: pointer; padding: .5rem 0; font-weight: 600; }
details h3 { margin: 1rem 0 .3rem; }
.note + details { margin-top: .8rem; }
.columns { columns: 24rem; column-gap: 2.5rem; padding: .4rem 0 1rem; }
.columns table { width: 100%; margin-bottom: 1.4rem; break-inside: avoid; }
.columns h3 { break-after: avoid; }
.facts th, .facts td { padding: .25rem .7rem .25rem 0; font-size: .85rem; }
.facts th { color: var(--muted); text-align: left; min-width: 0; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
footer { color: var(--muted); font-size: .82rem; padding-top: 2rem; padding-bottom: 3rem; }
@media (max-width: 40rem) {
  header { padding-top: 1.6rem; }
  th, td { padding: .45rem .5rem; }
  .scroll tbody th { min-width: 8rem; max-width: 11rem; }
  .metrics th:first-child[scope=row], .tests th[scope=row], .bias th[scope=row] { position: sticky; left: 0; background: var(--paper); }
  .own > th[scope=row] { background: var(--own); }
}
@media print {
  :root {
    --paper: #ffffff; --card: #ffffff; --text: #000000; --muted: #444444; --rule: #cccccc; --own: #eef4fb;
    --good: #0a6b4d; --bad: #a83a0c; --warn: #8a2a06; --warn-paper: #fdf0e8;
    --m0: #0b5fb3; --m1: #c67a6c; --m2: #8a9110; --m3: #570060; --m4: #039cc3; --m5: #ab316e; --m6: #624d02; --m7: #5f101e;
  }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  html { font-size: 11px; }
  main, footer { max-width: none; padding: 0; }
  section { padding-top: 1.4rem; }
  figure, .plots, .legend, .card, tr, .banner { break-inside: avoid; }
  h2, h3, .legend, .group { break-after: avoid; }
  .scroll { overflow: visible; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""
)
