"""The report of an index: how its codes are used, what items that share them have in common, where they lie."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genrec._version import __version__
from genrec.core.errors import DataError
from genrec.data_prep import ItemCatalog, ItemId, UserId
from genrec.indexing.codes import Code
from genrec.indexing.encoders import FIELDS, WORDS, vectors_at_hand
from genrec.indexing.index import ItemIndex
from genrec.indexing.quality import finite, purities
from genrec.indexing.semantic import category_names
from genrec.indexing.settings import IndexSettings
from genrec.indexing.words import words_of

MAP_ITEMS, MAP_LABELS = 2000, 22
FEW_ITEMS = 100  # below it a neighbourhood of t-SNE would be a third of the map
TREE_LEVELS, TREE_PARTS = 3, 600
# Words of many titles that say nothing of what a thing is.
_MEASURES = frozenset(
    [
        "ounce",
        "ounces",
        "fluid",
        "gram",
        "grams",
        "pound",
        "pounds",
        "inch",
        "inches",
        "count",
        "pack",
        "packs",
        "piece",
        "pieces",
        "set",
        "size",
    ]
)
NAMED_PREFIXES, EXAMPLE_PREFIXES, EXAMPLE_TITLES, NEIGHBOURS = 24, 6, 5, 6


def index_report(
    index: ItemIndex,
    items: ItemCatalog | None = None,
    train: Mapping[UserId, Sequence[ItemId]] | None = None,
    *,
    name: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns all that a report says of an index, as values of JSON; equal inputs give equal reports.

    ``levels`` has for each level what ``code_quality`` counts, ``sizes`` (``[[items, tokens with so many], ...]``,
    largest first), ``codebook_size`` and ``used_share`` where the scheme has codebooks, and what ``purities``
    measures. ``first_tokens`` are the largest, with what their items have in common; ``tree`` is the code tree to
    three levels, small branches summed up; ``map`` places a sample of the items in two dimensions; ``examples``
    has items that share most of their codes; ``notes`` says what was left out, and why.

    Args:
        index: Of any scheme, or read from a published file.
        items: The catalogue, in any order, of at least the items of the index. Without it there are neither titles
            nor text vectors.
        train: Training histories, for the collaborative figures.
        name: What the page calls the index; its method without.
        seed: Of what is drawn at random: the sample of the map, examples.

    Raises:
        DataError: If the catalogue lacks an item of the index.
    """
    codes, rng = list(index.codes.values()), np.random.default_rng(seed)
    if items is not None:
        items = _in_order(items, index.item_ids)
    notes: list[str] = []
    vectors, encoder = _text_vectors(items, index.settings, notes)
    levels = _levels(index, codes)
    if items is not None:
        window = (index.settings or IndexSettings()).window
        for level, purity in zip(levels, purities(codes, items, train, vectors, window), strict=False):
            level |= {key: finite(value) for key, value in purity.items()}
    if train is None or items is None:
        notes.append("There are no training histories: whether items are taken together is not measured.")
    common = _Common(items)
    books = [level for level in levels if level["codebook_size"]]
    room = sum(level["codebook_size"] for level in books)
    lengths = list(map(len, codes))
    quality = index.report
    return {
        "name": name or index.method,
        "method": index.method,
        "hash": index.hash,
        "settings": index.settings.model_dump(mode="json") if index.settings else None,
        "num_items": len(codes),
        "num_tokens": len(index.tokens),
        "lengths": {"shortest": min(lengths), "mean": quality["mean_length"], "longest": max(lengths)},
        "collisions": {
            "policy": quality.get("collision_policy"),
            "num_items_touched": quality.get("num_items_touched"),
            "touched_by": quality.get("touched_by"),
            "rate_before": quality.get("collision_rate_before"),
            "rate_after": quality["collision_rate"],
            "max_items_per_code": quality["max_items_per_code"],
        },
        "codebook_tokens": room or None,
        "dead_share": sum(level["codebook_size"] - level["tokens"] for level in books) / room
        if room
        else None,
        "text_encoder": encoder,
        "levels": levels,
        "first_tokens": _first_tokens(codes, index, items, common, rng),
        "tree": _tree(codes, index, common) if len(levels) > 1 else None,
        "map": _map(index, codes, items, vectors, seed),
        "examples": _examples(index, items, rng),
        "training": quality.get("training") or [],
        "notes": notes,
        "versions": {"genrec": __version__},
    }


