"""Why these items: the prefixes that beam search kept, level by level, as text and as a picture."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from genrec.core.page import escaped, fitted, plural, short, text_width
from genrec.data_prep import ItemCatalog, ItemId
from genrec.indexing import Code, ItemIndex

if TYPE_CHECKING:
    from genrec.decoding.beam import BeamLevel, Ranking

TITLES = 3


@dataclass(frozen=True)
class Branch:
    """A prefix of codes that beam search kept.

    Attributes:
        code: Its tokens.
        score: Its log-probability.
        num_items: Items below it that may come; of a whole code those that have it.
        titles: The titles of a few of them, those of the list first.
        complete: Whether it is a whole code.
        places: Places, from 1, of its own items in the list; only of a whole code.
        branches: The prefixes kept that go on from it, best first.
    """

    code: Code
    score: float
    num_items: int
    titles: tuple[str, ...]
    complete: bool
    places: tuple[int, ...]
    branches: tuple[Branch, ...]


@dataclass(frozen=True)
class LevelCount:
    """What beam search kept of one level.

    Attributes:
        kept: Prefixes kept.
        prefixes: Prefixes of that length that lead to an item that may come.
        share: Probability of those kept, in [0, 1].
    """

    kept: int
    prefixes: int
    share: float


@dataclass(frozen=True)
class BeamTree:
    """What beam search kept for one history.

    Attributes:
        branches: The first tokens kept, best first.
        levels: Each level's counts.
    """

    branches: tuple[Branch, ...]
    levels: tuple[LevelCount, ...]


def beam_tree(
    levels: Sequence[BeamLevel],
    index: ItemIndex,
    items: ItemCatalog,
    ranking: Ranking,
    left_out: Collection[ItemId] = (),
    row: int = 0,
) -> BeamTree:
    """Returns the tree of the prefixes that a beam search kept.

    Args:
        levels: What ``ConstrainedDecoder.rank`` wrote into ``trace``.
        index: The decoder's.
        items: Titles.
        ranking: The list that it gave.
        left_out: Items that could not come.
        row: Which of the histories.
    """
    trie, item_ids = index.trie_of_tokens, index.item_ids
    allowed = trie.restrict(np.array([item not in left_out for item in item_ids]))
    place = {item: number for number, (item, _) in enumerate(ranking, start=1)}
    scores: dict[int, float] = {}
    below: dict[int, list[int]] = {0: []}
    counts = []
    last, first_of_level, end_of_level = [0], 0, 1
    for level in levels:
        kept, share = 0, 0.0
        for node, score, parent in zip(
            level.nodes[row].tolist(), level.scores[row].tolist(), level.parents[row].tolist(), strict=True
        ):
            # A finished item may be carried along as itself.
            if score > -math.inf and node not in scores:
                scores[node], below[node] = score, []
                below[last[parent]].append(node)
                kept, share = kept + 1, share + math.exp(score)
        last = level.nodes[row].tolist()
        first_of_level, end_of_level = (
            int(trie.child_start[first_of_level]) + 1,
            int(trie.child_start[end_of_level]) + 1,
        )
        alive = int((allowed.count_below(np.arange(first_of_level, end_of_level)) > 0).sum())
        counts.append(LevelCount(kept, alive, min(share, 1.0)))

    def branch(node: int, before: Code) -> Branch:
        code = (*before, index.tokens[int(trie.child_token[node - 1])])
        complete = bool(trie.child_start[node] == trie.child_start[node + 1])
        start, end = int(trie.leaf_start[node]), int(trie.leaf_end[node])
        free = np.flatnonzero(np.diff(allowed.allowed_before[start : end + 1]) > 0) + start
        mine = [item_ids[leaf] for leaf in trie.leaf_item[free].tolist()]
        shown = sorted(mine, key=lambda item: place.get(item, math.inf))[:TITLES]
        return Branch(
            code,
            scores[node],
            len(mine),
            tuple(items.title(item) for item in shown),
            complete,
            tuple(place[item] for item in mine if item in place) if complete else (),
            grown(node, code),
        )

    def grown(node: int, code: Code) -> tuple[Branch, ...]:
        return tuple(
            branch(child, code) for child in sorted(below[node], key=scores.__getitem__, reverse=True)
        )

    return BeamTree(grown(0, ()), tuple(counts))


def probability(score: float) -> str:
    """Returns the probability of a log-probability, four decimals, or two digits where it is smaller."""
    value = math.exp(score)
    return f"{value:.4f}" if value >= 0.001 else f"{value:.1e}"


def tree_text(tree: BeamTree) -> str:
    """Returns the tree as text: a line a prefix, with its probability, and the titles below it where it ends."""
    lines = [_level_line(number, level) for number, level in enumerate(tree.levels, start=1)]

    def write(branches: tuple[Branch, ...], before: str) -> None:
        for number, branch in enumerate(branches, start=1):
            is_last = number == len(branches)
            corner, beside = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
            lines.append(f"{before}{corner}{branch.code[-1]}  p {probability(branch.score)}  {_said(branch)}")
            write(branch.branches, before + beside)

    write(tree.branches, "")
    return "\n".join(lines)


def _level_line(number: int, level: LevelCount) -> str:
    return (
        f"Level {number}: {level.kept:,} of {level.prefixes:,} prefixes kept, which have {level.share:.1%} of the "
        "probability."
    )


def _said(branch: Branch) -> str:
    titles = "; ".join(short(title, 60) for title in branch.titles)
    if branch.complete:
        listed = ", ".join(f"{place}." for place in branch.places)
        more = branch.num_items - len(branch.titles)
        return f"{listed or 'not in the list:'} {titles}{f' and {more:,} with the same code' if more > 0 else ''}"
    more = branch.num_items - len(branch.titles)
    said = f"{plural(branch.num_items, 'item')}: {titles}{f' and {more:,} more' if more > 0 else ''}"
    return said if branch.branches else f"dropped with {said}"


# ---------------------------------------------------------------- the picture

TREE_STYLE = """
.beams text { fill: var(--text); font-size: 13px; }
.beams .head, .beams .p, .beams .out { fill: var(--muted); font-size: 12px; }
.beams .link { fill: none; stroke: var(--m0); stroke-linecap: round; }
.beams .link.gone { stroke: var(--muted); opacity: .55; }
.beams .dot { fill: var(--m0); }
.beams .dot.gone { fill: var(--muted); }
.beams .listed { font-weight: 600; }
.beams { max-width: none; }
"""
_ROW, _TOP, _SIZE, _TITLE = 24.0, 34.0, 13.0, 460.0


def tree_svg(tree: BeamTree) -> str:
    """Returns the tree as SVG, from left to right, for the inside of a page or a file with ``TREE_STYLE``.

    A link is as thick as its prefix is likely beside the best first token, and grey where it leads to nothing in the list.
    Behind every end stand the titles below it.
    """
    depth = len(tree.levels)
    tokens = [token for branch in _all(tree.branches) for token in branch.code[-1:]]
    widest = max((text_width(token, _SIZE) for token in tokens), default=0.0)
    column = min(max(widest, 60.0), 220.0) + 96.0
    root, rows = 12.0, 0
    best = max((branch.score for branch in tree.branches), default=0.0)
    width = root + depth * column + _TITLE
    links: list[str] = []
    texts = [
        f'<text class="head" x="{_n(root + level * column + 36)}" y="16">'
        f"{count.kept:,} of {count.prefixes:,} · {count.share:.0%}</text>"
        for level, count in enumerate(tree.levels)
    ]

    def place(branches: tuple[Branch, ...], x: float) -> tuple[float, list[tuple[Branch, float]]]:
        """Draws branches to the right of x; returns the height at which they meet, and theirs."""
        nonlocal rows
        found = []
        for branch in branches:
            if branch.branches:
                y, inner = place(branch.branches, x + column)
                draw(x + column, y, inner)
            else:
                y = _TOP + rows * _ROW
                rows += 1
            found.append((branch, y))
        return (found[0][1] + found[-1][1]) / 2, found

    def draw(x: float, y: float, found: list[tuple[Branch, float]]) -> None:
        for branch, at in found:
            gone = "" if any(inner.places for inner in _all((branch,))) else " gone"
            thick = max(1.0, 10.0 * math.exp(branch.score - best))
            # It leaves the words of the prefix before, and ends where its own begin.
            left, right = (x if x == root else x - 4), x + 30
            middle = (left + right) / 2
            links.append(
                f'<path class="link{gone}" stroke-width="{_n(thick)}" '
                f'd="M{_n(left)} {_n(y)}C{_n(middle)} {_n(y)} {_n(middle)} {_n(at)} {_n(right)} {_n(at)}"/>'
            )
            word = fitted(branch.code[-1], _SIZE, column - 96)
            texts.append(
                f"<g><title>{escaped(''.join(branch.code))}  p {probability(branch.score)}  {escaped(_said(branch))}</title>"
                f'<text x="{_n(x + 36)}" y="{_n(at + 4.5)}">{escaped(word)} '
                f'<tspan class="p">{probability(branch.score)}</tspan></text></g>'
            )
            if not branch.branches:
                kind = "listed" if branch.places else "out"
                # Right behind its own column: no other branch has anything in the row of an end.
                size = _SIZE * 1.15 if branch.places else _SIZE  # which are bold
                said = escaped(fitted(_said(branch), size, width - x - column - 12))
                texts.append(f'<text class="{kind}" x="{_n(x + column)}" y="{_n(at + 4.5)}">{said}</text>')

    if tree.branches:
        y, found = place(tree.branches, root)
        draw(root, y, found)
        links.append(f'<circle class="dot" cx="{_n(root)}" cy="{_n(y)}" r="5"/>')
    height = _TOP + max(rows, 1) * _ROW
    label = (
        f"The beam tree: {'; '.join(_level_line(n, level) for n, level in enumerate(tree.levels, start=1))}"
    )
    return (
        f'<svg class="plot beams" viewBox="0 0 {_n(width)} {_n(height)}" role="img" aria-label="{escaped(label)}">'
        f"{''.join(links)}{''.join(texts)}</svg>"
    )


def _all(branches: tuple[Branch, ...]) -> Iterator[Branch]:
    for branch in branches:
        yield branch
        yield from _all(branch.branches)


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
