import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.model
def test_the_python_of_the_readme_runs(tiny_backbone, log, items, tmp_path, capsys):
    """As it stands, but for the names of data and model, so that it takes seconds."""
    (tmp_path / "data").mkdir()
    log.write(tmp_path / "data" / "interactions.parquet")
    items.write(tmp_path / "data" / "items.parquet")
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    for name, other in {
        '"movielens-100k"': repr(str(tmp_path / "data")),
        '"smollm2-135m-instruct"': repr(tiny_backbone),
        '"runs/mine"': repr(str(tmp_path / "run")),
        "layers=4": "layers=2",
        '["50", "181"]': '["i3", "i20"]',
    }.items():
        assert name in code
        code = code.replace(name, other)
    exec(code, {})
    assert capsys.readouterr().out.count("item_id=") == 5


def test_every_command_of_the_readme_is_one():
    """Each genrec command named in the README exists."""
    from genrec.cli import main

    for command in sorted(
        set(re.findall(r"^ +genrec (\w+)", README.read_text(encoding="utf-8"), re.MULTILINE))
    ):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0, command
