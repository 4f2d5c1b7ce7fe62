"""Loads a server on loopback: ``python benchmarks/serving/load.py RUN [--minutes 30] [--clients 32] [--second RUN]``.

Starts ``genrec serve RUN`` as a process of its own and asks it, by keep-alive connections: first one request at a time, then ``--clients``
at once (saturation), then six times as many with a short queue in the server (beyond it: 503 is then an answer, and is asked again after
Retry-After). Requests are mixed: lists with and without filters, scores, explanations, pages of items. Every answer is set beside the
offline one of ``Recommender``, made before. With ``--second`` the server switches between both runs all the while. At the end comes
SIGTERM in the middle of requests: what the server says it took and answered has to be the same.

The generator is asyncio with raw HTTP/1.1 on streams, in one process: it shares two cores with what it measures, so it does as
little as it can, and locust would bring gevent and a web page besides. The clients' own share of the cores is in the result.
"""

import argparse
import asyncio
import json
import math
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from genrec.core.files import write_json
from genrec.core.progress import say
from genrec.serving import Recommender

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from machine import ROOT, begin_result

RESULTS = ROOT / "benchmarks" / "serving" / "results"
TOLERANCE = 1e-3  # float32 sums in batches of other sizes; of equal scores within it the order may differ
BEYOND = 6


@dataclass
class Phase:
    """What was seen of one kind of traffic."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)
    wrong: list[Any] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    ended: float = 0.0

    def summary(self) -> dict[str, Any]:
        wall = self.ended - self.began
        found = {"wall_s": wall, "answers": len(self.seconds), "per_s": len(self.seconds) / wall}
        found |= {f"p{q}_ms": float(np.percentile(self.seconds, q)) * 1000 for q in (50, 90, 99)}
        return found | {
            "statuses": {str(key): value for key, value in self.statuses.items()},
            "wrong": len(self.wrong),
            "lost": len(self.lost),
            "first_wrong": self.wrong[:3],
            "first_lost": self.lost[:3],
        }


def requests(ids: list[str], num: int, seed: int) -> list[tuple[str, dict[str, Any]]]:
    """Returns mixed requests, the same for the same seed."""
    rng, made = random.Random(seed), []
    for _ in range(num):
        path = rng.choices(["/recommend", "/score", "/explain"], [75, 20, 5])[0]
        body: dict[str, Any] = {"history": rng.choices(ids, k=rng.randint(0, 20))}
        if rng.random() < 0.2:
            body["exclude"] = rng.sample(ids, min(20, len(ids) // 4))
        if rng.random() < 0.2:
            body["allow"] = rng.sample(ids, min(200, len(ids) // 2))
        if path == "/score":
            body["items"] = rng.sample(ids, min(10, len(ids)))
        made.append((path, body))
    return made


def offline(recommender: Recommender, path: str, body: dict[str, Any]) -> list[tuple[str, float]]:
    """Returns items and scores of a request, without a server."""
    options = {key: value for key, value in body.items() if key not in ("history", "items")}
    if path == "/score":
        return list(
            zip(
                body["items"], recommender.score(list(body["history"]), body["items"], **options), strict=True
            )
        )
    if path == "/explain":
        found = recommender.explain(body["history"], **options).recommendations
    else:
        (found,) = recommender.recommend([body["history"]], **options)
    return [(item.item_id, item.score) for item in found]


def agrees(path: str, body: dict[str, Any], answer: dict[str, Any], wanted: list[tuple[str, float]]) -> bool:
    """Whether an answer is the offline one: scores within rounding, and items unless their scores are equal within it."""
    if path == "/score":
        found = [
            (item, -math.inf if score is None else score)
            for item, score in zip(body["items"], answer["scores"], strict=True)
        ]
    else:
        found = [(item["item_id"], item["score"]) for item in answer["items"]]
    if len(found) != len(wanted):
        return False
    values = [score for _, score in wanted]
    last = values[-1] if values else 0.0
    theirs = dict(wanted)
    for place, ((item, score), (_, other)) in enumerate(zip(found, wanted, strict=True)):
        if score != other and not abs(score - other) <= TOLERANCE:
            return False
        if item not in theirs:
            # Only an item that ties with the last one may have come in its stead.
            if abs(values[place] - last) > TOLERANCE:
                return False
        elif score != theirs[item] and not abs(score - theirs[item]) <= TOLERANCE:
            return False
    return True


class Connection:
    """One keep-alive connection."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, str], Any]:
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        assert self.reader is not None
        sent = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
        self.writer.write(head.encode() + sent)
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)
        }
        text = await self.reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("connection") == "close":
            self.close()
        answer = json.loads(text) if headers.get("content-type") == "application/json" else text.decode()
        return int(lines[0].split()[1]), headers, answer

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None


