"""What an experiment runs: read from a configuration once, checked, and frozen; nobody reads the configuration later.

Each experiment has a `Plan` of its own, made of parts that `parsing` reads and checks.
"""

from __future__ import annotations

import dataclasses
import datetime
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax

import nn_adv
from experiments.failures import file_name
from nn_adv import data

Row = Mapping[str, Any]
# Of `text`, a few words on what is at work, and `advance`, how many units, or parts of one, more are done.
Show = Callable[..., None]


class Unit(NamedTuple):
    """What gives one row."""

    name: str  # of the row, the same in every run
    subject: Any  # what is evaluated: a method's name, a network or an attack
    task: Any = None  # what it is evaluated on; None: the whole dataset
    seed: int = 0  # of its random numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """An experiment whose configuration is checked and whose data are there; each experiment fills in the methods."""

    identity: Mapping[str, Any]  # plain values that decide what a row says; the rows of a workdir share them
    groups: Sequence[Sequence[Unit]]  # all units, those in groups that share work
    dataset: data.Dataset  # resident on the host
    skipped: frozenset[str] = frozenset()  # names of units that are left out on this machine

    shared_part: ClassVar[float] = 0.0  # of the time of a group, that of `share`

    def share(self, group: Sequence[Unit], num_missing: int, workdir: Path, show: Show) -> Any:
        """Do the work that the units of a group share; returns what `row` needs of it."""

    def row(self, unit: Unit, shared: Any, workdir: Path, show: Show) -> dict[str, Any]:
        """Make the row of a unit, ``shared`` being what `share` returned for its group."""
        raise NotImplementedError

    def clear(self, unit: Unit, workdir: Path) -> None:
        """Remove the progress of the attacks, which helped to make a row that is stored now."""
        progress_file(workdir, unit).unlink(missing_ok=True)

    def before(self, workdir: Path, rows: Sequence[Row], part: Sequence[Sequence[Unit]]) -> list[str]:
        """List what to tell before the groups of a shard start; ValueError where the rows are of something else."""
        return list(self._absence(part, [row["unit"] for row in rows]).values())

    def after(self, workdir: Path, rows: Sequence[Row]) -> None:
        """Write what belongs to the rows beside them, once those of a run are there."""

    def settings(self, part: Sequence[Sequence[Unit]], done: Iterable[str]) -> dict[str, Any]:
        """Return what the report is to say that rows do not; ``part`` are the groups of this shard."""
        return self._absence(part, done)

    def _absence(self, part: Sequence[Sequence[Unit]], done: Iterable[str]) -> dict[str, str]:
        names = self.skipped - set(done)
        left_out = [unit for group in part for unit in group if unit.name in names]
        return {"absence": self.absence(left_out, part)} if left_out else {}

    def absence(self, left_out: Sequence[Unit], part: Sequence[Sequence[Unit]]) -> str:
        """Say what is left out of the groups of a shard, and how to make it good; for plans that have ``skipped``."""
        raise NotImplementedError

    def about(self, unit: Unit) -> dict[str, Any]:
        """Return what every row says of its unit, of the data, of the machine and of the moment that made it."""
        dataset = {"dataset": self.dataset.title, "dataset_note": self.dataset.note}
        task = {} if unit.task is None else {"task": unit.task.name, "classes": list(unit.task.class_names)}
        made = {
            "versions": {"nn_adv": nn_adv.__version__, "jax": jax.__version__, "python": platform.python_version()},
            "device": jax.local_devices()[0].device_kind,
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        return {"schema": 1, "unit": unit.name, **dataset, **made, **task}


def progress_file(workdir: Path, unit: Unit) -> Path:
    """Return where the attacks on the network of a unit keep their progress."""
    return workdir / "attacks" / f"{file_name(unit.name)}.npz"
