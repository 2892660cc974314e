"""Processes that share the groups of an experiment, each on a core of its own.

On a CPU a small network leaves cores idle: two processes of one thread do half as much again as one of two threads. The
parent hands out one group at a time and has the only store, so a worker that dies costs the unit at work alone.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

from experiments import console, failures
from experiments.files import ResultsError, dumps
from experiments.plan import Plan, Unit

# Of a process that has one core.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
# Linux: page faults of small pages took 20 of 140 ms of a step of `strided_cnn` on an AMD EPYC.
_LARGE_PAGES = "glibc.malloc.hugetlb=1"


@contextlib.contextmanager
def _environment(core: int, compiled: str) -> Iterator[None]:
    """Let a process that is started inside have one core, and its libraries know of no other.

    ``compiled`` is the folder where processes leave to each other what they compiled, unless the user names one.
    """
    ours = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    before = dict(os.environ)
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    if "JAX_COMPILATION_CACHE_DIR" not in before:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    os.environ["GLIBC_TUNABLES"] = ":".join([_LARGE_PAGES, *before.get("GLIBC_TUNABLES", "").split(":")]).rstrip(":")
    os.environ["XLA_FLAGS"] = f"{before.get('XLA_FLAGS', '')} {_ONE_THREAD}".strip()
    try:
        if ours:
            os.sched_setaffinity(0, {core})  # of this thread, which the new process inherits
        yield
    finally:
        if ours:
            os.sched_setaffinity(0, ours)
        os.environ.clear()
        os.environ.update(before)


class Began(NamedTuple):
    """What is at work now; a process that dies costs this unit, or without one the group."""

    unit: str


class Finished(NamedTuple):
    """A row to be stored."""

    row: Mapping[str, Any]


class Failed(NamedTuple):
    """A unit that could not be finished, and what `failures.describe` says of it."""

    unit: str
    description: Mapping[str, Any]


class Told(NamedTuple):
    """How far a group is: what it does, and how many units, or parts of one, more are done."""

    text: str = ""
    advance: float = 0.0


Event = Began | Finished | Failed | Told


def run_group(plan: Plan, group: Sequence[Unit], done: set[str], workdir: Path, tell: Callable[[Event], None]) -> None:
    """Run the units of a group that are not done, whatever becomes of the others; ``tell`` stores each row.

    Raises:
      ResultsError: of the workdir, where nothing else can be stored either.
    """
    missing = [unit for unit in group if unit.name not in done]
    left = plan.shared_part * len(missing)

    def show(text: str = "", advance: float = 0.0) -> None:
        nonlocal left
        advance = min(advance, left)
        left -= advance
        tell(Told(text, advance))

    try:
        shared = plan.share(group, len(missing), workdir, show)
    except ResultsError:
        raise
    except (Exception, SystemExit) as error:  # whatever is wrong with one group is no reason to leave out the others
        for unit in missing:
            tell(Failed(unit.name, failures.describe(error)))
        tell(Told(advance=left + (1 - plan.shared_part) * len(missing)))
        return
    show(advance=left)
    for unit in missing:
        tell(Began(unit.name))
        try:
            row = plan.row(unit, shared, workdir, show)
            dumps(row)  # what is no row of JSON fails this unit alone
        except ResultsError:
            raise
        except (Exception, SystemExit) as error:
            tell(Failed(unit.name, failures.describe(error)))
        else:
            tell(Finished(row))
            plan.clear(unit, workdir)
        tell(Told(advance=1 - plan.shared_part))


def cores() -> list[int]:
    """List the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


