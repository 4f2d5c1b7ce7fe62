"""What of the documentation is written by the project itself: ``python docs/build_site.py [--check]``.

Two kinds of text. Blocks between ``<!-- written: NAME ARGUMENTS -->`` and ``<!-- /written -->`` and the pictures of the
flow are files of the repository, so that they can be read there too; this script renews them, and a test fails where
they are not fresh. Whole pages (home, keys, API, recipes' files) are made while mkdocs builds the site, whose hooks are at the end.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from genrec.core.errors import GenrecError, RunError
from genrec.core.files import atomic_path
from genrec.pipeline import Pipeline
from genrec.recipe import load_recipe, recipe_keys

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
RECIPES = ROOT / "recipes"
NOTEBOOKS = DOCS / "notebooks"
WORTH = ROOT / "benchmarks" / "indexing" / "results"
SERVING = ROOT / "benchmarks" / "serving" / "results"
STAGES = Pipeline(load_recipe("quickstart")).stages
BLOCK = re.compile(r"(<!-- written: (\w+)(?: ([^\n]*?))? -->\n).*?(<!-- /written -->)", re.DOTALL)

HEAD_KEYS = ("What it is", "Paper", "Why so", "Data", "Hardware", "Expected metrics", "Launch")
# The first line of what a paper does and what a recipe does: words apart by a gap.
COLUMNS = re.compile(r"  \S.*? {2,}\S")


class Head:
    """The comment that opens a recipe, part by part.

    Args:
        path: A recipe; its first line must be ``# NAME: what it is in a sentence``.
    """

    def __init__(self, path: Path) -> None:
        lines = []
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            lines.append(line.removeprefix("#").removeprefix(" "))
        self.name, separator, self.sentence = lines[0].partition(": ")
        if not separator or self.name != path.stem:
            raise RunError(f"{path} must open with '# {path.stem}: what it is', got {lines[0]!r}.")
        self.parts: dict[str, list[str]] = {}
        part: list[str] = []
        for line in lines[1:]:
            key = re.match(rf"({'|'.join(HEAD_KEYS)})\b(?=[:,])", line)
            if key:
                part = self.parts.setdefault(key[1], [])
                line = line[key.end() :]
            part.append(line)

    def text(self, key: str) -> str:
        """Returns a part as one line, empty where the head has none."""
        return self.sentence_of(key).removeprefix(f"{key}: ")

    def sentence_of(self, key: str) -> str:
        """Returns a part as one line with its key before it, empty where the head has none."""
        return " ".join((key + " ".join(self.parts[key])).split()) if key in self.parts else ""

    @property
    def paper(self) -> str:
        """The source alone, such as ``BIGRec (Bao et al., arXiv 2308.08434)``; empty where it is ours."""
        found = re.match(r"[^.;(]*(\([^)]*\))?", self.text("Paper"))
        source = found[0].strip() if found else ""
        return "" if source == "none" else source

    @property
    def hardware(self) -> str:
        """What it runs on."""
        return self.text("Hardware").partition(" Time")[0].rstrip(".")

    @property
    def time(self) -> str:
        """How long it took where it was measured, and the machine."""
        found = re.search(r"Time(?: and expected metrics)?: (.*?)(?:[,:;(]|\.(?= |$))", self.text("Hardware"))
        return found[1].strip() if found else ""


def recipe_heads() -> list[Head]:
    """Returns the heads of all shipped recipes, by name."""
    return [Head(path) for path in sorted(RECIPES.glob("*.yaml"))]


def recipe_table() -> str:
    """Returns a table of all shipped recipes, from their heads."""
    lines = ["| recipe | what | paper | hardware | time |", "|---|---|---|---|---|"]
    for head in recipe_heads():
        what = head.sentence.rstrip(".")
        lines.append(f"| `{head.name}` | {what} | {head.paper or 'ours'} | {head.hardware} | {head.time} |")
    return "\n".join(lines)


def method_results(paper: str) -> str:
    """Returns what the recipes of a paper say: what differs, on what they ran and what came out."""
    parts = []
    for head in recipe_heads():
        if not re.match(rf"{re.escape(paper)}\b", head.paper):
            continue
        told = head.parts["Paper"]
        begins = next((n for n, line in enumerate(told) if COLUMNS.match(line)), len(told))
        intro = " ".join(" ".join(told[:begins]).split())
        what = head.text("What it is")
        parts += [f"### `{head.name}`", what[0].upper() + what[1:], f"Paper{intro}", _compared(told[begins:])]
        parts += [
            head.sentence_of(key) for key in ("Data", "Hardware", "Expected metrics") if key in head.parts
        ]
        parts.append("    " + head.text("Launch").partition(" or: ")[0])
    return "\n\n".join(filter(None, parts)) or "Not measured: no shipped recipe is of this paper."


def _compared(lines: Sequence[str]) -> str:
    """Returns a table of the three columns of a recipe's head: what, in the paper, here; empty where it has none."""
    if not lines:
        return ""
    starts = Counter(m.start() for line in lines for m in re.finditer(r"(?<= {2})\S", line) if m.start() > 30)
    ours = starts.most_common(1)[0][0]
    rows: list[list[str]] = []
    for line in lines:
        # A column may begin a letter off; one that touches the column before it begins where the others do.
        begins = min((m.start() for m in re.finditer(r"(?<= {2})\S", line[ours - 4 :])), default=4) + ours - 4
        cells = [line[2:16].strip(), line[16:begins].strip(), line[begins:].strip()]
        if cells[0] and (cells[1] or not rows):
            rows.append(cells)
        else:
            rows[-1] = [f"{a} {b}".strip().replace("- ", "-") for a, b in zip(rows[-1], cells, strict=True)]
    table = ["| | paper | this recipe |", "|---|---|---|"]
    return "\n".join([*table, *(f"| {' | '.join(row)} |" for row in rows)])


