"""The server, asked as its clients do: every answer beside the offline one."""

import asyncio
import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance
from starlette.testclient import TestClient
from trained import briefly_tuned

from genrec.core.errors import DataError
from genrec.data_prep import ItemCatalog
from genrec.serving import Recommender
from genrec.serving.server import ServerSettings, create_app

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def root(tiny_backbone, log, items, tmp_path_factory):
    """A folder with two runs of different start, whose items are named by their texts."""
    root = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("one", "two")):
        briefly_tuned(tiny_backbone, log, items, root / name, seed)
    return root


@pytest.fixture(scope="module")
def one(root):
    return Recommender.from_pretrained(root / "one")


@pytest.fixture(scope="module")
def two(root):
    return Recommender.from_pretrained(root / "two")


@pytest.fixture
def client(root, one):
    with TestClient(create_app(one, ServerSettings(models_root=root))) as client:
        yield client


def expected(recommender, path, body):
    """The offline answer to a request."""
    options = {k: v for k, v in body.items() if k not in ("history", "items")}
    if path == "/score":
        return {"scores": recommender.score(list(body["history"]), body["items"], **options)}
    if path == "/explain":
        return {"items": recommender.explain(body["history"], **options).recommendations}
    return {"items": recommender.recommend([body["history"]], **options)[0]}


def is_answer(found, wanted):
    """Whether an answer is the offline one, up to the rounding of batches."""
    if "scores" in wanted:
        return found["scores"] == [
            None if value == float("-inf") else pytest.approx(value, abs=1e-4) for value in wanted["scores"]
        ]
    return [item["item_id"] for item in found["items"]] == [item.item_id for item in wanted["items"]] and [
        item["score"] for item in found["items"]
    ] == pytest.approx([item.score for item in wanted["items"]], abs=1e-4)


def mixed(ids, number, seed=0):
    """Requests of all kinds, the same for the same seed."""
    rng = random.Random(seed)
    for _ in range(number):
        body = {"history": rng.sample(ids, rng.randint(0, 6))}
        if rng.random() < 0.3:
            body["exclude"] = rng.sample(ids, 3)
        if rng.random() < 0.3:
            body["allow"] = rng.sample(ids, 8)
        path = rng.choices(["/recommend", "/score", "/explain"], [6, 3, 1])[0]
        if path == "/score":
            body["items"] = rng.sample(ids, 5)
        else:
            body["k"] = rng.choice([3, 10])
        yield path, body


def test_answers_are_the_offline_ones(client, one):
    for path, body in mixed(one.items.item_ids, 25):
        answer = client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        assert is_answer(answer.json(), expected(one, path, body)), (path, body)
    body = {"history": ["i1", "gone"], "unknown": "skip", "k": 3}
    answer = client.post("/recommend", json=body).json()
    assert answer["left_out"] == ["gone"]
    assert is_answer(answer, expected(one, "/recommend", body))
    theirs = {"history": one.history("u3"), "user_id": "u3", "k": 4}
    by_user = client.post("/recommend", json={"user_id": "u3", "k": 4}).json()
    assert client.post("/recommend", json=theirs).json() == by_user
    assert is_answer(by_user, {"items": one.recommend(user_ids=["u3"], k=4)[0]})
    tree = client.post("/explain", json={"history": ["i1"]}).json()["tree"]
    assert tree["levels"][0]["kept"] >= len(tree["branches"]) > 0


def test_two_hundred_at_once_get_the_offline_answers(root, one):
    requests = list(mixed(one.items.item_ids, 200, seed=1))
    wanted = [expected(one, path, body) for path, body in requests]
    app = create_app(one, ServerSettings(max_batch=32))

    async def ask():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here", timeout=60) as client:
            return await asyncio.gather(*(client.post(path, json=body) for path, body in requests))

    for answer, each, request in zip(asyncio.run(ask()), wanted, requests, strict=True):
        assert answer.status_code == 200, answer.text
        assert is_answer(answer.json(), each), request
    sizes = app.state.service.registry.get_sample_value("genrec_batch_size_count")
    assert sizes < 100  # of 200 requests: they were answered together