async def client(
    number: int, address: tuple[str, int], asked: list, wanted: list, until: float, phase: Phase
) -> None:
    """Asks one request after the other until the time is over."""
    connection, at = Connection(*address), number * 7919
    while time.perf_counter() < until:
        path, body = asked[at % len(asked)]
        began = time.perf_counter()
        try:
            status, headers, answer = await connection.ask("POST", path, body)
        except (OSError, EOFError, asyncio.IncompleteReadError) as error:
            phase.lost.append(f"{path}: {type(error).__name__} {error}")
            connection.close()
            continue
        phase.statuses[status] += 1
        if status == 503:  # asked again later
            await asyncio.sleep(float(headers["retry-after"]) * (0.5 + random.random()))
            continue
        phase.seconds.append(time.perf_counter() - began)
        if status != 200 or not any(agrees(path, body, answer, each) for each in wanted[at % len(asked)]):
            phase.wrong.append([path, body, status, answer])
        at += 1
    connection.close()


async def switching(address: tuple[str, int], names: list[str], until: float, every_s: float) -> int:
    """Switches between the runs until the time is over; returns how often."""
    connection, times = Connection(*address), 0
    while time.perf_counter() < until - every_s:
        await asyncio.sleep(every_s)
        times += 1
        status, _, answer = await connection.ask("POST", "/models", {"run": names[times % len(names)]})
        assert status == 200, answer
    connection.close()
    return times


