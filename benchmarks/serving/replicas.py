"""Replicas of the server by Ray Serve beside one process: ``python benchmarks/serving/replicas.py RUN [--seconds 60]``.

The same mixed requests, by the same clients as ``load.py``, to ``genrec serve`` with all threads of the machine, and to
``recipes/ray/replicas.yaml`` with one and with two replicas of a thread each. Every answer is set beside the offline one; all in float32.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import gevent
import psutil
import yaml

from genrec.core.files import write_json
from genrec.serving import Recommender

from load import RESULTS, ROOT, Server, asked
from machine import begin_result


class Replicas(Server):
    """The shipped recipe's replicas, as ``serve run`` starts them."""

    def __init__(self, run: Path, number: int) -> None:
        config = yaml.safe_load((ROOT / "recipes" / "ray" / "replicas.yaml").read_text())
        with socket.create_server(("127.0.0.1", 0)) as free:
            config["http_options"]["port"] = port = free.getsockname()[1]
        (application,) = config["applications"]
        application["args"] = {"run": str(run.resolve()), "dtype": "float32"}
        application["deployments"][0]["num_replicas"] = number
        self.folder = Path(tempfile.mkdtemp(prefix="ray"))  # a short name: Ray's sockets lie in it
        file = self.folder / "replicas.yaml"
        file.write_text(yaml.safe_dump(config))
        said = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(self.folder)}
        command = [Path(sys.executable).with_name("serve"), "run", str(file)]
        with (self.folder / "said").open("wb") as out:
            self.process = subprocess.Popen(command, env=os.environ | said, stdout=out, stderr=out)
        self.watched, self.received = psutil.Process(self.process.pid), 0
        self.address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            gevent.sleep(0.5)
            try:
                urllib.request.urlopen(f"{self.address}/ready", timeout=5)
            except OSError:
                continue
            return
        raise SystemExit((self.folder / "said").read_text())

    def stop(self) -> None:
        """Stops it."""
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0, help="of traffic, to each")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=400, help="different ones")
    parser.add_argument("--allow-dirty", action="store_true")
    options = parser.parse_args()
    out, result = begin_result(
        RESULTS, "replicas", "benchmarks/serving/replicas.py", sys.argv[1:],
        changed=options.seconds < 60, allow_dirty=options.allow_dirty,
    )  # fmt: skip
    recommender = Recommender.from_pretrained(options.run, "float32")
    questions = asked(sorted(recommender.items.item_ids), [recommender], options.requests)
    del recommender
    result |= {"run": str(options.run), "requests": len(questions), "servers": {}}
    for name, start in {
        "genrec serve": lambda: Server(options.run),
        "1 replica": lambda: Replicas(options.run, 1),
        "2 replicas": lambda: Replicas(options.run, 2),
    }.items():
        print(f"  {name}")
        server = start()
        server.traffic(questions, 4, min(10.0, options.seconds / 3))  # warm
        result["servers"][name] = server.traffic(questions, options.clients, options.seconds)
        if isinstance(server, Replicas):
            server.stop()
        else:
            server.process.terminate()
            server.process.wait()
    write_json(out, result)
    print(out)


if __name__ == "__main__":
    main()
