"""Several replicas of the server behind one port, on one machine or many, by Ray Serve: ``serve run recipes/ray/replicas.yaml``.

Ray Serve, since what outgrows one process is more than a port with several listeners: replicas on other machines and GPUs, started again
where one dies, more of them when requests wait, and another run brought in replica by replica. Each replica is the application that
``genrec serve`` runs, with its own model and its own batches; it can be changed by deploying again alone, since a change that
one replica took would not be in the others.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve

from genrec.core.errors import DataError
from genrec.serving.recommender import Recommender
from genrec.serving.server import ServerSettings, create_app, read_token

# Where they listen, how many they are and how many requests one takes is Ray's to say; an address's rate is counted by no replica alone.
_NOT_TAKEN = ("host", "port", "token", "models_root", "rate_limit")
_TAKEN = tuple(field.name for field in dataclasses.fields(ServerSettings) if field.name not in _NOT_TAKEN)


def build(args: dict[str, Any]) -> serve.Application:
    """Returns the application that Ray Serve runs, as many times as its config says.

    Args:
        args: ``run``, a folder that every machine sees at the same place, or a Hub id; optionally ``token_env``, the name of the
            environment variable with the token, and the fields of ``ServerSettings`` that are a replica's own.

    Raises:
        DataError: If a key is missing or unknown, or a setting cannot be.
        RunError: If ``token_env`` names no variable.
    """
    given = dict(args)
    run, token_env = given.pop("run", None), given.pop("token_env", None)
    if not isinstance(run, str) or not run:
        raise DataError("A replica serves one run. Give args: {run: FOLDER or Hub id}.")
    if unknown := [key for key in given if key not in _TAKEN]:
        raise DataError(
            f"A replica takes run, token_env, {', '.join(_TAKEN)}; {', '.join(unknown)} is not among them."
        )
    token = read_token(token_env, "token_env")
    settings, name = ServerSettings(**given, token=token), Path(run).name
    folder = str(Path(run).resolve()) if Path(run).is_dir() else run

    def app() -> FastAPI:
        recommender = Recommender.from_pretrained(folder, settings.dtype)
        return create_app(
            recommender, settings, name, replica=serve.get_replica_context().replica_id.unique_id
        )

    return serve.deployment(name="Recommender")(serve.ingress(app)()).bind()