async def traffic(
    address: tuple[str, int], clients: int, seconds: float, asked: list, wanted: list, process: psutil.Process,
    names: list[str] | None = None, switch_s: float = 60.0,
) -> dict[str, Any]:  # fmt: skip
    """Returns what was seen of that many clients for that long."""
    phase = Phase()
    until = phase.began + seconds
    memory: list[tuple[float, float]] = []

    async def watch() -> None:
        while time.perf_counter() < until:
            memory.append((time.perf_counter() - phase.began, process.memory_info().rss / 1e6))
            await asyncio.sleep(min(10.0, seconds / 12))

    cpu, own = sum(process.cpu_times()[:2]), time.process_time()
    tasks = [client(number, address, asked, wanted, until, phase) for number in range(clients)]
    switched = switching(address, names, until, switch_s) if names else asyncio.sleep(0, 0)
    _, times, *_ = await asyncio.gather(watch(), switched, *tasks)
    phase.ended = time.perf_counter()
    wall = phase.ended - phase.began
    found = phase.summary() | {"clients": clients, "memory_mb": memory, "switches": times}
    found |= {
        "server_cores": (sum(process.cpu_times()[:2]) - cpu) / wall,
        "client_cores": (time.process_time() - own) / wall,
    }
    third = memory[len(memory) // 3 :]
    if len(third) > 2:
        found["memory_slope_mb_per_min"] = float(
            np.polyfit([t / 60 for t, _ in third], [m for _, m in third], 1)[0]
        )
    say(
        f"  {clients} clients, {wall:.0f} s: {found['answers']:,} answers, {found['per_s']:.1f}/s, p50 {found['p50_ms']:.0f} ms, "
        f"p99 {found['p99_ms']:.0f} ms, {found['wrong']} wrong, {found['lost']} lost, statuses {found['statuses']}"
    )
    return found


def start(run: Path, root: Path | None, queue: int) -> tuple[subprocess.Popen, tuple[str, int]]:
    """Returns a server and where it listens."""
    command = [sys.executable, "-m", "genrec", "serve", str(run), "--port", "0", "--max-queue", str(queue)]
    if root is not None:
        command += ["--models-root", str(root)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "serving at" in line:
            host, _, port = line.split()[2].rstrip(",").removeprefix("http://").rpartition(":")
            return process, (host, int(port))
    raise SystemExit("The server did not start.")


async def stopped_in_the_middle(
    process: subprocess.Popen, address: tuple[str, int], clients: int, asked: list, wanted: list
) -> dict[str, Any]:
    """Sends SIGTERM while all clients wait; returns what became of their requests."""
    phase = Phase()
    tasks = [
        asyncio.create_task(client(n, address, asked, wanted, phase.began + 600, phase))
        for n in range(clients)
    ]
    await asyncio.sleep(3)
    process.send_signal(signal.SIGTERM)
    rest = await asyncio.to_thread(process.stderr.read)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    words = rest.split("stopped: ")[1].split()
    taken, answered = (int(word.replace(",", "")) for word in words if word[0].isdigit())
    say(
        f"  SIGTERM: {taken:,} taken, {answered:,} answered, {len(phase.wrong)} wrong, exit status {process.wait()}"
    )
    return {
        "taken": taken,
        "answered": answered,
        "wrong": len([w for w in phase.wrong if w[2] != 503]),
        "exit": process.wait(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--second", type=Path, help="a run beside it, that is switched to and back")
    parser.add_argument("--minutes", type=float, default=30.0, help="of traffic, all phases together")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=400, help="different ones")
    parser.add_argument("--allow-dirty", action="store_true")
    options = parser.parse_args()
    out, result = begin_result(
        RESULTS, "load", "benchmarks/serving/load.py", sys.argv[1:],
        changed=options.minutes < 30, allow_dirty=options.allow_dirty,
    )  # fmt: skip
    runs = [options.run] + ([options.second] if options.second else [])
    if options.second and options.second.resolve().parent != options.run.resolve().parent:
        parser.error("both runs have to lie in one folder, below which the server may switch")
    recommenders = [Recommender.from_pretrained(run) for run in runs]
    common = set.intersection(*(set(each.items.item_ids) for each in recommenders))
    asked = requests(sorted(common), options.requests, seed=0)
    say(f"  {len(asked):,} requests are answered offline")
    wanted = [[offline(each, path, body) for each in recommenders] for path, body in asked]
    total = options.minutes * 60
    names = [run.resolve().name for run in runs] if options.second else None
    root = options.run.resolve().parent if options.second else None
    result |= {"run": str(options.run), "items": len(common), "requests": len(asked), "phases": {}}
    del recommenders

    process, address = start(options.run, root, 256)
    watched = psutil.Process(process.pid)
    phases = result["phases"]
    one = [each[:1] for each in wanted]
    phases["warm"] = asyncio.run(traffic(address, 4, min(10, total / 10), asked, one, watched))
    phases["one_at_a_time"] = asyncio.run(traffic(address, 1, total * 0.1, asked, one, watched))
    phases["saturation"] = asyncio.run(
        traffic(address, options.clients, total * 0.6, asked, wanted, watched, names, max(5.0, total / 30))
    )
    if names:
        phases["saturation"]["final_run"] = asyncio.run(Connection(*address).ask("GET", "/ready"))[2]["run"]
    phases["sigterm"] = asyncio.run(stopped_in_the_middle(process, address, options.clients, asked, wanted))

    process, address = start(options.run, None, options.clients * 2)
    beyond = asyncio.run(
        traffic(address, options.clients * BEYOND, total * 0.3, asked, one, psutil.Process(process.pid))
    )
    phases["beyond"] = beyond
    phases["sigterm_beyond"] = asyncio.run(
        stopped_in_the_middle(process, address, options.clients, asked, one)
    )
    result["speed_up"] = phases["saturation"]["per_s"] / phases["one_at_a_time"]["per_s"]
    say(f"  {result['speed_up']:.2f} times as many answers a second as one at a time")
    write_json(out, result)
    print(out)


if __name__ == "__main__":
    main()
