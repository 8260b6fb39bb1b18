"""Work that a thread does for requests: in their order, and small ones together."""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class _Job:
    key: Hashable
    task: Any
    size: int
    result: Future = field(default_factory=Future)


class WorkQueue:
    """One thread, and what waits for it.

    `work(key, tasks)` gives the result of each task, in their order, each as soon as it is there.
    It is called with the tasks that wait and have the same key as the first of them, of `most` size
    together, so that many small requests cost little more than a large one. How many may wait
    is bounded by who calls `run` (see uploads.Places).
    """

    def __init__(
        self, work: Callable[[Hashable, list], Iterable], most: int, name: str = "work queue"
    ):
        self._work = work
        self._most = most
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def run(self, key: Hashable, task: Any, size: int = 1) -> Any:
        """The result of a task, or the exception that it has raised.

        Should the caller be cancelled, a task that waits is never begun.
        """
        job = _Job(key, task, size)
        with self._changed:
            if self._closed:
                raise RuntimeError("the work queue is closed")
            self._waiting.append(job)
            self._changed.notify()
        return await asyncio.wrap_future(job.result)  # which cancels it with the caller

    def close(self) -> None:
        """Do nothing more; what is being done goes on to its end, without anybody waiting."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                jobs = self._next_jobs()
            if jobs:
                self._do(jobs)
            del jobs  # photos are not kept while waiting for the next

    def _next_jobs(self) -> list[_Job]:
        """Those of the first one's key, in their order, as far as they are not too many."""
        chosen: list[_Job] = []
        left: deque[_Job] = deque()
        size = 0
        for job in self._waiting:
            if job.result.cancelled():
                continue
            fits = not chosen or (job.key == chosen[0].key and size + job.size <= self._most)
            if fits:
                chosen.append(job)
                size += job.size
            else:
                left.append(job)
        self._waiting = left
        return chosen

    def _do(self, jobs: list[_Job]) -> None:
        try:
            results = self._work(jobs[0].key, [job.task for job in jobs])
            for job, result in zip(jobs, results, strict=True):
                with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
                    job.result.set_result(result)
        except Exception as error:
            for job in jobs:
                with contextlib.suppress(InvalidStateError):  # cancelled, or done before
                    job.result.set_exception(error)
