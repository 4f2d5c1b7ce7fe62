"""Measures writing and tokenising rows, and tokens per form: ``python benchmarks/tasks/render.py [--rows N]``."""

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genrec.core.errors import GenrecError
from genrec.core.files import megabytes, write_json
from genrec.core.progress import say
from genrec.data_prep import InteractionLog, ItemCatalog, leave_one_out, load_dataset
from genrec.indexing import IndexSettings, ItemIndex, build_index
from genrec.models.backbone import load_tokenizer
from genrec.models.vocabulary import add_identifier_tokens
from genrec.tasks import TaskSettings, build_dataset, make_renderer, tokenise

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from machine import ROOT, begin_result, datasets

RESULTS = ROOT / "benchmarks" / "tasks" / "results"
BACKBONE = "smollm2-135m-instruct"
ROWS, WORKERS, HISTORY = 1_000_000, 2, 20
CODES = IndexSettings(levels=3, codebook_size=256)
EVERY_S = 0.2


def enlarged(log: InteractionLog, rows: int, seed: int) -> InteractionLog:
    """Returns a log of so many next-item samples or a little more: real histories, repeated in random orders.

    The lengths and the popularity of items are those of the log.
    """
    rng, sizes = np.random.default_rng(seed), []
    users: list[np.ndarray] = []
    items: list[np.ndarray] = []
    histories = [np.array(history) for history in log.histories().values()]
    number = 0
    while sum(sizes) < rows:
        history = rng.permutation(histories[number % len(histories)])
        users.append(np.full(len(history), f"u{number}"))
        items.append(history)
        sizes.append(max(0, len(history) - 3))  # two are held out, and the first has nothing before it
        number += 1
    count = sum(map(len, items))
    table = pa.table(
        {
            "user_id": pa.array(np.concatenate(users).tolist(), pa.string()),
            "item_id": pa.array(np.concatenate(items).tolist(), pa.string()),
            "timestamp": np.arange(count, dtype=np.float64),
        }
    )
    return InteractionLog(table, 0, "number")


