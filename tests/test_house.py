"""The house stands: imports go one way, what is light stays light, public things are described."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import genrec

ROOT = Path(__file__).parents[1]
LAYERS = ("core", "data_prep", "indexing", "tasks", "models", "training", "decoding", "evaluation", "serving")
ABOVE = (
    "recipe",
    "runs",
    "pipeline",
    "click_pipeline",
    "update",
    "check",
    "cli",
    "__main__",
    "__init__",
    "_version",
)
HOMES = {"data_prep": ROOT / "data_prep", "indexing": ROOT / "indexing"}


def imported_layers(path: Path) -> set[str]:
    found = set()
    tree = ast.parse(path.read_text())
    hints = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in hints:
            continue
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "genrec" and len(parts) > 1:
                found.add(parts[1])
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_what_is_to_its_left(layer):
    home = HOMES.get(layer, ROOT / "genrec" / layer)
    allowed = set(LAYERS[: LAYERS.index(layer) + 1]) | {"_version"}
    for path in home.rglob("*.py"):
        assert imported_layers(path) <= allowed, path


def test_nothing_stands_outside_the_layers():
    modules = {p.stem for p in (ROOT / "genrec").glob("*.py")}
    assert modules == set(ABOVE)
    folders = {p.name for p in (ROOT / "genrec").iterdir() if p.is_dir()} - {"__pycache__"}
    assert folders == set(LAYERS) - set(HOMES)


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_genrec_or_asking_for_help_needs_no_heavy_library():
    heavy = "torch transformers peft datasets sklearn scipy pyarrow numpy pydantic matplotlib"
    code = f"import sys; {{}}; print([m for m in '{heavy}'.split() if m in sys.modules])"
    assert run(code.format("import genrec")) == "[]\n"
    assert run(code.format("import genrec.cli; genrec.cli.build_parser()")) == "[]\n"


def test_preparation_and_indexing_need_no_torch():
    code = "import sys, genrec; genrec.build_index, genrec.leave_one_out; print('torch' in sys.modules)"
    assert run(code) == "False\n"


def test_a_missing_extra_is_named():
    code = (
        "import sys; sys.modules['datasets'] = None\n"
        "import genrec\n"
        "from genrec.core.errors import MissingExtraError\n"
        "try: genrec.build_dataset(None, None, None)\n"
        "except MissingExtraError as error: print(error)"
    )
    assert "pip install 'genrec[train]'" in run(code)


def test_every_public_name_is_there_and_described():
    for name in genrec.__all__:
        value = getattr(genrec, name)
        assert name == "__version__" or inspect.getdoc(value), name
    with pytest.raises(AttributeError):
        genrec.no_such_name  # noqa: B018


def test_every_module_opens_with_what_it_is():
    for module in pkgutil.walk_packages(genrec.__path__, "genrec."):
        if module.name != "genrec.__main__":
            assert importlib.import_module(module.name).__doc__, module.name
