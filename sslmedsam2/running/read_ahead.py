"""Reading the next thing while the caller works on this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def read_ahead(items: Iterable[Item], load: Callable[[Item], Loaded]) -> Iterator[Loaded]:
    """Yield what ``load`` makes of each item, in order, with one more being loaded in a thread.

    No more than that: each may fill a good part of the memory. An error of ``load`` is raised in
    its item's turn and ends the iteration; ``items`` is drawn from in the caller's thread.
    """
    with ThreadPoolExecutor(1, "reader") as reader:
        ahead: Future[Loaded] | None = None
        for item in items:
            current, ahead = ahead, reader.submit(load, item)
            if current is not None:
                yield current.result()
        if ahead is not None:
            yield ahead.result()
