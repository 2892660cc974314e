"""Processes that share the groups of an experiment, each on a core of its own.

On a CPU a small network leaves cores idle: two processes of one thread do half as much again as one of two threads. The
parent hands out one group at a time and has the only store, so a worker that dies costs the units of its group alone.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

from experiments import console

# Of a process that has one core.
_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


class Finished(NamedTuple):
    """A row to be stored."""

    row: Mapping[str, Any]


class Failed(NamedTuple):
    """A group that could not be finished."""

    job: int
    error: Exception


class Told(NamedTuple):
    """How far the workers are: what each does, and how many units more are done."""

    text: str
    advance: float


class _Done(NamedTuple):
    """A worker asks for another group."""


def cores() -> list[int]:
    """List the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


class Pool:
    """Worker processes; a context manager that ends them all, however it is left."""

    def __init__(self, module: str, config: Any, workdir: Path, count: int):
        self._arguments = (module, config, workdir)
        self._workers = {place: self._start(place) for place in range(count)}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exception: object) -> None:
        for process, _ in self._workers.values():
            process.kill()
        for process, pipe in self._workers.values():
            process.join()
            pipe.close()

    def _start(self, place: int):
        context = multiprocessing.get_context("spawn")  # a fork would share JAX's threads and locks
        own, theirs = context.Pipe()
        core = cores()[place % len(cores())]
        process = context.Process(target=_work, args=(theirs, core, *self._arguments), daemon=True)
        before = os.environ.get("XLA_FLAGS")
        os.environ["XLA_FLAGS"] = f"{before or ''} {_ONE_THREAD}".strip()  # read when the worker first needs a device
        try:
            process.start()
        finally:
            os.environ.pop("XLA_FLAGS")
            if before is not None:
                os.environ["XLA_FLAGS"] = before
        theirs.close()  # so that the end of the worker is the end of the pipe
        return process, own

    def run(self, jobs: Sequence[int], done: Callable[[], set[str]]) -> Iterator[Finished | Failed | Told]:
        """Hand out groups by their numbers; yield what the workers say as it comes.

        Args:
          jobs: numbers of groups in the experiment.
          done: names of the units that have rows; asked before each group.
        """
        waiting = list(jobs)
        at_work: dict[int, int] = {}
        texts: dict[int, str] = {}

        def give(place: int) -> None:
            if not waiting:
                return
            at_work[place] = waiting.pop(0)
            try:
                self._workers[place][1].send((at_work[place], done()))
            except OSError:  # it died without a job
                self._workers[place] = self._start(place)
                self._workers[place][1].send((at_work[place], done()))

        for place in self._workers:
            give(place)
        while at_work:
            ready = connection.wait([self._workers[place][1] for place in at_work])
            for place in [place for place in at_work if self._workers[place][1] in ready]:
                pipe = self._workers[place][1]
                try:
                    said = pipe.recv()
                except (EOFError, OSError):
                    process = self._workers[place][0]
                    process.join()
                    pipe.close()
                    said = Failed(at_work[place], ChildProcessError(_how_it_ended(process.exitcode)))
                    if waiting:
                        self._workers[place] = self._start(place)
                match said:
                    case Told(text, advance):
                        texts[place] = text or texts.get(place, "")
                        yield Told(" | ".join(texts[one] for one in sorted(texts)), advance)
                    case _Done():
                        del at_work[place]
                        give(place)
                    case Failed():
                        yield said
                        del at_work[place]
                        give(place)
                    case Finished():
                        yield said  # and it is stored
                        pipe.send(None)


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        killed = signal.Signals(-exit_code).name
        hint = ", as for want of memory: --workers may be lower" if killed == "SIGKILL" else ""
        return f"its process was ended by {killed}{hint}"
    return f"its process ended with exit status {exit_code}"


class _Teller:
    """The progress of a group, as the parent hears of it."""

    def __init__(self, pipe: connection.Connection):
        self._pipe = pipe
        self.done = 0.0

    def show(self, text: str) -> None:
        self._pipe.send(Told(text, 0.0))

    def advance(self, units: float) -> None:
        self.done += units
        self._pipe.send(Told("", units))


def _work(pipe: connection.Connection, core: int, module: str, config: Any, workdir: Path) -> None:
    """Be a worker: prepare the experiment, then run the groups that come through the pipe until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the parent hears it too, and ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    console.shorten_warnings()
    experiment = importlib.import_module(module).prepare(config)
    while True:
        try:
            job, done = pipe.recv()
        except EOFError:
            return
        group, teller = experiment.groups[job], _Teller(pipe)
        try:
            for row in experiment.rows(group, done, workdir, teller):
                pipe.send(Finished(row))
                pipe.recv()  # only what is stored may be cleared away
        except Exception as error:  # for the parent to judge
            pipe.send(Failed(job, _portable(error)))
        else:
            teller.advance(sum(unit.name not in done for unit in group) - teller.done)
            pipe.send(_Done())


def _portable(error: Exception) -> Exception:
    """Return the error, or one that says the same, where it cannot travel between processes."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        sys.stderr.flush()
        os._exit(1)