def worth_table(schemes: str) -> str:
    """Returns how one small decoder from nothing did on the codes of some schemes, from the result files.

    Args:
        schemes: Names as in benchmarks/indexing/worth.py, apart by semicolons.
    """
    wanted = [scheme.strip() for scheme in schemes.split(";")]
    lines = ["| data | scheme | HR@10 | NDCG@10 | seed | commit |", "|---|---|--:|--:|--:|---|"]
    for path in sorted(WORTH.glob("worth-*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        for scheme in wanted:
            if scheme in result["schemes"]:
                metrics = result["schemes"][scheme]["model"]["metrics"]
                lines.append(
                    f"| {result['dataset']} | {scheme} | {metrics['HR@10']:.4f} | {metrics['NDCG@10']:.4f} | "
                    f"{result['seed']} | {result['commit'][:8]} |"
                )
    return "\n".join(lines) if len(lines) > 2 else "Not measured."


def _latest(name: str) -> dict[str, Any] | None:
    """Returns the newest result of a measurement of the server that counts."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in SERVING.glob(f"{name}-????????.json")]
    return max(found, key=lambda result: result["date"], default=None)


def _measured(result: dict[str, Any]) -> str:
    hardware = result["hardware"]
    return (
        f"`{result['command']}`, commit {result['commit'][:8]}, {hardware['cpu']}, {hardware['cores']} cores."
    )


def load_table() -> str:
    """Returns what the server did under load, from the newest result of benchmarks/serving/load.py."""
    if (result := _latest("load")) is None:
        return "Not measured."
    lines = [
        "| traffic | clients | minutes | answers | a second | p50 ms | p99 ms | refused (503) | wrong | lost | server MB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    phases = result["phases"]
    for key, name in {
        "one_at_a_time": "one at a time",
        "saturation": "saturation",
        "beyond": "beyond it",
    }.items():
        seen = phases[key]
        sizes = [size for _, size in seen["memory_mb"]]
        after_third = sizes[len(sizes) // 3 :]
        lines.append(
            f"| {name} | {seen['clients']} | {seen['wall_s'] / 60:.0f} | {seen['answers']:,} | {seen['per_s']:.1f} | "
            f"{seen['p50_ms']:.0f} | {seen['p99_ms']:.0f} | {seen['statuses'].get('503', 0):,} | {seen['wrong']} | {seen['lost']} | "
            f"{sizes[0]:.0f} at first, then {min(after_third):.0f} to {max(after_third):.0f} |"
        )
    changes = phases["saturation"]["changes"]
    said = (
        f"{result['speed_up']:.2f} times as many answers a second as one at a time. During saturation the model was switched "
        f"{changes.get('model', 0)} times and an item removed {changes.get('items', 0)} times."
    )
    for key in ("sigterm", "sigterm_beyond"):
        end = phases[key]
        said += (
            f" SIGTERM among {end['during']:,} answers: {end['taken']:,} requests taken in the server's life, {end['answered']:,} "
            f"answered, {end['received']:,} answers received."
        )
    return "\n".join(lines) + f"\n\n{said} {_measured(result)}"


def replicas_table() -> str:
    """Returns what replicas did beside one process, from the newest result of benchmarks/serving/replicas.py."""
    if (result := _latest("replicas")) is None:
        return "Not measured."
    lines = ["| | answers | a second | p50 ms | p99 ms | wrong | lost |", "|---|--:|--:|--:|--:|--:|--:|"]
    lines += [
        f"| {name} | {seen['answers']:,} | {seen['per_s']:.1f} | {seen['p50_ms']:.0f} | {seen['p99_ms']:.0f} | {seen['wrong']} | "
        f"{seen['lost']} |"
        for name, seen in result["servers"].items()
    ]
    return "\n".join(lines) + f"\n\n{_measured(result)}"


def batch_text() -> str:
    """Returns what one and two processes took for the same users, from the newest result of benchmarks/serving/batch.py."""
    if (result := _latest("batch")) is None:
        return "Not measured."
    rates = ", ".join(
        f"{name} {seconds:.0f} s ({result['users'] / seconds:.0f} users a second)"
        for name, seconds in result["seconds"].items()
    )
    equal = "equal, item for item and score for score" if result["equal"] else "NOT equal"
    return f"{result['users']:,} users, starts included: {rates}; the {result['parts']} parts are {equal}. {_measured(result)}"


WRITERS: dict[str, Callable[..., str]] = {
    "recipes": recipe_table,
    "results": method_results,
    "worth": worth_table,
    "load": load_table,
    "replicas": replicas_table,
    "batch": batch_text,
}


def renewed(text: str) -> str:
    """Returns a page's text with every written block as its writer has it now.

    Raises:
        RunError: If a block names no writer, or is not closed.
    """

    def write(found: re.Match[str]) -> str:
        opening, name, argument, closing = found.groups()
        if name not in WRITERS:
            raise RunError(f"There is no writer {name!r}. Allowed: {', '.join(WRITERS)}.")
        return f"{opening}\n{WRITERS[name](*[argument] if argument else [])}\n\n{closing}"

    if len(BLOCK.findall(text)) != text.count("<!-- written:"):
        raise RunError("A block <!-- written: ... --> must be closed by <!-- /written -->.")
    return BLOCK.sub(write, text)


# What stands in the picture below the name of a stage. A stage without words is an error.
WORDS = {
    "prepare": ("read, check, filter,", "split"),
    "sasrec": ("strong baseline,", "teacher if asked"),
    "gru4rec": ("strong baseline,", "teacher if asked"),
    "index": ("name every item", "with tokens"),
    "train": ("fine-tune the", "language model"),
    "baselines": ("tuned on", "validation items"),
    "evaluate": ("all items, all users,", "paired tests"),
}
LIGHT = {"ink": "#1f2328", "soft": "#59636e", "line": "#8b949e", "box": "#f6f8fa", "end": "#ddf4ff"}
DARK = {"ink": "#e6edf3", "soft": "#9da7b3", "line": "#6e7681", "box": "#21262d", "end": "#0c2d4a"}
WIDTH, HEIGHT, ACROSS, DOWN = 132, 64, 168, 80


def stages_before() -> dict[str, set[str]]:
    """Returns the stages whose outputs each stage takes, as a pipeline that uses all of them says it."""

    found: dict[str, set[str]] = {stage: set() for stage in STAGES}
    asking: list[str] = []

    class Traced(Pipeline):
        def inputs(self, stage: str) -> dict[str, Any]:
            if asking:
                found[asking[-1]].add(stage)
            asking.append(stage)
            try:
                return super().inputs(stage)
            finally:
                asking.pop()

    changes = [
        "index.method=rq_kmeans",
        "index.vectors=both",
        "index.collaborative_vectors=sasrec",
        "train.teacher=gru4rec",
        "evaluate.baselines=[sasrec, gru4rec]",
    ]
    with tempfile.TemporaryDirectory() as folder:
        pipeline = Traced(load_recipe("quickstart", [f"run_dir={folder}", *changes]))
        for stage in STAGES:
            pipeline.inputs(stage)
    return found


def flow_svg(colours: dict[str, str]) -> str:
    """Returns the picture of the stages of a run, left to right, with what goes in and what comes out."""
    before = stages_before()
    column: dict[str, int] = {}
    for stage in STAGES:  # they stand in an order in which each comes after what it takes
        column[stage] = max((column[other] + 1 for other in before[stage]), default=1)
    # The line on which the language model is made has what it needs above and what it is set beside below.
    at = {stage: (column[stage], {"gru4rec": 0, "baselines": 2}.get(stage, 1)) for stage in STAGES}
    last = max(column.values())
    ends = {"log, item texts": (0, 1), "Recommender": (last + 1, 1)}
    words = WORDS | {
        "log, item texts": ("CSV, Parquet, Hub,", "databases"),
        "Recommender": ("serve, score,", "explain, Hub"),
    }
    edges = [("log, item texts", "prepare"), ("evaluate", "Recommender")]
    # An arrow that a longer way says too is left out.
    edges += [(a, b) for b in STAGES for a in sorted(before[b]) if not _by_others(a, b, before)]
    places = at | ends
    corner = {name: (12 + x * ACROSS, 16 + y * DOWN) for name, (x, y) in places.items()}
    width, height = 24 + (last + 1) * ACROSS + WIDTH, 32 + 2 * DOWN + HEIGHT
    alt = "From a log and item texts by " + ", ".join(STAGES) + " to a recommender"
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{alt}" font-family="system-ui, sans-serif">',
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{colours["line"]}"/></marker></defs>',
    ]
    for a, b in edges:
        (ax, ay), (bx, by) = corner[a], corner[b]
        x, y, to_x, to_y = ax + WIDTH, ay + HEIGHT / 2, bx - 2, by + HEIGHT / 2
        turn = bx - (ACROSS - WIDTH)  # an arrow stays in its row until the last gap before its end
        middle = (turn + to_x) / 2
        out.append(
            f'<path d="M{x} {y:g}H{turn}C{middle:g} {y:g} {middle:g} {to_y:g} {to_x} {to_y:g}" fill="none" '
            f'stroke="{colours["line"]}" stroke-width="1.5" marker-end="url(#tip)"/>'
        )
    for name, (x, y) in corner.items():
        fill = colours["end" if name in ends else "box"]
        one, two = words[name]
        centre = x + WIDTH / 2
        out.append(
            f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{fill}" stroke="{colours["line"]}"/>'
            f'<text text-anchor="middle" fill="{colours["soft"]}" font-size="12">'
            f'<tspan x="{centre:g}" y="{y + 20}" fill="{colours["ink"]}" font-size="14" font-weight="600">{name}</tspan>'
            f'<tspan x="{centre:g}" y="{y + 38}">{html.escape(one)}</tspan>'
            f'<tspan x="{centre:g}" y="{y + 53}">{html.escape(two)}</tspan></text>'
        )
    return "\n".join([*out, "</svg>"]) + "\n"


def _by_others(a: str, b: str, before: dict[str, set[str]]) -> bool:
    def reaches(start: str) -> bool:
        return a in before[start] or any(map(reaches, before[start]))

    return any(reaches(other) for other in before[b] - {a})


def written() -> Iterator[tuple[Path, str]]:
    """Yields every file of the repository that is written here, wholly or in blocks, with what it should hold."""
    for path in sorted(DOCS.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        if "<!-- written:" in text:
            yield path, renewed(text)
    yield DOCS / "flow.svg", flow_svg(LIGHT)
    yield DOCS / "flow-dark.svg", flow_svg(DARK)


def main(arguments: Sequence[str] | None = None) -> int:
    """Renews what is written, or with ``--check`` only compares it, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python docs/build_site.py", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 where something is not fresh"
    )
    options = parser.parse_args(arguments)
    try:
        for path, text in written():
            if path.is_file() and path.read_text(encoding="utf-8") == text:
                continue
            if options.check:
                raise RunError(f"{path.relative_to(ROOT)} is not what its sources say. Run: make written")
            with atomic_path(path) as part:
                part.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    except GenrecError as error:
        print(f"build_site: {error}", file=sys.stderr)
        return 1
    return 0


# ---- hooks of mkdocs

# Files outside docs/ that are pages of the site. Links to any other file of the repository become plain text.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
# Rooms and what of them is described: their own __all__, or for those without one the names that scripts use.
ROOMS: dict[str, tuple[str, ...]] = {
    "data_prep": (),
    "indexing": (),
    "tasks": (),
    "models": (
        "backbone.load_backbone",
        "recommender_model.RecommenderModel",
        "reclora.RecLoraConfig",
        "reclora.RecLoraModel",
        "sequence.SASRec",
        "sequence.GRU4Rec",
        "sequence.train_sequence",
        "users.UserVectors",
    ),
    "training": (),
    "decoding": (
        "beam.ConstrainedDecoder",
        "processor.TrieLogitsProcessor",
        "grounding.Grounder",
        "fusion.Ranker",
        "explain.BeamTree",
        "settings.DecodingSettings",
    ),
    "evaluation": (),
    "serving": (),
}


def keys_page() -> str:
    """Returns every key of a recipe with its default and meaning, a section a group."""
    lines = [
        "# Keys of a recipe",
        "",
        "What `genrec keys` prints. Any of them can be changed on the command line: `KEY=VALUE`.",
    ]
    group = None
    for key, default, description in recipe_keys():
        first, dot, _ = key.partition(".")
        if (first if dot else "") != group:
            group = first if dot else ""
            title = f"`{group}`" if group else "The run"
            lines += ["", f"## {title}", "", "| key | default | |", "|---|---|---|"]
        said = html.escape(description, quote=False).replace("|", "\\|")
        shown = default.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| `{key}` | `{shown}` | {said} |")
    return "\n".join(lines) + "\n"


def api_pages() -> Iterator[tuple[str, str]]:
    """Yields address and text of the pages of the API: the package's own names, then those of each room."""
    top = import_module("genrec")
    described = "\n\n".join(f"::: genrec.{name}" for name in top.__all__ if name != "__version__")
    intro = (
        "What a script needs, by `import genrec`. What settings hold is on the page of [keys](../keys.md)."
    )
    yield "reference/api/genrec.md", f"# genrec\n\n{intro}\n\n{described}\n"
    for room, chosen in ROOMS.items():
        module = import_module(f"genrec.{room}")
        names = chosen or [name for name in module.__all__ if name not in top.__all__]
        intro = (module.__doc__ or "").strip()
        described = "\n\n".join(f"::: genrec.{room}.{name}" for name in names)
        yield f"reference/api/{room}.md", f"# genrec.{room}\n\n{intro}\n\n{described}\n"


def recipe_files_page() -> str:
    """Returns all shipped recipes as they are."""
    parts = ["# Recipes as they are", "The files of `recipes/`; [their table](../recipes.md)."]
    for path in sorted(RECIPES.glob("*.yaml")):
        parts += [f"## {path.stem}", f"```yaml\n{path.read_text(encoding='utf-8').rstrip()}\n```"]
    return "\n\n".join(parts) + "\n"


def notebook_page(path: Path) -> str:
    """Returns a notebook, which is a script with cells (``# %%``, ``# %% [markdown]``), as a page."""
    parts = []
    for cell in re.split(r"^# %%", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        kind, _, text = cell.partition("\n")
        if kind.strip() == "[markdown]":
            parts.append("\n".join(re.sub("^# ?", "", line) for line in text.strip().splitlines()))
        else:
            parts.append(f"```python\n{text.strip()}\n```")
    as_script = f"This page is a script, [{path.name}]({path.name}), that a test of the project runs; Jupyter opens it with jupytext."
    return "\n\n".join([parts[0], as_script, *parts[1:]]) + "\n"


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are made while the site is built."""
    from mkdocs.structure.files import File

    made = {"reference/keys.md": keys_page(), "reference/recipes.md": recipe_files_page()} | dict(api_pages())
    made |= {f"notebooks/{path.stem}.md": notebook_page(path) for path in NOTEBOOKS.glob("*.py")}
    made |= {page: (ROOT / source).read_text(encoding="utf-8") for source, page in PAGES.items()}
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


LINK = re.compile(
    r'(?P<text>\[[^\]]*\]\(|src="|srcset=")(?!\w+:|[#/])(?P<path>[^)"#\s]+)(?P<rest>#[^)"\s]*)?(?P<end>[)"])'
)


def on_page_markdown(markdown: str, page: Any, files: Any, **_: Any) -> str:
    """Turns links that are right in the repository into those of the site; what is no page of it becomes text."""
    address = page.file.src_uri
    source = {to: path for path, to in PAGES.items()}.get(address, f"docs/{address}")

    def turned(link: re.Match[str]) -> str:
        path = os.path.normpath(os.path.join(os.path.dirname(source), link["path"]))
        to = PAGES.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(to) is None and not path.startswith("docs/"):
            return link["text"][1:-2]
        to = os.path.relpath(to, os.path.dirname(address) or ".")
        return f"{link['text']}{to}{link['rest'] or ''}{link['end']}"

    return LINK.sub(turned, markdown)


if __name__ == "__main__":
    sys.exit(main())
