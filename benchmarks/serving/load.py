"""Loads a server on loopback: ``python benchmarks/serving/load.py RUN [--second RUN] [--minutes 30] [--clients 32]``.

Starts ``genrec serve RUN`` as a process of its own and asks it by locust (``pip install 'genrec[load]'``), each client over a keep-alive
connection: one request at a time, then ``--clients`` at once (saturation, two thirds of the minutes), then six times as many with a
short queue in the server (beyond it, one third: 503 is then an answer, and the request is sent again after Retry-After). Requests are
mixed: lists with and without filters, scores, explanations, pages of items. Every answer is set beside the offline ones of
``Recommender``, made before, in float32, where a score does not hang on what is asked beside it. During saturation the catalogue changes (an item that no request names is removed) and, with ``--second``,
the server switches between both runs; an answer has to be that of one of these states. Both servers are stopped by SIGTERM in the
middle of requests: as many answers as the server says it gave, over its whole life, have to have reached the clients.

The clients are one process, and share the cores with what they measure: how much they take is in the result.
"""

import argparse
import dataclasses
import itertools
import json
import math
import random
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
import gevent.event

# Before all else that opens sockets, which it replaces by gevent's.
import locust
import numpy as np
import psutil
from locust.env import Environment

from genrec.core.files import write_json
from genrec.core.progress import say
from genrec.serving import Recommender

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from machine import ROOT, begin_result

RESULTS = ROOT / "benchmarks" / "serving" / "results"
# Sums of float32 in batches of other sizes, ten times what they differ by; of equal scores within it the order may differ.
TOLERANCE = 1e-4
BEYOND = 6
SHARES = {"recommend": 70, "score": 18, "explain": 5, "items": 7}

Scored = list[tuple[str, float]]


@dataclass(frozen=True)
class Question:
    """A request, and for each state that the server may be in the right answer."""

    path: str
    body: dict[str, Any] | None
    right: list[Any]