class Pool:
    """Worker processes; a context manager that ends them all, however it is left."""

    def __init__(self, module: str, config: Any, workdir: Path, count: int):
        self._arguments = (module, config, workdir)
        self._compiled = tempfile.TemporaryDirectory(prefix="nn_adv-compiled-")
        self._workers = {place: self._start(place) for place in range(count)}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exception: object) -> None:
        for process, _ in self._workers.values():
            process.kill()
        for process, pipe in self._workers.values():
            process.join()
            pipe.close()
        self._compiled.cleanup()

    def _start(self, place: int):
        context = multiprocessing.get_context("spawn")  # a fork would share JAX's threads and locks
        own, theirs = context.Pipe()
        core = cores()[place % len(cores())]
        process = context.Process(target=_work, args=(theirs, *self._arguments), daemon=True)
        with _environment(core, self._compiled.name):
            process.start()
        theirs.close()  # so that the end of the worker is the end of the pipe
        return process, own

    def run(self, jobs: Mapping[int, Sequence[str]], done: Callable[[], set[str]]) -> Iterator[Event]:
        """Hand out groups by their numbers; yield what the workers say as it comes.

        Args:
          jobs: number of each group in the plan, with the names of its units.
          done: names of the units that have rows; asked before each group.
        """
        waiting, failed = list(jobs), set[str]()
        at_work: dict[int, int] = {}
        units: dict[int, str] = {}
        texts: dict[int, str] = {}

        def give(place: int) -> None:
            if not waiting:
                return
            at_work[place] = waiting.pop(0)
            units.pop(place, None)
            try:
                self._workers[place][1].send((at_work[place], done() | failed))
            except OSError:  # it died without a job
                self._workers[place] = self._start(place)
                self._workers[place][1].send((at_work[place], done() | failed))

        for place in self._workers:
            give(place)
        while at_work:
            ready = connection.wait([self._workers[place][1] for place in at_work])
            for place in [place for place in at_work if self._workers[place][1] in ready]:
                pipe = self._workers[place][1]
                try:
                    said = pipe.recv()
                except (EOFError, OSError):
                    job = at_work.pop(place)
                    texts.pop(place, None)
                    for lost in self._lost(place, units.get(place), jobs[job], done() | failed):
                        failed.add(lost.unit)
                        yield lost
                        yield Told(advance=1.0)
                    if set(jobs[job]) - done() - failed:  # it is not theirs
                        waiting.insert(0, job)
                    if waiting:
                        self._workers[place] = self._start(place)
                        give(place)
                    continue
                match said:
                    case Told(text, advance):
                        texts[place] = text or texts.get(place, "")
                        yield Told(" | ".join(texts[one] for one in sorted(texts)), advance)
                    case Began(unit):
                        units[place] = unit
                    case None:  # it asks for another group
                        del at_work[place]
                        texts.pop(place, None)
                        give(place)
                    case Failed():
                        failed.add(said.unit)
                        yield said
                    case Finished():
                        yield said  # and it is stored
                        with contextlib.suppress(OSError):  # a worker that has died meanwhile is found above
                            pipe.send(None)
                    case ResultsError():  # of the workdir, where nothing else can be stored either
                        raise said

    def _lost(self, place: int, at_work: str | None, units: Sequence[str], done: set[str]) -> list[Failed]:
        """Bury a worker; return the units that it costs: the one at work; all of the group where none was yet."""
        process, pipe = self._workers[place]
        process.join()
        pipe.close()
        description = failures.describe(ChildProcessError(_how_it_ended(process.exitcode)))
        return [Failed(unit, description) for unit in ([at_work] if at_work else units) if unit not in done]


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        killed = signal.Signals(-exit_code).name
        hint = ", as for want of memory: --workers may be lower" if killed == "SIGKILL" else ""
        return f"its process was ended by {killed}{hint}"
    return f"its process ended with exit status {exit_code}"


def _work(pipe: connection.Connection, module: str, config: Any, workdir: Path) -> None:
    """Be a worker: make the plan, then run the groups that come through the pipe until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the parent hears it too, and ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    console.shorten_warnings()
    plan = importlib.import_module(module).make_plan(config)

    def tell(event: Event) -> None:
        pipe.send(event)
        if isinstance(event, Finished):
            pipe.recv()  # only what is stored may be cleared away

    while True:
        try:
            job, done = pipe.recv()
        except EOFError:
            return
        try:
            run_group(plan, plan.groups[job], done, workdir, tell)
            pipe.send(None)
        except ResultsError as error:
            pipe.send(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        sys.stderr.flush()
        os._exit(1)
