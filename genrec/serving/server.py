"""The HTTP server: recommend, score and explain for many at once, with a catalogue and a model that change while it runs."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hmac
import math
import os
import signal
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from importlib import resources
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, cast

import prometheus_client as prometheus
import pyarrow as pa
import uvicorn
from fastapi import APIRouter, Body, FastAPI, Query
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from genrec._version import __version__
from genrec.core.errors import DataError, GenrecError, IndexingError, ModelError, RunError, UnknownItemError
from genrec.core.page import COLOURS
from genrec.core.progress import say
from genrec.data_prep import ItemCatalog, ItemId
from genrec.decoding.settings import Method
from genrec.serving.batching import Batcher, Refused
from genrec.serving.recommender import Ask, Recommender, Unknown

_PAGE = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}
# Asked by whoever watches the server or reads how to ask it: no token, and no limit.
_DOCS_FILES = "/docs-files"
_OPEN = ("/health", "/ready", "/docs", "/openapi.json", *_PAGE)
_PATHS = ("recommend", "score", "explain", "items", "models", "metrics", "health", "ready", "compare")
# Clients whose rate is remembered; the one not seen for longest is forgotten first.
_MOST_CLIENTS = 10_000
# The page runs its own script and style alone, asks its own server alone, and stands in no other page.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class ServerSettings:
    """How a server listens, and what it takes.

    Attributes:
        host: Address to listen on; 127.0.0.1 is this machine alone.
        port: To listen on; 0 is any free one.
        token: What ``Authorization: Bearer`` must bring, or None.
        models_root: Folder below which runs may be switched to, or None: none may.
        max_batch: Requests that are answered together.
        max_wait_ms: Milliseconds that the first of them waits for others.
        max_queue: Requests that may wait; more are refused with 503.
        timeout_s: Seconds after which a request that still waits is given up with 504, and one that is still being sent
            with 408.
        max_body_bytes: Of a request.
        rate_limit: Requests a second of one client's address, and twice as many at once; None is no limit.
        dtype: Type of frozen weights, as ``Recommender.from_pretrained``.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    models_root: Path | None = None
    max_batch: int = 16
    max_wait_ms: float = 5.0
    max_queue: int = 256
    timeout_s: float = 30.0
    max_body_bytes: int = 1_000_000
    rate_limit: float | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_queue", "max_body_bytes", "timeout_s", "rate_limit"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise DataError(f"{name} must be above 0, got {value!r}.")
        if not self.max_wait_ms >= 0:
            raise DataError(f"max_wait_ms must be 0 or more, got {self.max_wait_ms!r}.")
        if not 0 <= self.port <= 65535:
            raise DataError(f"port must be between 0 and 65535, got {self.port}.")
        if self.token is not None and not self.token.strip():
            raise DataError("The token is empty. Give one, or leave it out.")
        if self.models_root is not None and not self.models_root.is_dir():
            raise DataError(f"models_root is the folder that runs lie in; {self.models_root} is none.")


def read_token(variable: str | None, asked_by: str) -> str | None:
    """Returns the token in an environment variable, None where none is named.

    Args:
        variable: Its name.
        asked_by: The option or key that named it, for the error.

    Raises:
        RunError: If there is no such variable, or it is empty.
    """
    if not variable:
        return None
    token = os.environ.get(variable)
    if not token:
        raise RunError(f"{asked_by} {variable}: the environment has no such variable, or it is empty.")
    return token


# ---------------------------------------------------------------- what is sent and answered

Id = Annotated[str, Field(min_length=1, max_length=512)]
Ids = Annotated[list[Id], Field(max_length=20_000)]