def resident(process: str) -> tuple[float, float]:
    """Returns a process's share of memory in 10^6 bytes, and that of it which no file backs."""
    found = {}
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]:
        name, size = line.split()[:2]
        found[name] = int(size) * 1024 / 1e6
    return found["Pss:"], found["Pss_Anon:"]


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Yields figures, filled when the block ends: seconds, and memory of this process and its children.

    Pages that several processes share count once in all (the kernel's proportional set size). ``anon`` is what no file
    backs: pages of mapped files, which the system may drop, are in ``all`` alone.
    """
    seen: list[tuple[float, float, float]] = []
    over = threading.Event()

    def look() -> None:
        me = str(os.getpid())
        while not over.wait(EVERY_S):
            total = [0.0, 0.0]
            children = Path(f"/proc/{me}/task/{me}/children").read_text().split()
            for process in [me, *children]:
                try:
                    for place, size in enumerate(resident(process)):
                        total[place] += size
                except (OSError, KeyError):  # it has ended meanwhile
                    continue
            seen.append((time.perf_counter(), *total))

    figures: dict[str, float] = {}
    began, used = time.perf_counter(), os.times()
    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield figures
    finally:
        over.set()
        thread.join()
    ended, now = time.perf_counter(), os.times()
    figures["seconds"] = ended - began
    figures["cpu_s"] = sum(now[:4]) - sum(used[:4])
    half = [entry for entry in seen if entry[0] <= (began + ended) / 2]
    for place, name in ((1, "all"), (2, "anon")):
        if half and seen:
            figures[f"{name}_mb_at_half"] = half[-1][place]
            # The last look but one: at the very end the workers are gone.
            figures[f"{name}_mb_at_end"] = seen[max(0, len(seen) - 3)][place]
            figures[f"{name}_mb_peak"] = max(entry[place] for entry in seen)


def tokenizer_of(index: ItemIndex) -> Any:
    tokenizer = load_tokenizer(BACKBONE)
    add_identifier_tokens(tokenizer, index.tokens)
    return tokenizer


def speed(rows: int, seed: int) -> dict[str, Any]:
    """Returns what it costs to write so many next-item rows in templates, and to tokenise them."""
    log, items = load_dataset("movielens-100k")
    log = enlarged(log, rows, seed)
    split = leave_one_out(log)
    index = build_index("random", items, split.train, CODES)
    settings = TaskSettings(
        mixture={"next_item": {"count": rows}}, form="prompt", max_history=HISTORY, workers=WORKERS, seed=seed
    )
    tokenizer = tokenizer_of(index)
    with tempfile.TemporaryDirectory() as folder:
        with watched() as writing:
            data = build_dataset(split, items, index, settings, folder=folder)["train"]
        tokens = Path(folder) / "tokens.arrow"
        renderer = make_renderer(tokenizer, index, settings)
        with watched() as tokenising:
            found = tokenise(data, renderer, WORKERS, tokens)
        sample = np.random.default_rng(seed).choice(len(data), min(2000, len(data)), replace=False)
        shown = data.select(sample)
        began = time.perf_counter()
        whole = tokenizer(
            [p + c for p, c in zip(shown["prompt"], shown["completion"], strict=True)],
            add_special_tokens=False,
        )["input_ids"]
        plain_s = time.perf_counter() - began
        ours = [ids[1:] for ids in found.select(sample)["input_ids"]]
        return {
            "rows": len(data),
            "users": log.num_users,
            "tokens": int(pc.sum(pc.list_value_length(found.data["input_ids"])).as_py()),
            "workers": WORKERS,
            "seconds": writing["seconds"] + tokenising["seconds"],
            "cpu_s": writing["cpu_s"] + tokenising["cpu_s"],
            "writing": writing,
            "tokenising": tokenising,
            "equal_to_the_tokenizer": ours == whole,
            "tokenizer_alone_us_per_row": 1e6 * plain_s / len(sample),
            "rows_mb": megabytes(Path(folder) / "train.arrow"),
            "tokens_mb": megabytes(tokens),
        }


def forms(log: InteractionLog, items: ItemCatalog, seed: int) -> dict[str, Any]:
    """Returns how many tokens the forms need to learn each training item once, and their ratio to packed."""
    log = log.k_core(5, 1)
    items, split = items.restrict_to_log(log), leave_one_out(log)
    index = build_index("random", items, split.train, CODES)
    tokenizer, found = tokenizer_of(index), {}
    for form in ("packed", "windows", "prompt"):
        settings = TaskSettings(form=form, cuts=1, max_history=50, seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            data = build_dataset(split, items, index, settings, folder=folder)["train"]
            ids = tokenise(data, make_renderer(tokenizer, index, settings), 1, Path(folder) / "t")
            lengths = pc.list_value_length(ids.data["input_ids"])
            learned = pc.sum(lengths).as_py() - pc.sum(ids.data["prompt_tokens"]).as_py()
            found[form] = {"rows": len(data), "tokens": pc.sum(lengths).as_py(), "learned": learned}
    packed = found["packed"]["tokens"] / found["packed"]["learned"]
    for figures in found.values():
        figures["times_packed"] = figures["tokens"] / figures["learned"] / packed
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Takes the measurements, adds a result file and returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python benchmarks/tasks/render.py", description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, help=f"rows to write (default {ROWS:,})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--allow-dirty", action="store_true", help="measure uncommitted changes")
    options = parser.parse_args(arguments)
    try:
        changed, script = options.rows != ROWS, "benchmarks/tasks/render.py"
        path, head = begin_result(
            options.results, "render", script, arguments, changed=changed, allow_dirty=options.allow_dirty
        )
        began = time.perf_counter()
        figures = speed(options.rows, options.seed)
        say(f"{figures['rows']:,} rows in {figures['seconds']:.0f} s, {figures['cpu_s']:.0f} s of processor")
        result = head | {
            "seed": options.seed,
            "speed": figures,
            "forms": {name: forms(log, items, options.seed) for name, log, items in datasets()},
            "wall_seconds": round(time.perf_counter() - began, 1),
        }
        write_json(path, result)
        for name, found in result["forms"].items():
            ratios = ", ".join(f"{form} {each['times_packed']:.2f}" for form, each in found.items())
            print(f"{name}, tokens for each that is learned, packed = 1: {ratios}")
        print(f"Result: {path}")
    except GenrecError as error:
        print(f"render: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
