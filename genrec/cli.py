"""The command line: ``genrec COMMAND``. Modules are imported by the command that needs them."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from genrec._version import __version__
from genrec.core.errors import DataError, GenrecError

_STAGES = {
    "prepare": "read, check and filter the log",
    "index": "name every item with tokens (does prepare first if need be)",
    "train": "fine-tune the language model (and what comes before it)",
    "evaluate": "measure it beside the baselines (and what comes before it)",
    "run": "do everything: prepare, index, train, baselines, evaluate",
}


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="genrec",
        description="Turn a language model into a recommender.",
        epilog="A recipe is a YAML file, the name of a shipped one (quickstart), or the folder of a run. "
        "'genrec keys' lists every key of a recipe.",
    )
    parser.add_argument("--version", action="version", version=f"genrec {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in _STAGES.items():
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        # Rankings may be judged, and formats listed, without one.
        optional = "?" if name in ("evaluate", "prepare") else None
        what = "recipe file, shipped name, or run folder"
        if name == "prepare":
            what += "; or a source of data (as data.source), which is prepared into a folder of its own"
        command.add_argument("recipe", nargs=optional, help=what)
        command.add_argument(
            "overrides",
            nargs="*",
            metavar="key=value",
            help="changes to the recipe, such as train.epochs=2 (genrec keys lists all)",
        )
        if name == "evaluate":
            _add_judging(command)
        if name == "index":
            _add_index_report(command)
        if name == "prepare":
            _add_preparing(command)
    compare = commands.add_parser(
        "compare", help="finished runs in one table with paired tests; refuses runs not measured alike"
    )
    compare.add_argument("runs", nargs="+", help="folders of evaluated runs, or of judged rankings")
    compare.add_argument("--metrics", nargs="+", default=[], help="what is tested, such as NDCG@10")
    compare.add_argument("--html", metavar="FILE", help="write a page with plots, too")
    check = commands.add_parser(
        "check", help="print the resolved recipe and rendered rows of every family with their label masks"
    )
    check.add_argument("recipe", help="recipe file, shipped name, or run folder")
    check.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe")
    tasks = commands.add_parser(
        "tasks",
        help="list the families of tasks, show one's templates, or preview its rows on a recipe's data",
    )
    tasks.add_argument("name", nargs="?", help="family to show")
    tasks.add_argument("overrides", nargs="*", metavar="key=value", help="with --recipe: changes to it")
    tasks.add_argument(
        "--recipe", help="preview rows of this recipe's data: file, shipped name, or run folder"
    )
    tasks.add_argument("--files", nargs="+", default=[], metavar="FILE", help="families of your own")
    tasks.add_argument("--samples", type=int, default=3, help="with --recipe: rows shown (default 3)")
    tasks.add_argument(
        "--templates", choices=("drawn", "all"), default="drawn", help="all: a row in every template instead"
    )
    commands.add_parser("keys", help="list every key of a recipe with its default and meaning")
    recommend = commands.add_parser("recommend", help="recommend items to a user or after a history")
    recommend.add_argument("run", help="folder of a finished run, or a Hub id")
    recommend.add_argument(
        "--user",
        help="a user of the run, with the history that evaluation gave them; beside --history whose that is, where adapters "
        "are made from a file of users' vectors",
    )
    recommend.add_argument(
        "--history", nargs="*", metavar="ITEM_ID", help="item ids, oldest first; none is an empty history"
    )
    recommend.add_argument(
        "--unknown",
        choices=("error", "skip", "title"),
        default="error",
        help="an item of the history that the index does not have: error (default), skip it, or take it for a title",
    )
    recommend.add_argument("-k", type=int, default=10, help="items wanted (default 10)")
    recommend.add_argument("--beams", type=int, help="beam width (default: the larger of k and 20)")
    recommend.add_argument(
        "--exact", action="store_true", help="search until no better item can be left, instead of by beams"
    )
    recommend.add_argument(
        "--method",
        choices=("constrained", "grounded", "fused"),
        help="write identifiers, or titles that are matched to items, or both (default: that of the run)",
    )
    recommend.add_argument(
        "--exclude", nargs="+", default=[], metavar="ITEM_ID", help="items that must not come"
    )
    recommend.add_argument("--allow", nargs="+", metavar="ITEM_ID", help="the only items that may come")
    recommend.add_argument(
        "--include-held-out", action="store_true", help="with --user: append the held-out last item"
    )
    recommend.add_argument(
        "--allow-seen", action="store_true", help="let items of the history be recommended again"
    )
    recommend.add_argument("--json", action="store_true", help="print JSON instead of a table")
    recommend.add_argument(
        "--why",
        action="store_true",
        help="show the beam tree: which prefixes survived, and the titles below them",
    )
    recommend.add_argument(
        "--why-picture", metavar="FILE", help="draw it: .svg, or .html with the history and the list"
    )
    batch = commands.add_parser(
        "batch",
        help="recommend to any number of users, into parts on disk; accelerate launch -m genrec batch divides them",
    )
    batch.add_argument("run", help="folder of a finished run, or a Hub id")
    batch.add_argument(
        "--histories", metavar="FILE", help="Parquet with user_id and history (default: the run's own)"
    )
    batch.add_argument(
        "--out", required=True, metavar="FOLDER", help="new, empty, or begun with the same arguments"
    )
    batch.add_argument("-k", type=int, default=10, help="items wanted (default 10)")
    batch.add_argument("--beams", type=int, help="beam width (default: the larger of k and 20)")
    batch.add_argument(
        "--method", choices=("constrained", "grounded", "fused"), help="default: that of the run"
    )
    batch.add_argument("--exclude", nargs="+", default=[], metavar="ITEM_ID", help="items that must not come")
    batch.add_argument("--allow", nargs="+", metavar="ITEM_ID", help="the only items that may come")
    batch.add_argument(
        "--allow-seen", action="store_true", help="let items of the history be recommended again"
    )
    batch.add_argument(
        "--unknown", choices=("error", "skip", "title"), default="error", help="as genrec recommend"
    )
    _add_dtype(batch)
    batch.add_argument("--rows-per-part", type=int, default=10_000, help="rows of a file (default 10,000)")
    update = commands.add_parser(
        "update",
        help="take later interactions into a finished run: longer histories, new vectors of users; --train learns on",
    )
    update.add_argument("run", help="folder of a finished or updated run, with its log")
    update.add_argument("log", help="file of interactions, as the recipe's own")
    update.add_argument("overrides", nargs="*", metavar="key=value", help="changes to train.*, with --train")
    update.add_argument("--out", metavar="FOLDER", help="the new run (default RUN-update-N)")
    update.add_argument("--items", metavar="FILE", help="catalogue of new items")
    update.add_argument("--vectors", metavar="FILE", help="new vectors of users, where they come from a file")
    update.add_argument(
        "--unknown",
        choices=("error", "skip"),
        default="error",
        help="skip leaves out interactions with items that cannot be named, counted",
    )
    update.add_argument("--train", action="store_true", help="let the model learn on")
    update.add_argument(
        "--rehearsal", type=float, default=1.0, help="with --train: old rows for each new one (default 1)"
    )
    update.add_argument("--json", action="store_true", help="print the report as JSON")
    export = commands.add_parser(
        "export",
        help="write a run as a folder for another engine: merged weights, tokenizer, items by token ids",
    )
    export.add_argument("run", help="folder of a finished run, or a Hub id")
    export.add_argument("folder", help="new, empty, or an earlier export")
    export.add_argument(
        "--engine",
        default="transformers",
        metavar="NAME",
        help="transformers (default), vllm or sglang: what its README is about",
    )
    _add_dtype(export)
    _add_serving(commands.add_parser("serve", help="answer over HTTP: recommend, score, explain, items"))
    push = commands.add_parser(
        "push", help="upload a run (without user histories), an index or a prepared data set to the Hub"
    )
    push.add_argument("folder", help="of a finished run, an index or a prepared data set")
    push.add_argument("repo_id", help="org/name")
    push.add_argument("--public", action="store_true", help="make a new repository public")
    push.add_argument("--dry-run", action="store_true", help="only list what would go up, with sizes")
    push.add_argument(
        "--i-may-share-user-data",
        action="store_true",
        help="of a prepared data set, which is data of users: say that you may share them",
    )
    return parser


def _add_index_report(command: argparse.ArgumentParser) -> None:
    """Adds the options that let genrec index say what an index is like."""
    reporting = command.add_argument_group(
        "report", "what an index is like, of a recipe's, a saved one (its folder) or a published *.index.json"
    )
    reporting.add_argument(
        "--report",
        action="store_true",
        help="print a table per level (usage, entropy, perplexity, purity) and write index_report.html, a page with "
        "pictures, and index_report.json into the run directory; for a saved or published index beside it",
    )
    reporting.add_argument(
        "--items",
        metavar="FILE",
        help="with a saved or published index: its catalogue, for titles and the map",
    )
    reporting.add_argument("--out", metavar="FOLDER", help="where the page and the figures go instead")


def _add_preparing(command: argparse.ArgumentParser) -> None:
    """Adds the options that spare a recipe where data are only prepared."""
    preparing = command.add_argument_group("data", "short forms of the recipe's data.* keys")
    preparing.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="OURS=THEIRS",
        help="columns of the log, such as user_id=reviewerID item_id=asin timestamp=unixReviewTime",
    )
    preparing.add_argument(
        "--item-columns", nargs="+", default=[], metavar="OURS=THEIRS", help="columns of the catalogue"
    )
    preparing.add_argument("--items", metavar="FILE", help="catalogue beside a log")
    preparing.add_argument("--users", metavar="FILE", help="what is known of users, a row each")
    preparing.add_argument(
        "--time", choices=("auto", "s", "ms", "us", "iso", "number", "row"), help="what times are"
    )
    preparing.add_argument(
        "--on-bad-rows", choices=("error", "quarantine"), help="quarantine puts them aside, counted"
    )
    preparing.add_argument("--engine", choices=("duckdb", "spark"), help="what it runs on")
    preparing.add_argument(
        "--out", metavar="FOLDER", help="with a source: where it goes (default prepared/NAME)"
    )
    preparing.add_argument("--formats", action="store_true", help="list the raw formats that are recognised")


def _add_judging(command: argparse.ArgumentParser) -> None:
    """Adds the options that let genrec evaluate judge rankings not made by genrec."""
    judging = command.add_argument_group(
        "rankings from a file", "measured beside the recipe's baselines, or against a file of relevant items"
    )
    judging.add_argument(
        "--rankings", metavar="FILE", help=".parquet, .jsonl, .csv, .tsv, .json or a TREC run"
    )
    judging.add_argument("--name", help="what tables call them (default: the file's name)")
    judging.add_argument(
        "--relevant",
        metavar="FILE",
        help="relevant items of each user (same kinds, or TREC qrels), in place of a recipe",
    )
    judging.add_argument("--metrics", nargs="+", default=["HR", "NDCG"], help="with --relevant")
    judging.add_argument("--ks", nargs="+", type=int, default=[1, 5, 10], help="with --relevant")
    judging.add_argument(
        "--missing-users", choices=("error", "empty"), default="error", help="empty counts them as misses"
    )
    judging.add_argument(
        "--unknown-items", choices=("error", "miss"), default="error", help="miss keeps their places"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status: 0, or 1 with a message for an error genrec knows."""
    # peft and accelerate import both wherever they are installed, and each then misses a GPU or a package aloud.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator" not in record.getMessage())
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes positional arguments in one stretch only; changes to a recipe may stand after an option too.
    if rest and (not hasattr(options, "overrides") or any("=" not in r or r.startswith("-") for r in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    try:
        if options.command == "evaluate" and (options.rankings or options.relevant):
            _judge(options)
        elif options.command == "index" and (options.report or options.items or options.out):
            _report_index(options)
        elif options.command == "prepare":
            _prepare(options)
        elif options.command in _STAGES:
            _run(options.recipe, options.overrides, options.command)
        elif options.command == "compare":
            _compare(options)
        elif options.command == "check":
            from genrec.check import check

            check(options.recipe, options.overrides)
        elif options.command == "tasks":
            _tasks(options)
        elif options.command == "keys":
            _keys()
        elif options.command == "recommend":
            _recommend(options)
        elif options.command == "batch":
            _batch(options)
        elif options.command == "update":
            _update(options)
        elif options.command == "serve":
            _serve(options)
        elif options.command == "export":
            from genrec.serving import Recommender

            Recommender.from_pretrained(options.run).export(options.folder, options.engine, options.dtype)
        else:
            _push(options)
    except GenrecError as error:
        print(f"genrec: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("\ngenrec: stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def _run(source: str | None, overrides: Sequence[str], command: str) -> None:
    from genrec.core.errors import RecipeError
    from genrec.pipeline import pipeline_of
    from genrec.recipe import load_recipe

    if source is None:
        raise RecipeError(
            "Give a recipe, such as: genrec evaluate quickstart (or --rankings and --relevant)."
        )
    pipeline = pipeline_of(load_recipe(source, overrides))
    pipeline.run_until("evaluate" if command == "run" else command)
    if command in ("run", "evaluate"):
        pipeline.print_results()


def _batch(options: argparse.Namespace) -> None:
    from genrec.core.processes import is_main_process
    from genrec.serving import Recommender
    from genrec.serving.offline import recommend_to

    folder = recommend_to(
        options.out,
        Recommender.from_pretrained(options.run, options.dtype),
        options.histories,
        k=options.k,
        exclude_history=not options.allow_seen,
        exclude=options.exclude,
        allow=options.allow,
        beams=options.beams,
        method=options.method,
        unknown=options.unknown,
        rows_per_part=options.rows_per_part,
    )
    if is_main_process():
        print(f"Recommendations: {folder}")


def _push(options: argparse.Namespace) -> None:
    from pathlib import Path

    from genrec.core.errors import RunError
    from genrec.core.hub import check_repo_id, size_in_words

    check_repo_id(options.repo_id)
    folder, private = Path(options.folder), not options.public
    if (folder / "serving.json").is_file():
        from genrec.serving import Recommender

        files = Recommender.from_pretrained(folder).push_to_hub(options.repo_id, private, options.dry_run)
    elif (folder / "index.json").is_file():
        from genrec.indexing import ItemIndex

        files = ItemIndex.load(folder).push_to_hub(options.repo_id, private, options.dry_run)
    elif (folder / "interactions.parquet").exists():
        from genrec.data_prep import push_dataset

        files = push_dataset(
            folder,
            options.repo_id,
            may_share_user_data=options.i_may_share_user_data,
            private=private,
            dry_run=options.dry_run,
        )
    else:
        raise RunError(
            f"{folder} is neither a finished run (serving.json), nor an index (index.json), nor a prepared data set "
            "(interactions.parquet). Give the folder of one."
        )
    sizes = [size_in_words(size) for size in files.values()]
    width = max(map(len, sizes))
    print("\n".join(f"{size:>{width}}  {name}" for name, size in zip(files, sizes, strict=True)))
    print(f"{size_in_words(sum(files.values())):>{width}}  in {len(files)} files")


def _update(options: argparse.Namespace) -> None:
    import json

    from genrec.update import report_lines, update

    report = update(
        options.run,
        options.log,
        options.out,
        items=options.items,
        vectors=options.vectors,
        unknown=options.unknown,
        train=options.train,
        rehearsal=options.rehearsal,
        overrides=options.overrides,
    )
    print(json.dumps(report, indent=2) if options.json else "\n".join(report_lines(report)))


def _prepare(options: argparse.Namespace) -> None:
    import re
    from pathlib import Path

    from genrec.core.errors import MissingExtraError, RecipeError
    from genrec.data_prep import prepare
    from genrec.data_prep.page import report_table, save_page
    from genrec.data_prep.readers import format_table
    from genrec.recipe import load_recipe, parse_recipe, shipped_recipes

    if options.formats:
        print(format_table())
        return
    if options.recipe is None:
        raise RecipeError("Give a recipe or a source, such as: genrec prepare ratings.csv --time s")
    overrides = list(options.overrides)
    for key, pairs in (("columns", options.columns), ("item_columns", options.item_columns)):
        for pair in pairs:
            if "." in pair.partition("=")[0]:  # a key of the recipe that stands behind the option
                overrides.append(pair)
                continue
            if not re.fullmatch(r"\w+=.+", pair):
                raise RecipeError(f"--{key.replace('_', '-')} takes OURS=THEIRS, got {pair!r}.")
            overrides.append(f"data.{key}.{pair}")
    short = {name: getattr(options, name) for name in ("items", "users", "time", "on_bad_rows")}
    overrides += [
        f"data.{key}={value}" for key, value in (short | {"engine.name": options.engine}).items() if value
    ]
    path = Path(options.recipe)
    is_recipe = path.suffix in (".yaml", ".yml") or (path / "recipe.yaml").is_file()
    if is_recipe or options.recipe in shipped_recipes():
        if options.out:
            raise RecipeError("A recipe has its folder in run_dir: leave --out out.")
        from genrec.pipeline import DATA, pipeline_of

        pipeline = pipeline_of(load_recipe(options.recipe, overrides))
        folder = pipeline.run_until("prepare") / DATA
    else:
        recipe = parse_recipe({"data": {"source": options.recipe}}, overrides)
        name = re.sub(r"[^A-Za-z0-9]+", "-", path.name).strip("-") or "data"
        folder = Path(options.out or f"prepared/{name}")
        prepare(recipe.data, folder)
    from genrec.core.files import read_json
    from genrec.core.processes import is_main_process

    if is_main_process():
        report = read_json(folder / "report.json")
        print(report_table(report))
        try:
            print(f"Prepared: {folder}  (report: {save_page(folder, report)})")
        except MissingExtraError as error:  # data are prepared where only the base is installed
            print(f"Prepared: {folder}  (no page: {error})")


def _judge(options: argparse.Namespace) -> None:
    from pathlib import Path

    from genrec.core.errors import RecipeError

    if not options.rankings or (options.recipe is None) == (options.relevant is None):
        raise RecipeError("Give --rankings FILE, and either a recipe or --relevant FILE.")
    if options.relevant:
        from genrec.evaluation.offline import score_file, score_table

        scored = score_file(
            options.rankings, options.relevant, options.metrics, options.ks, options.missing_users
        )
        print(score_table(scored))
        return
    from genrec.pipeline import pipeline_of
    from genrec.recipe import load_recipe

    pipeline_of(load_recipe(options.recipe, options.overrides)).judge_file(
        options.rankings,
        options.name or Path(options.rankings).stem,
        options.missing_users,
        options.unknown_items,
    )


def _report_index(options: argparse.Namespace) -> None:
    from pathlib import Path

    from genrec.core.errors import RecipeError

    path = Path(options.recipe)
    if not options.report:
        raise RecipeError("--items and --out are for a report: add --report.")
    stored = path.is_file() and path.suffix == ".json"
    if not stored and not (path / "index.json").is_file():
        from genrec.pipeline import pipeline_of
        from genrec.recipe import load_recipe

        if options.items:
            raise RecipeError("A recipe has its catalogue in data.items: leave --items out.")
        pipeline_of(load_recipe(options.recipe, options.overrides)).report_index(options.out)
        return
    if (path.parent / "recipe.yaml").exists():
        raise RecipeError(
            f"{path} belongs to a run, which has its catalogue and histories too: genrec index --report {path.parent}"
        )
    if options.overrides:
        raise RecipeError(f"A stored index has no keys to change, got {' '.join(options.overrides)}.")
    from genrec.data_prep import ItemCatalog
    from genrec.indexing import ItemIndex
    from genrec.indexing.page import save_report
    from genrec.indexing.report import index_report, report_table

    index = ItemIndex.read(path) if stored else ItemIndex.load(path)
    items = ItemCatalog.read(options.items) if options.items else None
    name = path.resolve().name.removesuffix(".json")
    report = index_report(index, items, name=name)
    page = save_report(options.out or path.resolve().parent, report, f"{name}_report")
    print(report_table(report))
    print(f"Report: {page}")


def _compare(options: argparse.Namespace) -> None:
    from pathlib import Path

    from genrec.core.errors import RecipeError
    from genrec.evaluation.click import compare_click_runs, predicts_clicks
    from genrec.evaluation.offline import compare_runs, comparison_text
    from genrec.evaluation.page import write_comparison

    if any(map(predicts_clicks, options.runs)):
        if options.html or options.metrics:
            raise RecipeError(
                "Runs that predict clicks are compared as text, in all metrics: leave --html and --metrics out."
            )
        print(compare_click_runs(options.runs))
        return
    comparison = compare_runs(options.runs, options.metrics)
    print(comparison_text(comparison))
    if options.html:
        write_comparison(Path(options.html), comparison)
        print(f"Page: {options.html}")


def _tasks(options: argparse.Namespace) -> None:
    from genrec.check import preview_family, show_families, show_family
    from genrec.core.errors import RecipeError

    if options.recipe and not options.name:
        raise RecipeError("Name the family to preview, such as: genrec tasks next_item --recipe quickstart.")
    if options.samples < 1:
        raise RecipeError(f"--samples must be 1 or more, got {options.samples}.")
    if options.overrides and not options.recipe:
        raise RecipeError(f"Changes such as {options.overrides[0]} are to a recipe: add --recipe.")
    if options.recipe:
        every = options.templates == "all"
        preview_family(options.name, options.recipe, options.overrides, options.samples, options.files, every)
    elif options.name:
        show_family(options.name, options.files)
    else:
        show_families(options.files)


def _keys() -> None:
    from genrec.recipe import recipe_keys

    for key, default, description in recipe_keys():
        print(f"{key} = {default}\n    {description}")


def _add_dtype(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="type of the weights (default: that of the backbone in training)",
    )


def _add_serving(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", help="folder of a finished run, or a Hub id")
    command.add_argument(
        "--host", default="127.0.0.1", help="address (default 127.0.0.1: this machine alone)"
    )
    command.add_argument("--port", type=int, default=8000, help="default 8000; 0 is any free one")
    command.add_argument(
        "--token-env", metavar="NAME", help="environment variable with the bearer token that is asked for"
    )
    command.add_argument(
        "--models-root",
        metavar="FOLDER",
        help="where runs lie that POST /models may switch to (default: none)",
    )
    command.add_argument(
        "--compare", metavar="RUN", help="a second run, served below /compare and shown beside on the page"
    )
    _add_dtype(command)
    command.add_argument("--max-batch", type=int, default=16, help="requests answered together (default 16)")
    command.add_argument(
        "--max-wait-ms",
        type=float,
        default=5.0,
        help="the first of them waits so long for others (default 5)",
    )
    command.add_argument(
        "--max-queue", type=int, default=256, help="requests that may wait; more get 503 (default 256)"
    )
    command.add_argument("--timeout-s", type=float, default=30.0, help="of a request (default 30)")
    command.add_argument("--max-body-bytes", type=int, default=1_000_000, help="default 1000000")
    command.add_argument(
        "--rate-limit", type=float, metavar="N", help="requests a second of one address (default: no limit)"
    )


def _serve(options: argparse.Namespace) -> None:
    from pathlib import Path

    from genrec.core.errors import require

    for package in ("fastapi", "uvicorn", "prometheus_client"):
        require(package, "serve")
    from genrec.serving.server import ServerSettings, read_token, serve

    token = read_token(options.token_env, "--token-env")
    given = {key: value for key, value in vars(options).items() if key not in ("command", "run", "token_env")}
    root = Path(given.pop("models_root")) if options.models_root else given.pop("models_root")
    compare = given.pop("compare")
    serve(options.run, ServerSettings(**given, token=token, models_root=root), compare)


def _recommend(options: argparse.Namespace) -> None:
    import dataclasses
    import json

    from genrec.decoding.explain import probability, tree_text
    from genrec.serving import Recommender

    history = options.history
    if history is None and options.user is None:
        raise DataError("Say for whom: give --user or --history.")
    recommender = Recommender.from_pretrained(options.run)
    if history is None:
        history = recommender.history(options.user, options.include_held_out)
    method = options.method or recommender.method
    (history,) = recommender.resolve([history], options.unknown, titles=method != "constrained")
    asked = {
        "k": options.k,
        "exclude_history": not options.allow_seen,
        "exclude": options.exclude,
        "allow": options.allow,
        "beams": options.beams,
    }
    why = None
    if options.why or options.why_picture:
        if options.exact or method != "constrained":
            raise DataError(
                "--why and --why-picture show what beam search kept: leave out --exact, and take --method constrained."
            )
        why = recommender.explain(history, user_id=options.user, **asked)
        found = why.recommendations
    else:
        (found,) = recommender.recommend(
            [history], user_ids=[options.user], **asked, method=method, exact=options.exact
        )
    if why is not None and options.why_picture:
        why.write_picture(options.why_picture)
    if options.json:
        whole = dataclasses.asdict(why) if why is not None and options.why else None
        value = whole or [dataclasses.asdict(item) for item in found]
        print(json.dumps(value, ensure_ascii=False, indent=2))
        return
    print(f"History of {len(history)} items{', the last five' if len(history) > 5 else ''}:")
    for item in history[-5:]:
        print(f"    {recommender.items.title(item)}  [{item}]")
    print("Recommended:")
    for place, given in enumerate(found, start=1):
        code = "".join(given.code)
        score = f"p {probability(given.score)}" if method == "constrained" else f"score {given.score:.4f}"
        print(f"{place:>3}. {given.title}  [{given.item_id}]  {score}  {code}")
    if len(found) < options.k:
        print(f"Only {len(found)} of the {options.k} items asked for: no other item is allowed.")
    if why is not None and options.why:
        print(tree_text(why.tree))
    if options.why_picture:
        print(f"Picture: {options.why_picture}")


if __name__ == "__main__":
    sys.exit(main())