WRONG = {
    "unknown item": ("/recommend", {"history": ["i99"]}, 422, "unknown_item", "Did you mean 'i9'"),
    "unknown allowed": ("/recommend", {"history": [], "allow": ["x"]}, 422, "unknown_item", "'x'"),
    "unknown scored": ("/score", {"history": [], "items": ["x"]}, 422, "unknown_item", "'x'"),
    "unknown user": ("/recommend", {"user_id": "nobody"}, 404, "unknown_user", "Give a history"),
    "neither": ("/recommend", {}, 422, "invalid_request", "give history or user_id"),
    "k": ("/recommend", {"history": [], "k": 0}, 422, "invalid_request", "body.k"),
    "key": ("/recommend", {"history": [], "kk": 1}, 422, "invalid_request", "body.kk"),
    "number": ("/recommend", {"history": [7]}, 422, "invalid_request", "body.history.0"),
    "no titles": ("/recommend", {"history": [], "method": "grounded"}, 422, "not_possible", "writes titles"),
    "fused": ("/score", {"history": [], "items": ["i1"], "method": "fused"}, 422, "invalid_request", "two lists"),
    "no beams": ("/explain", {"history": [], "method": "fused"}, 422, "invalid_request", "constrained"),
    "no path": ("/nowhere", {}, 404, "not_found", "Not Found"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests_get_an_error_of_one_form(client, case):
    path, body, status, code, said = WRONG[case]
    answer = client.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert said in answer.json()["error"]["message"]


def test_what_is_no_json_is_refused(client):
    for body in (
        b"{",
        b'{"history": ["\\ud800"]}',
        b"[" * 100_000,
        b'{"history": [], "k": 1' + b"0" * 5000 + b"}",
    ):
        answer = client.post("/recommend", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422), answer.text
        assert answer.json()["error"]["message"]
    assert client.get("/recommend").status_code == 405
    assert client.get("/recommend").json()["error"]["code"] == "method_not_allowed"


def test_items_are_searched_and_paged(client, one):
    first = client.get("/items", params={"page_size": 10}).json()
    assert (first["total"], len(first["items"]), first["page"]) == (24, 10, 1)
    assert first["items"][0]["code"] == list(one.index.code(one.items.item_ids[0]))
    pages = [
        client.get("/items", params={"page": page, "page_size": 10}).json()["items"] for page in (1, 2, 3, 4)
    ]
    assert [item["item_id"] for page in pages for item in page] == one.items.item_ids
    title = one.items.title("i7")
    found = client.get("/items", params={"query": title.upper()}).json()
    assert "i7" in {item["item_id"] for item in found["items"]}
    assert client.get("/items", params={"query": "no such title"}).json()["total"] == 0


def test_health_metrics_and_the_page_of_the_api(client):
    client.post("/recommend", json={"history": []})
    client.post("/recommend", json={"history": ["i99"]})
    client.get("/some/path/that/is/none")
    assert client.get("/health").json() == {"status": "alive"}
    assert client.get("/ready").json()["num_items"] == 24
    text = client.get("/metrics").text
    for line in (
        'genrec_requests_total{path="recommend",status="200"} 1.0',
        'genrec_requests_total{path="recommend",status="422"} 1.0',
        'genrec_requests_total{path="other",status="404"} 1.0',
        "genrec_batch_size_count 2.0",
        "genrec_items 24.0",
        "genrec_waiting 0.0",
    ):
        assert line in text
    assert "/recommend" in client.get("/openapi.json").json()["paths"]
    assert client.get("/docs").status_code == 200


def test_a_token_is_asked_for_and_health_is_open(one):
    with TestClient(create_app(one, ServerSettings(token="sesame"))) as client:
        docs = client.get("/docs").text
        files = re.findall(r'(?:src|href)="([^"]*)"', docs)
        assert len(files) == 3
        assert all(file.startswith("/") and client.get(file).status_code == 200 for file in files)
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic sesame"}):
            answer = client.post("/recommend", json={"history": []}, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorised")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/metrics").status_code == 401
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
        found = client.post("/recommend", json={"history": []}, headers={"Authorization": "bearer sesame"})
        assert found.status_code == 200


def test_too_many_and_too_large_requests_are_refused(one):
    with TestClient(create_app(one, ServerSettings(rate_limit=1.0, max_body_bytes=200))) as client:
        codes = [client.post("/recommend", json={"history": []}) for _ in range(5)]
        assert [answer.status_code for answer in codes[:2]] == [200, 200]
        assert codes[-1].status_code == 429
        assert int(codes[-1].headers["retry-after"]) >= 1
    with TestClient(create_app(one, ServerSettings(max_body_bytes=200))) as client:
        body = {"history": ["i1"] * 100}
        assert client.post("/recommend", json=body).status_code == 413

        def parts():  # without a length said before
            yield from [b"x" * 50] * 10

        assert client.post("/recommend", content=parts()).status_code == 413


def test_a_full_queue_refuses_and_late_answers_are_given_up(one, monkeypatch):
    held = threading.Event()
    whole = Recommender.recommend_each

    def slow(self, asked):
        held.wait(20)
        return whole(self, asked)

    monkeypatch.setattr(Recommender, "recommend_each", slow)
    app = create_app(one, ServerSettings(max_queue=3, max_batch=1, timeout_s=0.5))

    async def ask():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here", timeout=60) as client:
            body = {"history": [], "k": 1}
            found = await asyncio.gather(*(client.post("/recommend", json=body) for _ in range(12)))
            held.set()
            while len(app.state.service.batcher):
                await asyncio.sleep(0.01)
            return found, await client.post("/recommend", json=body)

    found, after = asyncio.run(ask())
    by_status = {answer.status_code: answer for answer in found}
    assert set(by_status) == {503, 504}
    assert all(int(by_status[status].headers["retry-after"]) >= 1 for status in (503, 504))
    assert by_status[503].json()["error"]["code"] == "overloaded"
    assert after.status_code == 200
    app.state.service.batcher.close()


def test_the_catalogue_changes_without_a_restart(client, one):
    new = [
        {"item_id": "n1", "title": "red lamp"},
        {"item_id": "a/b c", "title": "quiet Zeppelin", "brand": "x"},
    ]
    answer = client.put("/items", json={"items": new})
    assert answer.status_code == 200, answer.text
    assert answer.json()["num_items"] == 26
    longer = one.extend(ItemCatalog.from_titles({"n1": "red lamp", "a/b c": "quiet Zeppelin"}))
    body = {"history": ["n1"], "k": 26}
    assert is_answer(client.post("/recommend", json=body).json(), expected(longer, "/recommend", body))
    assert client.get("/items", params={"query": "zeppelin"}).json()["items"][0]["item_id"] == "a/b c"
    bare = {"item_id": "n8", "title": "small lamp", "categories": []}  # found by the long fuzzing
    assert client.put("/items", json={"items": [bare]}).status_code == 200
    assert client.delete("/items/n8").status_code == 200
    again = client.put("/items", json={"items": new[:1]})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "not_possible")
    twice = client.put("/items", json={"items": [{"item_id": "n9", "title": "x"}] * 2})
    assert twice.status_code == 422
    assert client.delete("/items/a%2Fb%20c").status_code == 200
    assert client.delete("/items/n1").json()["num_items"] == 24
    assert client.delete("/items/n1").status_code == 404
    assert client.post("/recommend", json={"history": ["n1"]}).status_code == 422
    body = {"history": ["i1"], "k": 24}
    assert is_answer(client.post("/recommend", json=body).json(), expected(one, "/recommend", body))


def test_another_run_takes_over_and_a_broken_one_does_not(client, root, two, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    link = root / "link"
    if not link.is_symlink():
        link.symlink_to(outside)
    for name in ("../outside", "/etc", "one/../../x", "", "a\0b", ".", "..", "./..", "link", "x" * 256):
        answer = client.post("/models", json={"run": name})
        assert answer.status_code == 422, (name, answer.text)
    assert client.post("/models", json={"run": "three"}).status_code == 404
    broken = root / "broken"
    if not broken.exists():
        shutil.copytree(root / "two", broken)
        weights = broken / "model" / "identifier_rows.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    answer = client.post("/models", json={"run": "broken"})
    assert answer.status_code == 422
    assert "not what sha256.json says" in answer.json()["error"]["message"]
    assert client.get("/ready").json()["run"] == "one"
    answer = client.post("/models", json={"run": "two"})
    assert (answer.status_code, answer.json()["run"]) == (200, "two")
    body = {"history": ["i1"]}
    assert is_answer(client.post("/recommend", json=body).json(), expected(two, "/recommend", body))


def test_without_a_models_root_no_other_run_is_served(one):
    with TestClient(create_app(one)) as client:
        assert client.post("/models", json={"run": "two"}).status_code == 403


def test_a_run_that_is_switched_to_has_the_servers_type_of_weights(root, one):
    settings = ServerSettings(models_root=root, dtype="bfloat16")
    body = {"history": ["i1", "i4"], "k": 20, "beams": 24}
    with TestClient(create_app(one, settings)) as client:
        client.post("/models", json={"run": "one"}).raise_for_status()
        found = client.post("/recommend", json=body).json()
    rounded = Recommender.from_pretrained(root / "one", "bfloat16")
    assert is_answer(found, expected(rounded, "/recommend", body))
    assert not is_answer(found, expected(one, "/recommend", body))


def test_changes_under_load_lose_nothing(root, one, two):
    """Every request is answered by one of the states that were served, and none fails."""
    ids = [item for item in one.items.item_ids if item != "i5"]
    requests = list(mixed(ids, 20, seed=2))
    longer = one.extend(ItemCatalog.from_titles({"n1": "red lamp"}))
    states = [one, longer, longer.remove(["i5"]), two]
    wanted = [[expected(state, path, body) for state in states] for path, body in requests]
    app = create_app(one, ServerSettings(models_root=root))
    over = False

    async def ask():
        nonlocal over
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here", timeout=60) as client:

            async def user(number):
                seen = []
                while not over:
                    at = (number + len(seen)) % len(requests)
                    path, body = requests[at]
                    seen.append((at, await client.post(path, json=body)))
                return seen

            users = [asyncio.create_task(user(number)) for number in range(8)]
            await asyncio.sleep(0.2)
            new = {"items": [{"item_id": "n1", "title": "red lamp"}]}
            changes = [await client.put("/items", json=new), await client.delete("/items/i5")]
            changes.append(await client.post("/models", json={"run": "two"}))
            await asyncio.sleep(0.2)
            over = True
            return changes, [each for found in await asyncio.gather(*users) for each in found]

    changes, found = asyncio.run(ask())
    assert [answer.status_code for answer in changes] == [200] * 3
    assert len(found) > 20
    met = set()
    for at, answer in found:
        assert answer.status_code == 200, answer.text
        fits = [number for number, each in enumerate(wanted[at]) if is_answer(answer.json(), each)]
        assert fits, requests[at]
        met.update(fits)
    assert {0, 3} <= met
    app.state.service.batcher.close()


def test_settings_that_cannot_be_are_refused(tmp_path):
    for wrong, said in (
        ({"max_batch": 0}, "max_batch must be above 0"),
        ({"max_wait_ms": -1.0}, "0 or more"),
        ({"token": " "}, "token is empty"),
        ({"port": 70_000}, "between 0 and 65535"),
        ({"models_root": tmp_path / "none"}, "folder that runs lie in"),
    ):
        with pytest.raises(DataError, match=said):
            ServerSettings(**wrong)


@pytest.fixture
def process(root):
    """A server of its own process, and its address."""
    command = [
        sys.executable,
        "-m",
        "genrec",
        "serve",
        str(root / "one"),
        "--port",
        "0",
        "--max-wait-ms",
        "1500",
    ]
    env = os.environ | {"GENREC_TOKEN": "sesame", "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        [*command, "--token-env", "GENREC_TOKEN", "--max-batch", "64"],
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    address = None
    for line in started.stderr:
        if "serving at" in line:
            address = line.split()[2].rstrip(",")
            break
    assert address, "the server did not start"
    yield started, address
    started.kill()


def test_sigterm_answers_what_was_taken_and_refuses_the_rest(process, one):
    started, address = process
    requests = list(mixed(one.items.item_ids, 40, seed=3))
    headers = {"Authorization": "Bearer sesame"}

    async def ask():
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=address, headers=headers, timeout=60, limits=limits) as client:
            # The first batch is gathered for 1.5 s, in which the signal comes.
            running = [asyncio.create_task(client.post(path, json=body)) for path, body in requests]
            while True:
                text = (await client.get("/metrics")).text
                taken = next(line for line in text.splitlines() if line.startswith("genrec_open "))
                if float(taken.split()[1]) > len(requests):  # and the one who asks for the figures
                    break
                await asyncio.sleep(0.02)
            started.send_signal(signal.SIGTERM)
            answers = await asyncio.gather(*running)
            late = []
            for _ in range(3):
                try:
                    late.append((await client.post("/recommend", json={"history": []})).status_code)
                except httpx.TransportError:
                    late.append(None)
            return answers, late

    answers, late = asyncio.run(ask())
    for answer, (path, body) in zip(answers, requests, strict=True):
        assert answer.status_code == 200, answer.text
        assert is_answer(answer.json(), expected(one, path, body))
    assert set(late) <= {None, 503}
    rest = started.stderr.read()
    assert started.wait(30) == 0
    taken, answered = (
        int(word.replace(",", "")) for word in rest.split("stopped: ")[1].split() if word[0].isdigit()
    )
    assert taken == answered >= 40


def test_the_command_says_what_is_missing(root, capsys):
    from genrec.cli import main

    assert main(["serve", str(root / "one"), "--token-env", "NO_SUCH_VARIABLE"]) == 1
    assert "NO_SUCH_VARIABLE" in capsys.readouterr().err
    assert main(["serve", str(root / "one"), "--max-batch", "0"]) == 1
    assert "max_batch must be above 0" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(root / "one"), "--port", str(port)]) == 1
    assert f"127.0.0.1:{port} cannot be listened on" in capsys.readouterr().err


def fuzz(app, examples):
    """Asks each endpoint as often, half of it what the OpenAPI page allows, and half what it does not."""
    run = settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    schema, statuses = schemathesis.openapi.from_asgi("/openapi.json", app), set()
    for operation in schema.get_all_operations():
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @run
            @given(case=operation.ok().as_strategy(generation_mode=mode))
            def ask(case):
                answer = case.call_and_validate(checks=[not_a_server_error, response_schema_conformance])
                statuses.add(answer.status_code)

            with contextlib.suppress(Unsatisfiable):  # what takes nothing cannot be asked wrongly
                ask()
    assert {200, 422} <= statuses


def test_no_request_that_the_api_allows_makes_the_server_fail(one, root):
    fuzz(create_app(one, ServerSettings(models_root=root)), 3)


@pytest.mark.slow
def test_no_request_that_the_api_allows_makes_the_server_fail_long(one, root):
    fuzz(create_app(one, ServerSettings(models_root=root)), 500)
