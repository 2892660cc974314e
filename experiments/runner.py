"""The one run loop: what is missing of an experiment, unit by unit, in this process or in several; then its report.

An experiment is a module with ``prepare(config) -> Experiment``. Everything else is here: the store of rows, what is
done already, shards, workers, progress, failures and the checks of what the rows say together.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import ml_collections
import tqdm

from experiments import console, failures, results, storage, workers
from experiments.checks import order_violations
from nn_adv.paths import as_path

Row = Mapping[str, Any]
_BAR = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"


class Unit(Protocol):
    """What gives one row."""

    @property
    def name(self) -> str:
        """Name of the unit's row, the same in every run."""


class Progress(Protocol):
    """Where a unit tells how far it is."""

    def show(self, text: str) -> None:
        """Say in a few words what is done."""

    def advance(self, units: float) -> None:
        """Count units, or parts of one, as done."""


class Report(NamedTuple):
    """The page of a report, and its main result as plain text."""

    page: Path
    summary: str


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment whose configuration is checked and whose data are there.

    Attributes:
      identity: plain values that decide what a row says; the rows of a workdir share them.
      groups: all units, those in groups that share work.
      rows: ``(group, done, workdir, progress)``: the rows of a group's units but those done, one after the other; each
        is stored before the next is asked for.
      needed_bytes: ``(groups)``: room on the disk.
      report: ``(workdir, rows, problems, failed, missing, share)``: write the report of one or more rows and return its
        page. ``failed`` are the records of units that could not be run, ``missing`` the names of the others without a
        row, ``share`` the groups of this shard.
      summary: ``(rows)``: the result as plain text, for the end of a run.
      skipped: names of units that are left out on this machine.
      before: ``(workdir, rows, share)``: lines to tell before the units of ``share`` start; raises ValueError where the
        stored rows are of something else.
    """

    identity: Mapping[str, Any]
    groups: Sequence[Sequence[Unit]]
    rows: Callable[[Sequence[Unit], set[str], Path, Progress], Iterator[Row]]
    needed_bytes: Callable[[Sequence[Sequence[Unit]]], int]
    report: Callable[..., Path]
    summary: Callable[[Sequence[Row]], str]
    skipped: frozenset[str] = frozenset()
    before: Callable[[Path, Sequence[Row], Sequence[Sequence[Unit]]], list[str]] = lambda *_: []


def run(
    module: ModuleType,
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    *,
    shard: tuple[int, int] = (0, 1),
    num_workers: int = 1,
) -> Report | None:
    """Run what is missing of an experiment, then write its report.

    Args:
      module: of the experiment.
      config: from the file of that name in `configs`.
      workdir: folder of rows, files and report; made if needed.
      shard: (index, count): run every ``count``-th group of units, from the ``index``-th on.
      num_workers: processes that share the groups; 1: this one.

    Returns:
      The report; None if there is no row yet, which a shard without work may find.

    Raises:
      ValueError: anything wrong with the configuration, the data or the workdir, before the long work starts; or, when
        all is done and reported, bounds that contradict each other.
      SomeFailed: all is done and reported but for the units that it names.
    """
    workdir = as_path(workdir, "workdir")
    experiment = module.prepare(config)
    share = experiment.groups[shard[0] :: shard[1]]
    with results.open_store(workdir, experiment.identity, shard=shard) as store:
        lines = experiment.before(workdir, results.read_rows(workdir)[0], share)
        mine = [group for group in share if _names([group]) - store.done() - experiment.skipped]
        storage.check_space(workdir, experiment.needed_bytes(mine))
        for line in (*store.problems, *lines):
            console.say(line, file=sys.stderr)
        with _Bar(len(_names(mine))) as bar:
            failed = _run_groups(module, config, experiment, mine, workdir, store, bar, num_workers)
    return _report(experiment, workdir, share, store.problems, failed)


def _run_groups(module, config, experiment, groups, workdir, store, bar, num_workers) -> list[str]:
    """Store the rows of all groups; return the names of the units that failed, whose reasons are recorded."""
    failed: list[str] = []

    def append(row: Row) -> None:
        # One title in all rows: an npz file may have been renamed since the first.
        title = {} if store.title is None else {"dataset": store.title}
        store.append({**row, **title, "config_hash": store.config_hash})
        failures.forget(workdir, row["unit"])

    def fail(group: Sequence[Unit], error: Exception) -> None:
        if isinstance(error, storage.ResultsError):  # of the workdir, where nothing else can be stored either
            raise error
        for name in sorted(_names([group]) - store.done() - experiment.skipped):
            failure = failures.record(workdir, name, error, **getattr(error, "details", {}))
            bar.tell(f"{name} failed: {failure['reason']}")
            failed.append(name)

    if num_workers > 1 and len(groups) > 1:
        jobs = [experiment.groups.index(group) for group in groups]
        pool = workers.Pool(module.__name__, config, workdir, min(num_workers, len(groups)))
        with pool:
            for event in pool.run(jobs, store.done):
                match event:
                    case workers.Finished(row=row):
                        append(row)
                    case workers.Failed(job=job, error=error):
                        fail(experiment.groups[job], error)
                    case workers.Told(text=text, advance=advance):
                        bar.show(text)
                        bar.advance(advance)
        return failed
    for group in groups:
        end = bar.done + len(_names([group]) - store.done())
        try:
            for row in experiment.rows(group, store.done(), workdir, bar):
                append(row)
        except Exception as error:  # whatever is wrong with one unit is no reason to leave out the others
            fail(group, error)
        bar.advance(end - bar.done)
    return failed


def _report(experiment: Experiment, workdir: Path, share, problems, failed: list[str]) -> Report | None:
    rows, still_there = results.read_rows(workdir)
    left_out = _names(share) & experiment.skipped
    missing = _names(experiment.groups) - left_out - {row["unit"] for row in rows}
    recorded = [failure for unit, failure in failures.read(workdir).items() if unit in missing]
    report, told = None, []
    if rows:
        problems = [*problems, *(line for line in still_there if line not in problems)]
        page = experiment.report(workdir, rows, problems, recorded, missing - {one["unit"] for one in recorded}, share)
        report = Report(page, experiment.summary(rows))
        if wrong := order_violations(rows):
            more = f" ({len(wrong)} in all)" if len(wrong) > 1 else ""
            told.append(
                f"certified <= exact <= attacked does not hold: {wrong[0]}{more}; all rows are kept, see {page}"
            )
    if failed:
        told.append(
            f"{len(failed)} of {len(_names(share) - left_out)} units failed, for the reasons given above: "
            f"{', '.join(failed)}; mend them, and run the same command again; it tries these alone"
        )
    if len(told) > bool(failed):
        raise ValueError("; ".join(told))
    if failed:
        raise failures.SomeFailed(told[0], report)
    return report


def _names(groups: Sequence[Sequence[Unit]]) -> set[str]:
    return {unit.name for group in groups for unit in group}


class _Bar:
    """A bar of units on the terminal, or a line from time to time in a log file."""

    def __init__(self, total: int):
        pause = 0.1 if sys.stderr.isatty() else 30  # seconds
        self._bar = tqdm.tqdm(
            total=total, mininterval=pause, miniters=0, dynamic_ncols=True, bar_format=_BAR, disable=not total
        )

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    @property
    def done(self) -> float:
        """Units so far."""
        return self._bar.n

    def show(self, text: str) -> None:
        """See `Progress`."""
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(0)  # shown when it is time for the next line

    def advance(self, units: float) -> None:
        """See `Progress`."""
        self._bar.update(min(units, self._bar.total - self._bar.n))

    def tell(self, line: str) -> None:
        """Print a line that stays."""
        with self._bar.external_write_mode(file=sys.stderr):
            console.say(line, file=sys.stderr)
