"""Concurrent requests, answered together by one worker thread, with a bound on how many may wait."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Job = TypeVar("Job")


class Refused(Exception):
    """Raised for a job that is not taken.

    Attributes:
        retry_after_s: Whole seconds after which it may be tried again.
        stopping: Whether no job is taken any more; else too many wait.
    """

    def __init__(self, retry_after_s: int, stopping: bool) -> None:
        super().__init__("stopping" if stopping else "too many requests are waiting")
        self.retry_after_s, self.stopping = retry_after_s, stopping


@dataclass(frozen=True)
class _Waiting(Generic[Job]):
    job: Job
    answer: Future[Any] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Batcher(Generic[Job]):
    """Hands jobs that come at the same time to one function together, in a thread of its own.

    The first job of a batch waits for others at most ``max_wait_s`` after it came, and not at all where enough are there. While a
    batch is worked on, what comes gathers for the next: so the busier, the larger the batches.

    Args:
        work: Returns an answer for each job, in their order; one that is an exception is raised to whoever asked.
        max_batch: Jobs that are handed over together.
        max_wait_s: Seconds.
        max_queue: Jobs that may wait; one more is refused.
        observe: Is told the size of each batch and how many seconds it took.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Job]], Sequence[Any]],
        max_batch: int,
        max_wait_s: float,
        max_queue: int,
        observe: Callable[[int, float], None] = lambda *_: None,
    ) -> None:
        self._work, self._observe = work, observe
        self._max_batch, self._max_wait_s, self._max_queue = max_batch, max_wait_s, max_queue
        self._queue: deque[_Waiting[Job]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._job_s = 0.0  # moving mean of what a job takes
        self._thread = threading.Thread(target=self._run, name="genrec-batches", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Returns how many jobs wait."""
        return len(self._queue)

    def submit(self, job: Job) -> Future[Any]:
        """Returns the future answer to a job. One that is cancelled before its turn is never worked on.

        Raises:
            Refused: If as many wait as may, or the batcher was closed.
        """
        with self._changed:
            if self._closing or len(self._queue) >= self._max_queue:
                wait = max(1, math.ceil(self._job_s * len(self._queue)))
                raise Refused(wait, self._closing)
            waiting = _Waiting(job)
            self._queue.append(waiting)
            self._changed.notify()
        return waiting.answer

    def close(self) -> None:
        """Refuses new jobs, and returns when all that were taken are answered."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            began = time.monotonic()
            try:
                answers: Sequence[Any] = self._work([waiting.job for waiting in batch])
            except Exception as error:  # the thread has to live on, and whoever asked has to know
                answers = [error] * len(batch)
            seconds = time.monotonic() - began
            self._job_s += 0.2 * (seconds / len(batch) - self._job_s)
            self._observe(len(batch), seconds)
            for waiting, answer in zip(batch, answers, strict=True):
                if isinstance(answer, Exception):
                    waiting.answer.set_exception(answer)
                else:
                    waiting.answer.set_result(answer)
            # Else the last batch would be held until the next one comes.
            del batch, answers, waiting, answer

    def _next(self) -> list[_Waiting[Job]]:
        """Returns the jobs of the next batch; none once it is closed and nothing waits."""
        while True:
            with self._changed:
                while not self._queue:
                    if self._closing:
                        return []
                    self._changed.wait()
                until = self._queue[0].since + self._max_wait_s
                while len(self._queue) < self._max_batch and not self._closing:
                    if (left := until - time.monotonic()) <= 0:
                        break
                    self._changed.wait(left)
                size = min(self._max_batch, len(self._queue))
                taken = [self._queue.popleft() for _ in range(size)]
            if batch := [waiting for waiting in taken if waiting.answer.set_running_or_notify_cancel()]:
                return batch
