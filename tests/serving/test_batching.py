import threading
import time
from concurrent.futures import CancelledError

import pytest

from genrec.serving.batching import Batcher, Refused


class Gate:
    """Work that waits until it is let go on, and remembers its batches."""

    def __init__(self):
        self.batches, self.begun, self.go_on = [], threading.Event(), threading.Event()

    def __call__(self, jobs):
        self.batches.append(list(jobs))
        self.begun.set()
        assert self.go_on.wait(20)
        return [ValueError(job) if job == "bad" else f"{job}!" for job in jobs]


def test_what_comes_while_one_batch_is_worked_on_is_the_next():
    gate = Gate()
    batcher = Batcher(gate, max_batch=3, max_wait_s=0, max_queue=5)
    answers = [batcher.submit("a")]
    assert gate.begun.wait(20)
    answers += [batcher.submit(job) for job in ("b", "bad", "c", "d")]
    gate.go_on.set()
    batcher.close()
    assert gate.batches == [["a"], ["b", "bad", "c"], ["d"]]
    with pytest.raises(ValueError, match="bad"):
        answers.pop(2).result()
    assert [answer.result() for answer in answers] == ["a!", "b!", "c!", "d!"]
    with pytest.raises(Refused) as refused:
        batcher.submit("late")
    assert refused.value.stopping


def test_one_more_than_may_wait_is_refused_and_one_given_up_is_not_worked_on():
    gate = Gate()
    batcher = Batcher(gate, max_batch=8, max_wait_s=0, max_queue=2)
    first = batcher.submit("a")
    assert gate.begun.wait(20)
    given_up, kept = batcher.submit("b"), batcher.submit("c")
    assert len(batcher) == 2
    with pytest.raises(Refused) as refused:
        batcher.submit("d")
    assert not refused.value.stopping
    assert refused.value.retry_after_s >= 1
    assert given_up.cancel()
    gate.go_on.set()
    batcher.close()
    assert gate.batches == [["a"], ["c"]]
    assert (first.result(), kept.result()) == ("a!", "c!")
    with pytest.raises(CancelledError):
        given_up.result()


def test_a_lone_job_waits_no_longer_than_it_may_and_a_full_batch_not_at_all():
    seen = []
    batcher = Batcher(lambda jobs: jobs, 2, 60.0, 9, lambda size, _: seen.append(size))
    assert [answer.result(20) for answer in [batcher.submit(1), batcher.submit(2)]] == [1, 2]
    batcher.close()
    batcher = Batcher(lambda jobs: jobs, 2, 0.05, 9, lambda size, _: seen.append(size))
    began = time.monotonic()
    assert batcher.submit(3).result(20) == 3
    assert time.monotonic() - began >= 0.05
    batcher.close()
    assert seen == [2, 1]


def test_work_that_fails_fails_its_batch_alone():
    def work(jobs):
        if "bad" in jobs:
            raise RuntimeError("broken")
        return jobs

    batcher = Batcher(work, 1, 0, 9)
    bad, good = batcher.submit("bad"), batcher.submit("good")
    with pytest.raises(RuntimeError, match="broken"):
        bad.result(20)
    assert good.result(20) == "good"
    batcher.close()
