"""The command line: ``genrec COMMAND``. Modules are imported by the command that needs them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from genrec._version import __version__
from genrec.core.errors import GenrecError

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
        command.add_argument("recipe", help="recipe file, shipped name, or run folder")
        command.add_argument(
            "overrides",
            nargs="*",
            metavar="key=value",
            help="changes to the recipe, such as train.epochs=2 (genrec keys lists all)",
        )
    check = commands.add_parser(
        "check", help="print the resolved recipe and three rendered rows with their label masks"
    )
    check.add_argument("recipe", help="recipe file, shipped name, or run folder")
    check.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe")
    commands.add_parser("keys", help="list every key of a recipe with its default and meaning")
    recommend = commands.add_parser("recommend", help="recommend items to a user or after a history")
    recommend.add_argument("run", help="folder of a finished run, or a Hub id")
    who = recommend.add_mutually_exclusive_group(required=True)
    who.add_argument("--user", help="a user of the run, with the history that evaluation gave them")
    who.add_argument("--history", nargs="+", metavar="ITEM_ID", help="item ids, oldest first")
    recommend.add_argument("-k", type=int, default=10, help="items wanted (default 10)")
    recommend.add_argument("--beams", type=int, help="beam width (default: the larger of k and 20)")
    recommend.add_argument(
        "--include-held-out", action="store_true", help="with --user: append the held-out last item"
    )
    recommend.add_argument(
        "--allow-seen", action="store_true", help="let items of the history be recommended again"
    )
    recommend.add_argument("--json", action="store_true", help="print JSON instead of a table")
    push = commands.add_parser("push", help="upload a run to the Hub, without user histories")
    push.add_argument("run", help="folder of a finished run")
    push.add_argument("repo_id", help="org/name")
    push.add_argument("--public", action="store_true", help="make a new repository public")
    push.add_argument("--dry-run", action="store_true", help="only list what would go up")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status: 0, or 1 with a message for an error genrec knows."""
    options = build_parser().parse_args(arguments)
    try:
        if options.command in _STAGES:
            _run(options.recipe, options.overrides, options.command)
        elif options.command == "check":
            from genrec.check import check

            check(options.recipe, options.overrides)
        elif options.command == "keys":
            _keys()
        elif options.command == "recommend":
            _recommend(options)
        else:
            from genrec.serving import Recommender

            recommender = Recommender.from_pretrained(options.run)
            names = recommender.push_to_hub(options.repo_id, not options.public, options.dry_run)
            print("\n".join(names))
    except GenrecError as error:
        print(f"genrec: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("\ngenrec: stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def _run(source: str, overrides: Sequence[str], command: str) -> None:
    from genrec.pipeline import Pipeline
    from genrec.recipe import load_recipe

    pipeline = Pipeline(load_recipe(source, overrides))
    pipeline.run_until("evaluate" if command == "run" else command)
    if command in ("run", "evaluate"):
        pipeline.print_results()


def _keys() -> None:
    from genrec.recipe import recipe_keys

    for key, default, description in recipe_keys():
        print(f"{key} = {default}\n    {description}")


def _recommend(options: argparse.Namespace) -> None:
    import dataclasses
    import json
    import math

    from genrec.serving import Recommender

    recommender = Recommender.from_pretrained(options.run)
    history = options.history or recommender.history(options.user, options.include_held_out)
    (found,) = recommender.recommend(
        [history], k=options.k, exclude_history=not options.allow_seen, beams=options.beams
    )
    if options.json:
        print(json.dumps([dataclasses.asdict(item) for item in found], ensure_ascii=False, indent=2))
        return
    print(f"History of {len(history)} items, the last five:")
    for item in history[-5:]:
        print(f"    {recommender.items.title(item)}  [{item}]")
    print("Recommended:")
    for place, item in enumerate(found, start=1):
        probability = math.exp(item.score)
        print(f"{place:>3}. {item.title}  [{item.item_id}]  p {probability:.4f}  {''.join(item.code)}")
    if len(found) < options.k:
        print(f"Only {len(found)} of the {options.k} items asked for: no other item is allowed.")


if __name__ == "__main__":
    sys.exit(main())