def report_table(report: Mapping[str, Any], most: int = 12) -> str:
    """Returns the table per level as text, and the sentence about items that share a first token.

    Args:
        report: What ``index_report`` returns.
        most: Levels shown.
    """
    lines = [
        f"{'level':>5}{'tokens':>9}{'used':>8}{'entropy':>9}{'perplexity':>12}{'largest':>9}{'prefixes':>10}"
        f"{'alike':>8}{'together':>10}"
    ]
    lines.append("-" * len(lines[0]))
    for level in report["levels"][:most]:
        used, alike, times = level["used_share"], level.get("semantic"), together(level)
        lines.append(
            f"{level['level']:>5}{level['tokens']:>9,}{'' if used is None else f'{used:.1%}':>8}"
            f"{level['entropy']:>9.3f}{level['perplexity']:>12,.1f}{level['largest']:>9,}{level['prefixes']:>10,}"
            f"{'' if alike is None else f'{alike:.3f}':>8}{'' if times is None else f'{times:,.1f}x':>10}"
        )
    if len(report["levels"]) > most:
        lines.append(f"... and {len(report['levels']) - most} levels more")
    first = report["levels"][0]
    if first.get("semantic_all") is not None:
        lines.append(
            f"alike: mean cosine of text ({report['text_encoder']}) of items that share the beginning; of any two "
            f"items {first['semantic_all']:.3f}."
        )
    if together(first) is not None:
        lines.append("together: how often they are taken together, against any two items.")
    return "\n".join([*lines, *report["notes"]])


def together(level: Mapping[str, Any]) -> float | None:
    """Returns how many times as often items that share the beginning are taken together as any two items."""
    within, overall = level.get("collaborative"), level.get("collaborative_all")
    return within / overall if within is not None and overall else None


def _in_order(items: ItemCatalog, item_ids: Sequence[ItemId]) -> ItemCatalog:
    if items.item_ids == item_ids:
        return items
    if missing := [item for item in item_ids if item not in items]:
        raise DataError(
            f"The catalogue lacks {len(missing):,} of the {len(item_ids):,} items of the index, first {missing[0]!r}. "
            "Give the catalogue that the index was made of, with the same item ids."
        )
    return items.select(item_ids)


def _text_vectors(
    items: ItemCatalog | None, settings: IndexSettings | None, notes: list[str]
) -> tuple[np.ndarray | None, str | None]:
    """Returns text vectors and their encoder, where the items have text, and notes where not, or not as asked."""
    if items is None:
        notes.append("There is no catalogue: titles, likeness of text and the map are left out.")
        return None, None
    if all(map(_untitled, items.item_ids, map(items.title, items.item_ids))) and not any(
        items.texts(FIELDS[1:])
    ):
        notes.append("The items have no titles or other text: likeness of text and the map are left out.")
        return None, None
    settings = settings or IndexSettings(text_encoder=WORDS)
    vectors, encoder = vectors_at_hand(items, settings)
    if encoder != settings.text_encoder:
        notes.append(
            f"Likeness of text and the map are by the words of titles: vectors of {settings.text_encoder} are not at "
            "hand, and encoding would take long."
        )
    return vectors, encoder


def _untitled(item: ItemId, title: str) -> bool:
    return title == f"Item {item}"


def _levels(index: ItemIndex, codes: Sequence[Code]) -> list[dict[str, Any]]:
    from genrec.indexing import INDEXERS

    fixed = 0
    if index.settings is not None and index.method in INDEXERS and INDEXERS[index.method].has_codebooks:
        fixed = index.settings.levels
    found = []
    for place, quality in enumerate(index.report["levels"]):
        used = Counter(code[place] for code in codes if len(code) > place)
        size = index.settings.codebook_size if index.settings is not None and place < fixed else None
        found.append(
            {
                "level": place + 1,
                "items": used.total(),
                **quality,
                "codebook_size": size,
                "used_share": len(used) / size if size else None,
                "sizes": [list(pair) for pair in sorted(Counter(used.values()).items(), reverse=True)],
            }
        )
    return found


