"""The tutorial runs as it stands: its Python, its commands, and its server."""

import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from genrec.cli import main

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.md"
BLOCKS = re.findall(
    r"^```(python|sh)\n(.*?)^```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
)

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """The folder in which everything before the server was done, and the Python that comes after training."""
    folder = tmp_path_factory.mktemp("shop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        names = {}
        for language, block in BLOCKS:
            if language == "python":
                exec(block, names)
            elif "genrec serve" not in block:
                for command in block.replace("\\\n", " ").splitlines():
                    program, *arguments = shlex.split(command)
                    assert program == "genrec"
                    assert main(arguments) == 0, command
    return folder


def test_everything_up_to_the_server_runs(shop):
    assert (shop / "prepared" / "log-csv" / "report.html").is_file()
    assert (shop / "runs" / "shop" / "report.html").is_file()


def test_the_server_answers(shop):
    pytest.importorskip("genrec.serving.server")
    (block,) = [block for language, block in BLOCKS if language == "sh" and "genrec serve" in block]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    assert block.count("8000") == 3
    script = block.replace("8000", port).replace("genrec", f"{shlex.quote(sys.executable)} -m genrec")
    done = subprocess.run(["bash", "-e", "-c", script], cwd=shop, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"item_id"') == 3, done.stdout