class _Sent(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class AskBody(_Sent):
    """Whom to recommend to, and what may come."""

    history: Annotated[list[Id], Field(max_length=2_000)] | None = Field(
        None, description="Item ids, oldest first."
    )
    user_id: Id | None = Field(
        None, description="Instead of history: a user of the run. Beside it: whose history it is."
    )
    exclude_history: bool = Field(True, description="Leave out items of the history.")
    exclude: Ids = Field([], description="Items that must not come.")
    allow: Ids | None = Field(None, description="The only items that may come; null allows all.")
    method: Method | None = Field(None, description="How items are found; null: as the run was evaluated.")
    unknown: Unknown = Field(
        "error",
        description="An item of the history that is unknown: error, skip it (left_out then names it), or take it for a title.",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> AskBody:
        if self.history is None and self.user_id is None:
            raise ValueError("give history or user_id")
        return self


class ListBody(AskBody):
    """Whom to recommend to, and how many items."""

    k: int = Field(10, ge=1, le=200, description="Items wanted.")
    beams: int | None = Field(None, ge=1, le=400, description="Beam width; null: the larger of k and 20.")


class ScoreBody(AskBody):
    """Whose scores of which items."""

    items: Annotated[list[Id], Field(min_length=1, max_length=1_000)]


class ItemBody(_Sent):
    """A new item."""

    item_id: Id
    title: Annotated[str, Field(min_length=1, max_length=2_000)]
    brand: Annotated[str, Field(max_length=512)] | None = None
    categories: Annotated[list[Annotated[str, Field(max_length=512)]], Field(max_length=100)] | None = None


class NewItemsBody(_Sent):
    """New items."""

    items: Annotated[list[ItemBody], Field(min_length=1, max_length=1_000)]
    titles_only: bool = Field(
        False, description="Give them no codes: the methods grounded and fused find them by their titles."
    )


class ModelBody(_Sent):
    """The run to switch to."""

    run: Annotated[str, Field(max_length=255, pattern=r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$")] = Field(
        description="Its folder, below the server's models root."
    )


class Item(BaseModel):
    """An item of the catalogue."""

    item_id: str
    title: str
    code: list[str] = Field(description="The tokens that name it; none for an item that has a title only.")


class Recommended(Item):
    """An item of a list."""

    score: float


class ListAnswer(BaseModel):
    """A list, best first; shorter than k only where fewer items may come."""

    items: list[Recommended]
    left_out: list[str] = Field(description="Items of the history that are unknown, with unknown=skip.")


class ScoreAnswer(BaseModel):
    """Scores, in the order of the items asked for."""

    scores: list[float | None] = Field(description="null: the item may not come.")
    left_out: list[str]


class BranchAnswer(BaseModel):
    """A prefix of codes that beam search kept."""

    code: list[str]
    score: float
    num_items: int
    titles: list[str]
    complete: bool
    places: list[int]
    branches: list[BranchAnswer]


class LevelAnswer(BaseModel):
    """What beam search kept of one level."""

    kept: int
    prefixes: int
    share: float


class TreeAnswer(BaseModel):
    """What beam search kept."""

    branches: list[BranchAnswer]
    levels: list[LevelAnswer]


class ExplainAnswer(BaseModel):
    """A list and why: history, items and the beam tree."""

    history: list[tuple[str, str]]
    items: list[Recommended]
    tree: TreeAnswer
    left_out: list[str]


class ItemsAnswer(BaseModel):
    """A page of the catalogue."""

    total: int = Field(description="Items found, on all pages.")
    page: int
    items: list[Item]


class StateAnswer(BaseModel):
    """What is served."""

    run: str
    method: Method
    num_items: int
    version: str
    compare: str | None = Field(None, description="The run that answers below /compare; null: none does.")
    replica: str | None = Field(None, description="Which of several replicas answered; null: there is one.")


class ErrorDetail(BaseModel):
    """What was wrong."""

    code: str = Field(description="For programs: stays the same from release to release.")
    message: str = Field(description="For people.")


class ErrorAnswer(BaseModel):
    """The one form of every error."""

    error: ErrorDetail


# ---------------------------------------------------------------- the service


class ApiError(Exception):
    """Raised where a request gets an error for an answer."""

    def __init__(self, status: int, code: str, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after_s = status, code, retry_after_s

    def response(self) -> JSONResponse:
        """Returns it as it is sent."""
        # A text of the request may hold what UTF-8 cannot.
        message = str(self).encode("utf-8", "replace").decode()
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(
            {"error": {"code": self.code, "message": message}}, status_code=self.status, headers=headers
        )


# What went wrong with a request, by the error of genrec.
_CODES: dict[type[GenrecError], tuple[int, str]] = {
    UnknownItemError: (422, "unknown_item"),
    DataError: (422, "invalid_request"),
    RunError: (422, "not_possible"),
    IndexingError: (409, "not_possible"),
    ModelError: (500, "model_broken"),
}

_Kind = Literal["recommend", "score", "explain"]


@dataclass(frozen=True)
class _Job:
    served: _Served
    kind: _Kind
    ask: Ask
    items: Sequence[ItemId] = ()


class _Served:
    """A recommender that is served, and its titles as they are searched."""

    def __init__(self, recommender: Recommender, run: str) -> None:
        self.recommender, self.run = recommender, run
        items = recommender.items
        self.titles = [(item, items.title(item)) for item in items.item_ids]
        self.folded = [f"{title}\n{item}".casefold() for item, title in self.titles]

    def search(self, query: str, page: int, size: int) -> ItemsAnswer:
        """Returns a page of the items whose title or id has every word of a query."""
        words = query.casefold().split()
        found = range(len(self.folded))
        rows = [row for row in found if all(word in self.folded[row] for word in words)] if words else found
        shown = [self.titles[row] for row in rows[(page - 1) * size : page * size]]
        items = [Item(item_id=item, title=title, code=self.code(item)) for item, title in shown]
        return ItemsAnswer(total=len(rows), page=page, items=items)

    def code(self, item: ItemId) -> list[str]:
        """Returns an item's tokens."""
        return list(self.recommender.index.codes.get(item, ()))

    def state(self) -> StateAnswer:
        """Returns what it is."""
        return StateAnswer(
            run=self.run, method=self.recommender.method, num_items=len(self.titles), version=__version__
        )


class Service:
    """What the endpoints share: the recommender of this moment, the batches, the limits and the counts.

    A request is answered by the recommender that was served when it was taken. Another one is made beside it, tried, and then
    put in its place in one step.

    Attributes:
        served: What is served now.
        beside: The service of a second run, to compare with, or None.
        replica: Its name, where it is one of several, or None.
        stopping: Whether new requests are refused.
        taken: Requests that passed all limits.
        answered: Those that have their answer.
    """

    def __init__(
        self,
        recommender: Recommender,
        settings: ServerSettings,
        run: str,
        beside: Service | None = None,
        replica: str | None = None,
    ) -> None:
        self.settings, self.served = settings, _Served(recommender, run)
        self.beside, self.replica = beside, replica
        self.stopping, self.taken, self.answered = False, 0, 0
        self.registry = prometheus.CollectorRegistry()
        counts = functools.partial(prometheus.Counter, registry=self.registry)
        spans = functools.partial(prometheus.Histogram, registry=self.registry)
        gauge = functools.partial(prometheus.Gauge, registry=self.registry)
        self.requests = counts("genrec_requests", "Requests by path and status.", ["path", "status"])
        self.seconds = spans("genrec_request_seconds", "Seconds to the whole answer.", ["path"])
        sizes = spans("genrec_batch_size", "Requests answered together.", buckets=(1, 2, 4, 8, 16, 32, 64))
        batch_s = spans("genrec_batch_seconds", "Seconds of the model for a batch.")
        self.switches = counts("genrec_switches", "Changes of catalogue or model.", ["kind"])
        gauge("genrec_items", "Items of the catalogue.").set_function(lambda: len(self.served.titles))
        gauge("genrec_waiting", "Requests that wait.").set_function(lambda: len(self.batcher))
        gauge("genrec_open", "Requests without their answer.").set_function(
            lambda: self.taken - self.answered
        )

        def observe(size: int, seconds: float) -> None:
            sizes.observe(size)
            batch_s.observe(seconds)

        self.batcher: Batcher[_Job] = Batcher(
            _answers, settings.max_batch, settings.max_wait_ms / 1000, settings.max_queue, observe
        )
        self._changing = asyncio.Lock()
        # One thread makes all changes: memory that a model was read into is used again by the thread that freed it, and a pool's
        # threads kept half as much again for each of them (measured: 1,130 MB instead of 775 after 24 switches).
        self._changer = ThreadPoolExecutor(1, thread_name_prefix="genrec-changes")
        self._rates: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def ask(self, kind: _Kind, body: AskBody, items: Sequence[ItemId] = ()) -> tuple[Any, list[str]]:
        """Returns the answer of the recommender, and what was left out of the history.

        Raises:
            ApiError: If the request is wrong, too many wait, or its time is over.
        """
        served = self.served
        options = body.model_dump(exclude={"items"}, exclude_none=True)
        history, left_out = body.history, []
        if history is None:
            history = await run_in_threadpool(_history, served.recommender, cast(str, body.user_id))
        elif body.unknown == "skip":
            known = served.recommender.items
            left_out = [item for item in history if item not in known]
            history = [item for item in history if item in known]
        options["history"] = history
        answer = await self._wait(_Job(served, kind, Ask(**options), items))
        return answer, left_out

    async def _wait(self, job: _Job) -> Any:
        try:
            future = asyncio.wrap_future(self.batcher.submit(job))
        except Refused as refused:
            if refused.stopping:
                raise _stopping() from refused
            raise ApiError(
                503, "overloaded", "Too many requests are waiting. Try again later.", refused.retry_after_s
            ) from refused
        try:
            return await asyncio.wait_for(future, self.settings.timeout_s)
        except TimeoutError as error:
            raise ApiError(
                504, "timeout", f"There was no answer within {self.settings.timeout_s:g} s.", 1
            ) from error

    async def change(self, kind: str, make: Callable[[_Served], _Served]) -> StateAnswer:
        """Returns what is served after a change, which was made beside what is served now; one after the other.

        Raises:
            ApiError: If this is one of several replicas, or the change is not possible.
        """
        if self.replica is not None:
            raise ApiError(
                409,
                "not_possible",
                "This is one of several replicas, and the others would not know of the change. Deploy another run in their place.",
            )
        async with self._changing:
            new = await asyncio.get_running_loop().run_in_executor(self._changer, make, self.served)
            if kind == "items":  # shares its model with what is served: so it is asked between two batches
                await self._wait(_Job(new, "recommend", Ask([], k=1)))
            self.served = new
        self.switches.labels(kind).inc()
        return self.state()

    def close(self) -> None:
        """Returns when all that was taken is answered and no change is under way."""
        self.batcher.close()
        self._changer.shutdown()

    def state(self) -> StateAnswer:
        """Returns what is served now, and what beside it."""
        compare = self.beside and self.beside.served.run
        return self.served.state().model_copy(update={"compare": compare, "replica": self.replica})

    def load(self, name: str) -> _Served:
        """Returns the run of that name below the models root, read and tried.

        Raises:
            ApiError: If there is none, it lies elsewhere, or it cannot be served.
        """
        root = self.settings.models_root
        if root is None:
            raise ApiError(403, "not_allowed", "This server has no models root, so it serves one run only.")
        try:
            root, path = root.resolve(), (root / name).resolve()
        except (OSError, RuntimeError):  # links that go round in circles
            path = root
        if path == root or not path.is_relative_to(root):
            raise ApiError(422, "not_allowed", f"{name!r} is no folder below the models root.")
        if not path.is_dir():
            raise ApiError(404, "unknown_run", f"There is no run {name!r} below the models root.")
        try:
            recommender = Recommender.from_pretrained(path, self.settings.dtype)
            recommender.recommend([[]], k=1)
        except GenrecError as error:
            raise ApiError(422, "not_possible", f"{error} The run that was served stays.") from error
        return _Served(recommender, name)

    def check_rate(self, client: str) -> None:
        """Counts a request of a client; raises ApiError if it sends too many."""
        rate = self.settings.rate_limit
        if rate is None:
            return
        most, now = max(1.0, 2 * rate), time.monotonic()
        left, since = self._rates.pop(client, (most, now))
        left = min(most, left + (now - since) * rate)
        self._rates[client] = (max(left - 1, 0.0) if left >= 1 else left, now)
        if len(self._rates) > _MOST_CLIENTS:
            self._rates.popitem(last=False)
        if left < 1:
            wait = max(1, math.ceil((1 - left) / rate))
            raise ApiError(429, "too_many_requests", f"More than {rate:g} requests a second.", wait)

    def check_token(self, authorization: bytes) -> None:
        """Raises ApiError unless a header brings the token."""
        token = self.settings.token
        if token is None:
            return
        kind, _, given = authorization.partition(b" ")
        if not hmac.compare_digest(given.strip(), token.encode()) or kind.lower() != b"bearer":
            raise ApiError(401, "unauthorised", "Send the server's token as Authorization: Bearer TOKEN.")


def _stopping() -> ApiError:
    return ApiError(503, "stopping", "The server is stopping. Ask another, or try again later.", 5)


def _history(recommender: Recommender, user_id: str) -> list[ItemId]:
    try:
        return recommender.history(user_id)
    except DataError as error:  # which names users that are like it
        raise ApiError(
            404, "unknown_user", "The run has no history of this user. Give a history instead."
        ) from error


def _answers(jobs: Sequence[_Job]) -> list[Any]:
    """Returns the answer, or the error, of each job; those of a kind and a recommender are asked for together."""
    answers: list[Any] = [None] * len(jobs)
    groups: dict[tuple[int, _Kind], list[int]] = {}
    for number, job in enumerate(jobs):
        groups.setdefault((id(job.served), job.kind), []).append(number)
    for (_, kind), rows in groups.items():
        recommender, asks = jobs[rows[0]].served.recommender, [jobs[row].ask for row in rows]
        found: Sequence[Any]
        try:
            if kind == "recommend":
                found = recommender.recommend_each(asks)
            elif kind == "score":
                found = recommender.score_each([(jobs[row].ask, jobs[row].items) for row in rows])
            else:
                found = [_explained(recommender, ask) for ask in asks]
        except Exception as error:  # the other kinds have their answers all the same
            found = [error] * len(rows)
        for row, answer in zip(rows, found, strict=True):
            answers[row] = answer
    return answers


def _explained(recommender: Recommender, ask: Ask) -> Any:
    options = {f.name: getattr(ask, f.name) for f in dataclasses.fields(ask) if f.name != "method"}
    try:
        if (ask.method or recommender.method) != "constrained":
            raise DataError("What beam search kept is there for method='constrained' alone.")
        return recommender.explain(**options)
    except GenrecError as error:
        return error


class _Guard:
    """What stands before every endpoint: stopping, token, rate, size and time of the body; and counts what passes."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service, self._reading = app, service, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        service, began, status = self._service, time.monotonic(), 500
        first = scope["path"].split("/")[1]
        path = first if first in _PATHS else "other"

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if service.stopping:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        taken = False
        try:
            body = await self._admitted(scope, receive)
            service.taken, taken = service.taken + 1, True
            await self._app(scope, body, counted)
        except ApiError as error:
            await error.response()(scope, receive, counted)
        finally:
            service.answered += taken
            service.requests.labels(path, str(status)).inc()
            service.seconds.labels(path).observe(time.monotonic() - began)

    async def _admitted(self, scope: Scope, receive: Receive) -> Receive:
        """Returns a ``receive`` that has the whole body; raises ApiError where the request is not taken."""
        service, settings = self._service, self._service.settings
        if scope["path"] not in _OPEN and not scope["path"].startswith(f"{_DOCS_FILES}/"):
            if service.stopping:
                raise _stopping()
            headers = dict(scope["headers"])
            service.check_token(headers.get(b"authorization", b""))
            service.check_rate(scope["client"][0] if scope["client"] else "")
        if self._reading >= settings.max_queue:
            raise ApiError(503, "overloaded", "Too many requests are being sent. Try again later.", 1)
        self._reading += 1
        try:
            async with asyncio.timeout(settings.timeout_s):
                body = await _body(receive, settings.max_body_bytes)
        except TimeoutError as error:
            raise ApiError(
                408, "timeout", f"The request took longer than {settings.timeout_s:g} s."
            ) from error
        finally:
            self._reading -= 1
        left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return left.pop() if left else await receive()

        return again


async def _body(receive: Receive, most: int) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise ApiError(413, "too_large", f"A request has at most {most:,} bytes.")
        if not message.get("more_body", False):
            return b"".join(parts)


# ---------------------------------------------------------------- the application


def create_app(
    recommender: Recommender,
    settings: ServerSettings | None = None,
    run: str = "",
    compare: tuple[Recommender, str] | None = None,
    replica: str | None = None,
) -> FastAPI:
    """Returns the application of a recommender; ``app.state.service`` is its ``Service``.

    Args:
        recommender: What is served first.
        settings: Limits; default those of ``ServerSettings``.
        run: Its name, as ``/ready`` says it; default that of its folder.
        compare: A second recommender and its name, which answers the same endpoints below ``/compare``.
        replica: Its name among several that answer for one another; such a one refuses changes, and has no figures.
    """
    settings = settings or ServerSettings()
    beside = None if compare is None else Service(compare[0], settings, compare[1])
    service = Service(recommender, settings, run or recommender.run_dir.name, beside, replica)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.stopping = True
        for each in (service, beside):
            if each is not None:
                await run_in_threadpool(each.close)

    wrong: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorAnswer, "description": HTTPStatus(status).phrase}
        for status in (400, 401, 403, 404, 405, 408, 409, 413, 422, 429, 500, 503, 504)
    }
    app = FastAPIOffline(  # /docs with its script and style, which FastAPI's own would fetch from a public network
        static_url=_DOCS_FILES,
        title="genrec",
        version=__version__,
        description="Recommends items that exist. Every error has one form: error.code for programs, error.message for people.",
        lifespan=lifespan,
        responses=wrong,
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(_Guard, service=service)

    def answered(error: Exception) -> Response:
        if isinstance(error, GenrecError):
            status, code = next(
                (_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), (500, "failed")
            )
            return ApiError(status, code, str(error)).response()
        if isinstance(error, RequestValidationError):
            said = "; ".join(
                f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:5]
            )
            return ApiError(422, "invalid_request", said).response()
        if isinstance(error, HTTPException):
            code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
            response = ApiError(error.status_code, code, str(error.detail)).response()
            response.headers.update(error.headers or {})
            return response
        if isinstance(error, ApiError):
            return error.response()
        return ApiError(500, "failed", "The server failed; its log says how.").response()

    async def handler(_: Request, error: Exception) -> Response:
        return answered(error)

    for kind in (GenrecError, RequestValidationError, HTTPException, ApiError, Exception):
        app.add_exception_handler(kind, handler)

    for path, name in _PAGE.items():
        app.add_api_route(path, functools.partial(_page_file, name), include_in_schema=False)
    app.include_router(_routes(service))
    if beside is not None:
        app.include_router(_routes(beside), prefix="/compare")
    return app


def _page_file(name: str) -> Response:
    text = (resources.files("genrec.serving") / "page" / name).read_text("utf-8")
    kind = {"html": "text/html", "js": "text/javascript", "css": "text/css"}[name.rpartition(".")[2]]
    return Response(COLOURS + text if kind == "text/css" else text, media_type=kind, headers=_PAGE_HEADERS)


def _routes(service: Service) -> APIRouter:
    """Returns the endpoints of a service."""
    router = APIRouter()

    @router.post("/recommend", summary="The best items for a history or a user")
    async def recommend(body: Annotated[ListBody, Body()]) -> ListAnswer:
        found, left_out = await service.ask("recommend", body)
        return ListAnswer(items=_listed(found), left_out=left_out)

    @router.post("/score", summary="The model's scores of given items after a history")
    async def score(body: Annotated[ScoreBody, Body()]) -> ScoreAnswer:
        found, left_out = await service.ask("score", body, body.items)
        return ScoreAnswer(
            scores=[value if math.isfinite(value) else None for value in found], left_out=left_out
        )

    @router.post("/explain", summary="A list, and the prefixes of codes that beam search kept")
    async def explain(body: Annotated[ListBody, Body()]) -> ExplainAnswer:
        found, left_out = await service.ask("explain", body)
        tree = dataclasses.asdict(found.tree)
        return ExplainAnswer(
            history=found.history,
            items=_listed(found.recommendations),
            tree=TreeAnswer.model_validate(tree),
            left_out=left_out,
        )

    @router.get("/items", summary="Items of the catalogue, searched by words of their titles or ids")
    async def items(
        query: Annotated[str, Query(max_length=200)] = "",
        page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
        page_size: Annotated[int, Query(ge=1, le=200)] = 20,
    ) -> ItemsAnswer:
        return await run_in_threadpool(service.served.search, query, page, page_size)

    @router.put("/items", summary="Add items, which are named by their texts; nothing is trained")
    async def add(body: Annotated[NewItemsBody, Body()]) -> StateAnswer:
        def longer(now: _Served) -> _Served:
            rows = [item.model_dump(exclude_none=True) for item in body.items]
            names = list(dict.fromkeys(name for row in rows for name in row))
            table = pa.table({name: [row.get(name) for row in rows] for name in names})
            try:
                new = now.recommender.extend(ItemCatalog.from_table(table), body.titles_only)
            except DataError as error:
                known = any(item.item_id in now.recommender.items for item in body.items)
                raise ApiError(409 if known else 422, "not_possible", str(error)) from error
            return _Served(new, now.run)

        return await service.change("items", longer)

    @router.delete("/items/{item_id:path}", summary="Remove an item")
    async def remove(item_id: str) -> StateAnswer:
        def shorter(now: _Served) -> _Served:
            if item_id not in now.recommender.items:
                raise ApiError(404, "unknown_item", f"Item {item_id!r} is not in the catalogue.")
            if len(now.titles) == 1:
                raise ApiError(409, "not_possible", "The last item cannot be removed.")
            return _Served(now.recommender.remove([item_id]), now.run)

        return await service.change("items", shorter)

    @router.post("/models", summary="Switch to another run, with its own catalogue, without a failed request")
    async def switch(body: Annotated[ModelBody, Body()]) -> StateAnswer:
        return await service.change("model", lambda _: service.load(body.run))

    @router.get("/health", summary="Whether the process lives")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @router.get("/ready", summary="Whether it takes requests, and what it serves")
    async def ready() -> StateAnswer:
        if service.stopping:
            raise _stopping()
        return service.state()

    @router.get("/metrics", summary="Figures for Prometheus", response_class=Response)
    async def metrics() -> Response:
        if service.replica is not None:
            raise ApiError(
                409, "not_possible", "These would be figures of one replica. Ray exports those of all."
            )
        return Response(prometheus.generate_latest(service.registry), media_type="text/plain; version=0.0.4")

    return router


def _listed(found: Sequence[Any]) -> list[Recommended]:
    return [
        Recommended(item_id=item.item_id, title=item.title, code=list(item.code), score=item.score)
        for item in found
    ]


class _Server(uvicorn.Server):
    """uvicorn, which at SIGTERM answers what was taken, refuses the rest, and ends as any other command."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            say(
                f"  serving at http://{f'[{host}]' if ':' in host else host}:{port}, a page to try it; how to ask: /docs"
            )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._service.stopping = True
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True


def serve(run: str | Path, settings: ServerSettings | None = None, compare: str | Path | None = None) -> None:
    """Serves a run until SIGTERM or SIGINT, and then returns when every request that was taken has its answer.

    Args:
        run: Folder of a finished run, or a Hub id.
        settings: How.
        compare: A second run, which answers below ``/compare``; its model is held in memory too.

    Raises:
        RunError: If the run cannot be served, or the address cannot be listened on.
    """
    settings = settings or ServerSettings()
    if settings.token is None and settings.host not in ("127.0.0.1", "::1", "localhost"):
        say(f"  warning: {settings.host} can be reached by others, and no token is asked for (--token-env)")
    first = Recommender.from_pretrained(run, settings.dtype)
    second = None
    if compare is not None:
        second = (Recommender.from_pretrained(compare, settings.dtype), Path(compare).name)
    app = create_app(first, settings, Path(run).name, second)
    service: Service = app.state.service
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        proxy_headers=False,  # else whoever sends X-Forwarded-For has as many rates as it likes
        server_header=False,
        lifespan="on",
    )
    server = _Server(config, service)
    try:
        server.run()
    except SystemExit as error:  # uvicorn has said why
        raise RunError(
            f"{settings.host}:{settings.port} cannot be listened on. Give another --port."
        ) from error
    say(f"  stopped: {service.taken:,} requests were taken and {service.answered:,} answered")