class _Common:
    """What items have in common: words of their titles and names of their categories."""

    def __init__(self, items: ItemCatalog | None) -> None:
        from scipy.sparse import csr_matrix
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        passed_over = ENGLISH_STOP_WORDS | _MEASURES
        self.spelling: dict[str, str] = {}
        rows: list[set[str]] = []
        if items is not None:
            for item, names in zip(items.item_ids, category_names(items), strict=True):
                title = items.title(item)
                words = [] if _untitled(item, title) else words_of(title)
                row = {
                    word for word in words if len(word) > 2 and not word.isdigit() and word not in passed_over
                }
                for name in (part.strip() for path in names for part in path.split(" > ")):
                    self.spelling[name.lower()] = name
                    row.add(name.lower())
                rows.append(row)
        self.names = sorted(set().union(*rows))
        column = {name: number for number, name in enumerate(self.names)}
        at = [(row, column[name]) for row, names in enumerate(rows) for name in sorted(names)]
        row_of, column_of = (np.array([pair[side] for pair in at], np.int64) for side in (0, 1))
        self.has = csr_matrix((np.ones(len(at)), (row_of, column_of)), (len(rows), len(self.names)))

    def of(self, rows: Sequence[int], among: Sequence[int] | None = None) -> list[str]:
        """Returns at most two names that tell these items from the others, none where chance would do as well.

        Of fewer than three items there are none. A name is that of at least three tenths of the items, one and a half times the share it has among all, and so
        many would have it by chance less than once in a thousand draws of as many items. The order is that of
        p log(p / q), p the share here and q among all.

        Args:
            rows: Items.
            among: All items to tell them from; None is the whole catalogue.
        """
        if not self.names or len(rows) < 3:  # of two items anything is common
            return []
        from scipy.stats import binom

        here = np.asarray(self.has[list(rows)].sum(0)).ravel()
        others = self.has if among is None else self.has[list(among)]
        share, whole = here / len(rows), np.asarray(others.sum(0)).ravel() / others.shape[0]
        likely = np.flatnonzero((share >= 0.3) & (share >= 1.5 * whole))
        likely = likely[binom.sf(here[likely] - 1, len(rows), whole[likely]) < 1e-3]
        weight = share[likely] * np.log(share[likely] / whole[likely])
        found: list[str] = []
        for column in likely[np.argsort(-weight, kind="stable")]:
            name = self.names[column]
            # A category and a word say more than two of a kind, and "Shampoos" after "shampoo" says nothing new.
            if not found or (
                self._new(name, found[0])
                and (not self.spelling or (name in self.spelling) != (found[0] in self.spelling))
            ):
                found.append(name)
            if len(found) == 2:
                break
        return [self.spelling.get(name, name) for name in found]

    def _new(self, name: str, other: str) -> bool:
        return not any(
            one.startswith(two[:4]) or two.startswith(one[:4])
            for one in words_of(name)
            for two in words_of(other)
        )


