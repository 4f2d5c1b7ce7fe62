"""One process or several: who is the first, and where they meet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def num_processes() -> int:
    """Returns the number of processes of this launch, as its launcher set it; 1 for a plain run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Returns this process's number, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main_process() -> bool:
    """Returns whether this process is the first, which alone writes files and prints."""
    return rank() == 0


def process_state() -> Any:
    """Returns accelerate's state, in which the processes have met; its ``device`` is this process's.

    Left to itself accelerate takes several processes on a machine without an accelerator for unrelated
    ones, so the CPU is named.
    """
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


def wait() -> None:
    """Returns when every process is here."""
    if num_processes() > 1:
        process_state().wait_for_everyone()


def from_main(value: Any) -> Any:
    """Returns the main process's value in every process."""
    if num_processes() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    process_state()
    return broadcast_object_list([value])[0]


def any_of_them(value: bool) -> bool:
    """Returns whether it holds in any process; every process has to ask."""
    if num_processes() == 1:
        return value
    import torch
    from accelerate.utils import gather

    found = gather(torch.tensor([value], dtype=torch.int32, device=process_state().device))
    return bool(found.any())


def divided(num: int, work: Callable[[Sequence[int]], Iterable[T]]) -> list[T]:
    """Returns what ``work`` gives for the rows 0 to ``num - 1``, in their order, each process doing its share.

    Every process has to ask, and gets all of it.

    Args:
        num: Rows.
        work: Gives as many values as it is given rows.

    Raises:
        RuntimeError: If it gives fewer or more.
    """
    mine = range(rank(), num, num_processes())
    part = dict(zip(mine, found := list(work(mine)), strict=False))
    everyone = gather_dict(part if len(found) == len(mine) else {})
    if len(everyone) != num:
        raise RuntimeError(f"{len(everyone):,} of {num:,} rows were done; every row must be, once.")
    return [everyone[row] for row in range(num)]


def gather_dict(part: dict) -> dict:
    """Returns the union of every process's dictionary, in every process."""
    if num_processes() == 1:
        return part
    from accelerate.utils import gather_object

    process_state()
    return dict(gather_object(list(part.items())))
