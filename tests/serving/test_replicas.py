"""Two replicas by Ray Serve give what one process gives, and are changed together or not at all."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml
from trained import briefly_tuned

from genrec.core.errors import DataError, RunError
from genrec.serving import Recommender
from genrec.serving.replicas import build

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.model
TOKEN = {"Authorization": "Bearer sesame"}


@pytest.fixture(scope="module")
def run(tiny_backbone, log, items, tmp_path_factory):
    return briefly_tuned(tiny_backbone, log, items, tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture
def address(run, tmp_path):
    """Where two replicas of the run answer: those of the shipped recipe, with half a core and a token."""
    config = yaml.safe_load((ROOT / "recipes" / "ray" / "replicas.yaml").read_text())
    with socket.create_server(("127.0.0.1", 0)) as free:
        config["http_options"]["port"] = port = free.getsockname()[1]
    (application,) = config["applications"]
    application["args"] = {"run": str(run), "token_env": "GENREC_TEST_TOKEN", "max_wait_ms": 20.0}
    application["deployments"][0]["ray_actor_options"]["num_cpus"] = 0.5
    file = tmp_path / "replicas.yaml"
    file.write_text(yaml.safe_dump(config))
    # Ray's sockets have names of at most 107 bytes.
    scratch = tempfile.mkdtemp(prefix="ray")
    said = {"GENREC_TEST_TOKEN": "sesame", "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": scratch}
    command = [Path(sys.executable).with_name("serve"), "run", file]
    with (tmp_path / "said").open("wb") as out:
        process = subprocess.Popen(command, env=os.environ | said, stdout=out, stderr=subprocess.STDOUT)
        try:
            until = time.monotonic() + 300
            while not ready(f"http://127.0.0.1:{port}"):
                assert process.poll() is None, (tmp_path / "said").read_text()[-3000:]
                assert time.monotonic() < until, (tmp_path / "said").read_text()[-3000:]
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)
            shutil.rmtree(scratch, ignore_errors=True)


def ready(address):
    try:
        return httpx.get(f"{address}/ready", headers=TOKEN).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.ray
def test_two_replicas_answer_as_one_process_and_refuse_what_one_alone_would_know(run, address):
    offline, histories = Recommender.from_pretrained(run), [["i1"], ["i4", "i2"], [], ["i12"] * 3]

    with httpx.Client(base_url=address, headers=TOKEN, timeout=60) as client, ThreadPoolExecutor(16) as many:

        def check():
            bodies = [{"history": histories[n % 4], "k": 5 + n % 3} for n in range(64)]
            answers = list(many.map(lambda body: client.post("/recommend", json=body), bodies))
            for body, answer in zip(bodies, answers, strict=True):
                (wanted,) = offline.recommend([body["history"]], k=body["k"])
                found = answer.raise_for_status().json()["items"]
                assert [item["item_id"] for item in found] == [item.item_id for item in wanted]
                scores = [item["score"] for item in found]
                assert scores == pytest.approx([item.score for item in wanted], abs=1e-4)

        states = []  # the second replica may come later than the first
        until = time.monotonic() + 120
        while len({state["replica"] for state in states}) < 2:
            assert time.monotonic() < until, states
            states += list(many.map(lambda _: client.get("/ready").json(), range(32)))
        assert {state["run"] for state in states} == {"one"}
        check()

        new = {"items": [{"item_id": "n1", "title": "red lamp"}]}
        for refused in (
            client.put("/items", json=new),
            client.delete("/items/i5"),
            client.post("/models", json={"run": "two"}),
        ):
            assert refused.status_code == 409
            assert "one of several replicas" in refused.json()["error"]["message"]
        assert "Ray exports" in client.get("/metrics").json()["error"]["message"]
        assert client.get("/").text.startswith("<!doctype html>")
        assert client.get("/items", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_what_replicas_do_not_take_is_said(run, monkeypatch):
    monkeypatch.delenv("GENREC_TEST_TOKEN", raising=False)
    for args, error, said in (
        ({}, DataError, "serves one run"),
        ({"run": str(run), "port": 1}, DataError, "port is not among them"),
        ({"run": str(run), "max_batch": 0}, DataError, "max_batch must be above 0"),
        ({"run": str(run), "token_env": "GENREC_TEST_TOKEN"}, RunError, "no such variable"),
    ):
        with pytest.raises(error, match=said):
            build(args)