def _by_size(codes: Sequence[Code], index: ItemIndex) -> list[tuple[str, list[int]]]:
    """Returns first tokens with the rows of their items, most items first, equals in the order of the tokens."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, code in enumerate(codes):
        rows[code[0]].append(row)
    place = {token: number for number, token in enumerate(index.tokens)}
    return sorted(rows.items(), key=lambda pair: (-len(pair[1]), place[pair[0]]))


def _first_tokens(
    codes: Sequence[Code],
    index: ItemIndex,
    items: ItemCatalog | None,
    common: _Common,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    found = []
    for place, (token, rows) in enumerate(_by_size(codes, index)[:NAMED_PREFIXES]):
        entry: dict[str, Any] = {"token": token, "items": len(rows), "common": common.of(rows)}
        if place < EXAMPLE_PREFIXES:
            drawn = np.sort(rng.choice(rows, min(EXAMPLE_TITLES, len(rows)), replace=False))
            entry["titles"] = [_title(index.item_ids[row], items) for row in drawn.tolist()]
        found.append(entry)
    return found


def _title(item: ItemId, items: ItemCatalog | None) -> str:
    return item if items is None else items.title(item)


def _tree(codes: Sequence[Code], index: ItemIndex, common: _Common) -> dict[str, Any] | None:
    """Returns the root of the code tree: ``{"items", "tokens", "children": [...], "rest": {"tokens", "items"}}``.

    Children have a ``token``, the largest first; the root has the largest first tokens only, and parts too small to
    be seen are summed up in ``rest``. A part that is large enough to be written into says what its items have in
    common, against those of the node above. None where no two items share a first token.
    """
    largest = _by_size(codes, index)[:NAMED_PREFIXES]
    if len(largest[0][1]) < 2:
        return None
    drawn = sum(len(rows) for _, rows in largest)
    smallest, written = drawn / TREE_PARTS, drawn / 45
    place = {token: number for number, token in enumerate(index.tokens)}

    def node(rows: list[int], depth: int) -> dict[str, Any]:
        below: dict[str, list[int]] = defaultdict(list)
        for row in rows:
            if len(codes[row]) > depth:
                below[codes[row][depth]].append(row)
        ordered = sorted(below.items(), key=lambda pair: (-len(pair[1]), place[pair[0]]))
        kept = [pair for pair in ordered if depth == 0 or len(pair[1]) >= smallest][
            : NAMED_PREFIXES if depth == 0 else None
        ]
        children: list[dict[str, Any]] = []
        for token, of_token in kept:
            child: dict[str, Any] = {"token": token}
            if depth and len(of_token) >= written:
                child["common"] = common.of(of_token, rows)
            child |= node(of_token, depth + 1) if depth + 1 < TREE_LEVELS else {"items": len(of_token)}
            children.append(child)
        rest = ordered[len(kept) :]
        small = {"tokens": len(rest), "items": sum(len(of_token) for _, of_token in rest)}
        return {"items": len(rows), "tokens": len(below), "children": children, "rest": small}

    return node(list(range(len(codes))), 0)


def _map(
    index: ItemIndex, codes: Sequence[Code], items: ItemCatalog | None, vectors: np.ndarray | None, seed: int
) -> dict[str, Any] | None:
    """Returns a sample of the items in two dimensions, ``x`` and ``y`` within 0 to 1, and points to be labelled.

    Text vectors of length 1, then 50 principal components and t-SNE; of few items two principal components. Items
    without text are left out.
    """
    if items is None or vectors is None:
        return None
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    length = np.linalg.norm(vectors, axis=1)
    known = np.flatnonzero(length > 0)
    if len(known) > MAP_ITEMS:
        known = np.sort(np.random.default_rng(seed).choice(known, MAP_ITEMS, replace=False))
    unit = (vectors[known] / length[known, None]).astype(np.float64)
    if len(np.unique(unit.round(9), axis=0)) < 3:
        return None
    small = len(known) < FEW_ITEMS
    width = min(2 if small else 50, *unit.shape)
    found = PCA(width, svd_solver="full", random_state=seed).fit_transform(unit)
    if not small and width > 2:
        found = TSNE(2, init="pca", perplexity=30, max_iter=500, random_state=seed).fit_transform(found)
    found = np.pad(found, ((0, 0), (0, 2 - found.shape[1]))).astype(np.float64)
    found -= found.min(0)
    found = (found / found.max()).round(4)
    # Centres of k-means lie where the items are. Each is far from those before, so that the first few are spread too.
    groups = KMeans(min(MAP_LABELS, len(np.unique(found, axis=0))), n_init=1, random_state=seed).fit(found)
    centres = groups.cluster_centers_
    order = [int(np.bincount(groups.labels_).argmax())]
    while len(order) < len(centres):
        apart = ((centres[:, None] - centres[order]) ** 2).sum(2).min(1)
        order.append(int(np.argmax(np.where(np.isin(np.arange(len(centres)), order), -1.0, apart))))
    nearest = [int(np.argmin(((found - centres[number]) ** 2).sum(1))) for number in order]
    return {
        "method": "t-SNE" if not small and width > 2 else "principal components",
        "num_items": len(known),
        "item_ids": [index.item_ids[row] for row in known],
        "first_tokens": [codes[row][0] for row in known.tolist()],
        "x": found[:, 0].tolist(),
        "y": found[:, 1].tolist(),
        "labels": [
            {"point": point, "title": items.title(index.item_ids[known[point]])}
            for point in dict.fromkeys(nearest)
        ],
    }


def _examples(index: ItemIndex, items: ItemCatalog | None, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Returns two items, drawn from those that share a first token, with the items whose codes begin most alike."""
    ids, codes = index.item_ids, list(index.codes.values())
    shared = Counter(code[0] for code in codes)
    rows = [row for row, code in enumerate(codes) if shared[code[0]] > 1]
    found = []
    for row in rng.permutation(rows)[:2].tolist():
        alike = {other: _shared(codes[row], codes[other]) for other in range(len(codes)) if other != row}
        nearest = sorted((other for other in alike if alike[other]), key=lambda other: (-alike[other], other))
        found.append(
            {
                "item_id": ids[row],
                "title": _title(ids[row], items),
                "code": list(codes[row]),
                "neighbours": [
                    {"item_id": ids[other], "title": _title(ids[other], items), "shared": alike[other]}
                    for other in nearest[:NEIGHBOURS]
                ],
            }
        )
    return found


def _shared(one: Code, other: Code) -> int:
    """Returns how many tokens two codes have in common from the start."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