@dataclass
class Phase:
    """What was seen of one kind of traffic."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)
    wrong: list[Any] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    stopping: int = 0  # refused because the server stops: the only answers that it does not count


def requests(ids: list[str], titles: dict[str, str], num: int, seed: int) -> list[tuple[str, dict[str, Any]]]:
    """Returns mixed requests, the same for the same seed."""
    rng, made = random.Random(seed), []
    for _ in range(num):
        (path,) = rng.choices(list(SHARES), list(SHARES.values()))
        if path == "items":
            made.append((path, {"query": rng.choice(titles[rng.choice(ids)].split()), "page_size": 20}))
            continue
        body: dict[str, Any] = {"history": rng.choices(ids, k=rng.randint(0, 20))}
        if rng.random() < 0.2:
            body["exclude"] = rng.sample(ids, min(20, len(ids) // 4))
        if rng.random() < 0.2:
            body["allow"] = rng.sample(ids, min(200, len(ids) // 2))
        if path == "score":
            body["items"] = rng.sample(ids, min(10, len(ids)))
        made.append((path, body))
    return made


def offline(recommender: Recommender, path: str, body: dict[str, Any]) -> Any:
    """Returns what the right answer to a request holds, without a server: items with scores, or titles and how many there are."""
    options = {key: value for key, value in body.items() if key not in ("history", "items")}
    if path == "items":
        titles = [(item, recommender.items.title(item)) for item in recommender.items.item_ids]
        found = [
            [item, title] for item, title in titles if body["query"].lower() in f"{title} {item}".lower()
        ]
        return [len(found), found[: body["page_size"]]]
    if path == "score":
        scores = recommender.score(list(body["history"]), body["items"], **options)
        return list(zip(body["items"], scores, strict=True))
    if path == "explain":
        found = recommender.explain(body["history"], **options).recommendations
    else:
        (found,) = recommender.recommend([body["history"]], **options)
    return [(item.item_id, item.score) for item in found]


def asked(ids: list[str], states: list[Recommender], num: int) -> list[Question]:
    """Returns mixed requests with what is right in each state, computed without a server."""
    say(f"  {num:,} requests are answered offline, in {len(states)} states of the server")
    titles, made = {item: states[0].items.title(item) for item in ids}, []
    for path, body in requests(ids, titles, num, seed=0):
        url = f"/items?{urllib.parse.urlencode(body)}" if path == "items" else f"/{path}"
        right = [offline(each, path, body) for each in states]
        made.append(Question(url, None if path == "items" else body, right))
    return made


def agrees(question: Question, answer: dict[str, Any]) -> bool:
    """Whether an answer is right in one of the states."""
    if question.body is None:
        found = [answer["total"], [[item["item_id"], item["title"]] for item in answer["items"]]]
        return found in question.right
    if "items" in question.body:
        scores = (-math.inf if score is None else score for score in answer["scores"])
        listed = list(zip(question.body["items"], scores, strict=True))
    else:
        listed = [(item["item_id"], item["score"]) for item in answer["items"]]
    return any(same(listed, right) for right in question.right)


def same(found: Scored, right: Scored) -> bool:
    """Whether both are one list: scores within rounding, and items unless their scores are equal within it."""
    if len(found) != len(right):
        return False
    scores, last = dict(right), right[-1][1] if right else 0.0
    for (item, score), (_, placed) in zip(found, right, strict=True):
        # An item that is not in the right list may stand there only in a tie with that list's last one.
        others = [placed, scores.get(item, last)]
        if not all(score == other or abs(score - other) <= TOLERANCE for other in others):
            return False
    return True


class Client(locust.FastHttpUser):
    """Asks one request after the other."""

    wait_time = locust.constant(0)
    connection_timeout = network_timeout = 120.0
    phase: Phase
    questions: list[Question]
    numbers = itertools.count()

    def on_start(self) -> None:
        self.at = next(self.numbers) * 7919

    @locust.task
    def ask(self) -> None:
        phase, question = self.phase, self.questions[self.at % len(self.questions)]
        method = "GET" if question.body is None else "POST"
        began = time.perf_counter()
        with self.client.request(
            method, question.path, name=question.path, json=question.body, catch_response=True
        ) as response:
            seconds = time.perf_counter() - began
            response.success()  # locust's own figures are not read
            status, headers = response.status_code, response.headers
            answer = json.loads(response.content or b"null")
        if not status:
            phase.lost.append(f"{question.path}: {response.error}")
            gevent.sleep(0.1)
            return
        if status == 503 and answer["error"]["code"] == "stopping":
            phase.stopping += 1
            gevent.sleep(0.1)
            return
        phase.statuses[status] += 1
        if status == 503:
            gevent.sleep(float(headers["retry-after"]) * (0.5 + random.random()))
            return
        self.at += 1
        phase.seconds.append(seconds)
        if status != 200 or not agrees(question, answer):
            phase.wrong.append([question.path, question.body, status, answer])


class Server:
    """``genrec serve`` as a process of its own, and all answers that it gave."""

    def __init__(self, run: Path, root: Path | None = None, queue: int = 256) -> None:
        command = [sys.executable, "-m", "genrec", "serve", str(run), "--port", "0"]
        command += ["--max-queue", str(queue), "--dtype", "float32"]
        if root is not None:
            command += ["--models-root", str(root)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.watched = psutil.Process(self.process.pid)
        self.received = 0
        for line in self.process.stderr:
            if "serving at" in line:
                self.address = line.split()[2].rstrip(",")
                return
        raise SystemExit("The server did not start.")

    def cost(self) -> tuple[float, float]:
        """Returns seconds of processor so far and MB of memory now, of all its processes."""
        processes = [self.watched, *self.watched.children(recursive=True)]
        return sum(sum(each.cpu_times()[:2]) for each in processes), sum(
            each.memory_info().rss / 1e6 for each in processes
        )

    def change(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Returns the answer to a request that changes the server."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.address + path, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            self.received += 1
            return json.load(response)

    def traffic(
        self, questions: list[Question], clients: int, seconds: float,
        changes: Callable[[gevent.event.Event], None] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Returns what was seen of that many clients for that long, in figures.

        ``changes`` changes the server until the event that it is given.
        """
        phase, memory = Phase(), []
        runner = clients_of(self, questions, phase)
        cpu, own, began = self.cost()[0], time.process_time(), time.perf_counter()
        runner.start(clients, spawn_rate=clients)
        over = gevent.event.Event()
        changing = gevent.spawn(changes, over) if changes else None
        while (now := time.perf_counter() - began) < seconds:
            memory.append([round(now, 1), self.cost()[1]])
            gevent.sleep(min(10.0, seconds / 12, max(0.05, seconds - now)))
        over.set()
        if changing:
            changing.get()  # raises what it raised
        runner.stop()
        wall = time.perf_counter() - began
        self.received += sum(phase.statuses.values())
        found: dict[str, Any] = {"clients": clients, "wall_s": wall, "answers": len(phase.seconds)}
        found["per_s"] = len(phase.seconds) / wall
        found |= {f"p{q}_ms": float(np.percentile(phase.seconds, q)) * 1000 for q in (50, 90, 99)}
        found |= {
            "statuses": {str(status): times for status, times in phase.statuses.items()},
            "wrong": len(phase.wrong),
            "lost": len(phase.lost),
            "first_wrong": phase.wrong[:3],
            "first_lost": phase.lost[:3],
            "server_cores": (self.cost()[0] - cpu) / wall,
            "client_cores": (time.process_time() - own) / wall,
            "memory_mb": memory,
        }
        later = memory[len(memory) // 3 :]
        minutes, mb = [at / 60 for at, _ in later], [size for _, size in later]
        found["memory_slope_mb_per_min"] = float(np.polyfit(minutes, mb, 1)[0])
        say(
            f"  {clients} clients, {wall:.0f} s: {found['answers']:,} answers, {found['per_s']:.1f}/s, p50 {found['p50_ms']:.0f} ms, "
            f"p99 {found['p99_ms']:.0f} ms, {found['wrong']} wrong, {found['lost']} lost, statuses {found['statuses']}, "
            f"memory {memory[0][1]:.0f} to {memory[-1][1]:.0f} MB"
        )
        return found

    def stop_in_the_middle(self, questions: list[Question], clients: int) -> dict[str, Any]:
        """Returns what became of the requests of clients that ask while SIGTERM comes."""
        phase = Phase()
        runner = clients_of(self, questions, phase)
        runner.start(clients, spawn_rate=clients)
        gevent.sleep(3)
        self.process.send_signal(signal.SIGTERM)
        rest = self.process.stderr.read()  # gevent's: the clients go on
        status = self.process.wait()
        gevent.sleep(1)
        runner.stop()
        self.received += sum(phase.statuses.values())
        taken, answered = (
            int(word.replace(",", "")) for word in rest.split("stopped: ")[1].split() if word[0].isdigit()
        )
        say(
            f"  SIGTERM: {taken:,} requests taken and {answered:,} answered in its life, {self.received:,} answers received, "
            f"{len(phase.wrong)} wrong, exit status {status}"
        )
        return {
            "taken": taken,
            "answered": answered,
            "received": self.received,
            "during": sum(phase.statuses.values()),
            "refused_as_stopping": phase.stopping,
            "wrong": len(phase.wrong),
            "exit": status,
        }


def clients_of(server: Server, questions: list[Question], phase: Phase) -> Any:
    """Returns locust's runner of clients that write what they see into a phase."""
    kind = type("Asking", (Client,), {"phase": phase, "questions": questions, "host": server.address})
    environment = Environment(
        user_classes=[kind], stop_timeout=120
    )  # a request that was sent gets its answer
    return environment.create_local_runner()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--second", type=Path, help="a run in the same folder, that is switched to and back")
    parser.add_argument("--minutes", type=float, default=30.0, help="at saturation and beyond, together")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=400, help="different ones")
    parser.add_argument("--allow-dirty", action="store_true")
    options = parser.parse_args()
    runs = [options.run] + ([options.second] if options.second else [])
    root = options.run.resolve().parent
    if any(run.resolve().parent != root for run in runs):
        parser.error("both runs have to lie in one folder, below which the server may switch")
    out, result = begin_result(
        RESULTS, "load", "benchmarks/serving/load.py", sys.argv[1:],
        changed=options.minutes < 30, allow_dirty=options.allow_dirty,
    )  # fmt: skip
    recommenders = [Recommender.from_pretrained(run, "float32") for run in runs]
    first = recommenders[0]
    common = sorted(set.intersection(*(set(each.items.item_ids) for each in recommenders)))
    # The item that most lists of the first run begin with: that it is gone can be seen.
    tops = Counter(found[0].item_id for found in first.recommend([[item] for item in common[:200]], k=1))
    ((gone, _),) = tops.most_common(1)
    common.remove(gone)
    states = [each for whole in recommenders for each in (whole, whole.remove([gone]))]
    questions = asked(common, states, options.requests)
    steady = [dataclasses.replace(question, right=question.right[:1]) for question in questions]
    del recommenders, states, first

    saturated = options.minutes * 60 * 2 / 3
    switches: Counter = Counter()

    def changes(over: gevent.event.Event) -> None:
        for turn in itertools.count(1):
            if over.wait(max(3.0, saturated / 60)):
                return
            if turn % 2:
                server.change("DELETE", f"/items/{gone}")
                switches["items"] += 1
            else:
                server.change("POST", "/models", {"run": runs[turn // 2 % len(runs)].resolve().name})
                switches["model"] += 1

    result |= {"run": str(options.run), "items": len(common) + 1, "requests": len(questions), "phases": {}}
    phases = result["phases"]
    server = Server(options.run, root, 256)
    server.traffic(steady, 4, min(10.0, saturated / 10))  # warm
    phases["one_at_a_time"] = server.traffic(steady, 1, options.minutes * 60 / 15)
    phases["saturation"] = server.traffic(questions, options.clients, saturated, changes)
    phases["saturation"]["changes"] = dict(switches)
    phases["sigterm"] = server.stop_in_the_middle(questions, options.clients)
    server = Server(options.run, None, options.clients * 2)
    phases["beyond"] = server.traffic(steady, options.clients * BEYOND, options.minutes * 60 / 3)
    phases["sigterm_beyond"] = server.stop_in_the_middle(steady, options.clients * BEYOND)
    result["speed_up"] = phases["saturation"]["per_s"] / phases["one_at_a_time"]["per_s"]
    say(f"  {result['speed_up']:.2f} times as many answers a second as one at a time")
    write_json(out, result)
    print(out)


if __name__ == "__main__":
    main()
