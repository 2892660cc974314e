"""The one run loop: what is missing of an experiment, unit by unit, in this process or in several; then its report.

An experiment is a module with ``make_plan(config) -> plan.Plan``. Everything else is here: the store of rows, what is
done already, shards, workers, progress, failures and the checks of what the rows say together.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

import jax
import ml_collections
import tqdm

from experiments import configuration, console, failures, report, store, workers
from experiments.plan import Plan, Unit
from experiments.report import Report
from nn_adv.paths import as_path

_BAR = "{n:.1f} of {total} units |{bar}| {elapsed}, {remaining} left {postfix}"


def run(
    module: ModuleType,
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    *,
    shard: tuple[int, int] = (0, 1),
    num_workers: int | None = 1,
    merge: Sequence[str | Path] = (),
    command: str = "",
) -> Report | None:
    """Run what is missing of an experiment, then write its report.

    Args:
      module: of the experiment.
      config: from the file of that name in `configs`.
      workdir: folder of rows, files and report; made if needed.
      shard: (index, count): run every ``count``-th group of units, from the ``index``-th on.
      num_workers: processes that share the groups; 1: this one; None: one for each core of a CPU, 1 on an accelerator.
      merge: other workdirs, run elsewhere, whose rows are copied first.
      command: what was typed to start this, for the report; empty: it says nothing of it.

    Returns:
      The report; None if there is no row yet, which a shard without work may find.

    Raises:
      ValueError: anything wrong with the configuration, the data or the workdir, before the long work starts; or, when
        all is done and reported, bounds that contradict each other.
      SomeFailed: all is done and reported but for the units that it names.
    """
    workdir = as_path(workdir, "workdir")
    plan = module.make_plan(config)
    part = plan.groups[shard[0] :: shard[1]]
    if merge:
        added, problems = store.merge(workdir, merge, plan.identity, lambda other, rows: plan.before(other, rows, part))
        console.say(f"{added} rows added to {workdir}", *problems)
    with store.open_store(workdir, plan.identity, shard=shard) as rows:
        lines = plan.before(workdir, store.read_rows(workdir)[0], part)
        mine = [group for group in part if _names([group]) - rows.done() - plan.skipped]
        if mine and num_workers is not None and num_workers > len(mine):
            tasks = f"{len(mine)} task" + "s" * (len(mine) > 1)
            lines = [*lines, f"--workers={num_workers} and {tasks} to be shared: the other processes have none"]
        for line in (*rows.problems, *lines):
            console.say(line, file=sys.stderr)
        _write_asked(plan, part, workdir, rows.done(), command)
        total = len(_names(mine) - rows.done() - plan.skipped)
        # A bar on a terminal, a line from time to time in a log file.
        pause = 0.1 if sys.stderr.isatty() else 30
        options = {"mininterval": pause, "miniters": 0, "dynamic_ncols": True, "bar_format": _BAR}
        with tqdm.tqdm(total=total, disable=not total, **options) as bar:
            failed = _run_groups(module, config, plan, mine, workdir, rows, bar, num_workers)
    found, _ = store.read_rows(workdir)
    _write_asked(plan, part, workdir, {row["unit"] for row in found}, command)
    if found:
        plan.after(workdir, found)
    return _report(workdir, failed, len(_names(part) - plan.skipped))


def _write_asked(plan: Plan, part, workdir: Path, done: set[str], command: str) -> None:
    """Keep what the report has to know beside the rows: all units, but those that this machine leaves out.

    So are units that an earlier run asked for, such as those of other methods, unless they failed.
    """
    settings = plan.settings(part, done) | {"command": command}
    before = configuration.read_asked(workdir) or {"units": ()}
    units = _names(plan.groups) | (set(before["units"]) - failures.read(workdir).keys())
    configuration.write_asked(workdir, units - (plan.skipped & _names(part)), settings)


def _run_groups(module, config, plan: Plan, groups, workdir, rows, bar, num_workers) -> list[str]:
    """Store the rows of all groups; return the names of the units that failed, whose reasons are recorded."""
    failed: list[str] = []

    def handle(event: workers.Event) -> None:
        match event:
            case workers.Finished(row=row):
                rows.append({**row, "config_hash": rows.config_hash})
                failures.forget(workdir, row["unit"])
            case workers.Failed(unit=unit, description=description):
                failures.record(workdir, unit, description)
                bar.write(f"{unit} failed: {description['reason']}", file=sys.stderr)
                failed.append(unit)
            case workers.Told(text=text, advance=advance):
                if text:
                    bar.set_postfix_str(text, refresh=False)
                bar.update(min(advance, bar.total - bar.n))

    if num_workers is None:
        num_workers = len(workers.cores()) if jax.default_backend() == "cpu" else 1
    if num_workers > 1 and len(groups) > 1:
        numbers = {id(group): number for number, group in enumerate(plan.groups)}
        jobs = {numbers[id(group)]: sorted(_names([group]) - plan.skipped) for group in groups}
        with workers.Pool(module.__name__, config, workdir, min(num_workers, len(groups))) as pool:
            for event in pool.run(jobs, lambda: rows.done() | plan.skipped):
                handle(event)
    else:
        for group in groups:
            workers.run_group(plan, group, rows.done() | plan.skipped, workdir, handle)
    return failed


def _report(workdir: Path, failed: Sequence[str], num_units: int) -> Report | None:
    experiment, run = report.read(workdir)
    found = report.write_run(experiment, workdir, run) if run.rows else None
    told = []
    if found is not None and (wrong := run.contradictions):
        more = f" ({len(wrong)} in all)" if len(wrong) > 1 else ""
        told.append(
            f"certified <= exact <= attacked does not hold: {wrong[0]}{more}; all rows are kept, see {found.page}"
        )
    if failed:
        told.append(
            f"{len(failed)} of {num_units} units failed, for the reasons given above: "
            f"{', '.join(failed)}; mend them, and run the same command again; it tries these alone"
        )
    if len(told) > bool(failed):
        raise ValueError("; ".join(told))
    if failed:
        raise failures.SomeFailed(told[0], found)
    return found


def _names(groups: Iterable[Sequence[Unit]]) -> set[str]:
    return {unit.name for group in groups for unit in group}
