"""The durable store of result rows: append-only JSON lines that survive a killed run.

A workdir holds `config.json` (the configuration and its hash, written once), `asked.json` (what the last run asked
for) and one file of rows per shard, so machines that share a folder never write the same file. Each line carries a
checksum: a torn or damaged line is recognised, reported and its unit done again; everything that `Store.append`
returned from stays. A row may name `files` of the workdir that belong to it; they are written before it.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import configuration
from experiments.files import ResultsError, dumps, one_line_errors, sync_folder, write_whole
from nn_adv.paths import as_path

ROWS_PATTERN = "rows-*.jsonl"
_MERGED_FILE = "rows-merged.jsonl"
_CHECKSUM_FIELD = b', "checksum": "'


class Store:
    """The rows of one workdir, open for appending by one shard; made by `open_store`. A context manager.

    Attributes:
      config_hash: hash of the configuration that every row of this workdir belongs to.
      problems: one line for each damaged line found when the store was opened.
      title: of the dataset, that of the first row; None if there are none.
    """

    def __init__(self, path: Path, expected_hash: str):
        self.config_hash = expected_hash
        self._path = path
        self._descriptor: int | None = _open_locked(path)
        try:
            rows, self.problems = read_rows(path.parent)
            _cut_damaged_tail(self._descriptor, path)
        except BaseException:
            self._release()
            raise
        self._done = {row["unit"] for row in rows}
        self.title = rows[0].get("dataset") if rows else None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock on this shard's file.

        Raises `ResultsError` if another file is in its place and the rows cannot be written there.
        """
        try:
            if self._descriptor is not None:
                self._descriptor = self._follow(self._descriptor)
        finally:
            self._release()

    def _release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _follow(self, descriptor: int) -> int:
        """Return the file that the path names now, open, with the rows of the one that was open so far.

        Restoring an earlier version of a file, as git does, puts another file in its place: what is appended to the
        one that is open would be in no folder.
        """
        with one_line_errors(self._path):
            opened = os.fstat(descriptor)
            try:
                is_same = os.path.samestat(os.stat(self._path), opened)
            except FileNotFoundError:
                is_same = False
            if is_same:
                return descriptor
            folder = self._path.parent
            if (stored := configuration.read_config(folder)) and stored["hash"] != self.config_hash:
                raise ResultsError(
                    f"{folder} has become a workdir of another configuration while a run writes to it: restore its "
                    f"{configuration.CONFIG_FILE}"
                )
            current = _open_locked(self._path)
            try:
                _cut_damaged_tail(current, self._path)
                there = {row["unit"] for row in _whole_rows(self._path) if row["config_hash"] == self.config_hash}
                for line in os.pread(descriptor, opened.st_size, 0).splitlines(keepends=True):
                    if (row := _decode(line)) is not None and row["unit"] not in there:
                        _write_all(current, line)
                os.fsync(current)
            except BaseException:
                os.close(current)
                raise
        os.close(descriptor)
        return current

    def done(self) -> set[str]:
        """Return the names of the units that are finished: by any shard at opening, by this one since."""
        return set(self._done)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row; once this returns, the row survives a killed process and a lost machine.

        Raises `ResultsError` if the unit is already there, belongs to another configuration, or cannot be written;
        the rows written before are intact in each case.
        """
        if self._descriptor is None:
            raise ResultsError(f"{self._path} is closed: open the store again to append")
        if row["config_hash"] != self.config_hash:
            raise ResultsError(f"row {row['unit']!r} has config_hash {row['config_hash']}, not {self.config_hash}")
        if row["unit"] in self._done:
            raise ResultsError(f"unit {row['unit']!r} is already in {self._path.parent}: skip the units in done()")
        self._descriptor = self._follow(self._descriptor)
        if self.title is None:
            self.title = row.get("dataset")
        # One title in all rows: an npz file may have been renamed since the first.
        line = _encode({**row, "dataset": self.title} if self.title else row)
        end = os.fstat(self._descriptor).st_size
        try:
            with one_line_errors(self._path):
                _write_all(self._descriptor, line)
                os.fsync(self._descriptor)
        except BaseException:
            try:  # Leave no half line, which the next row would be glued to; where that fails, allow no next row.
                os.ftruncate(self._descriptor, end)
            except OSError:
                self._release()
            raise
        self._done.add(row["unit"])


def open_store(workdir: str | os.PathLike, config: Mapping[str, Any], *, shard: tuple[int, int] = (0, 1)) -> Store:
    """Open a workdir for appending, creating it if needed.

    Args:
      workdir: folder of the results; it belongs to one configuration for ever.
      config: plain configuration of everything that determines the rows (not the workdir, nor the shard).
      shard: (index, count); each shard has a file of its own.

    Raises:
      ResultsError: another configuration's workdir, a shard that another process has open, or no space left.
    """
    index, count = shard
    if not 0 <= index < count:
        raise ResultsError(f"shard must be (index, count) with 0 <= index < count, got {shard}")
    return _open_file(Path(workdir), config, f"rows-{index:05d}-of-{count:05d}.jsonl")


def read_rows(workdir: str | os.PathLike) -> tuple[list[dict[str, Any]], list[str]]:
    """Read every row of a workdir, each unit once (the first, by file name), without changing anything.

    Returns:
      (rows, problems): problems has one line for each damaged line and each row of another configuration, with the
      file and the line number; neither is among the rows.
    """
    stored = configuration.read_config(Path(workdir))
    rows: dict[str, dict[str, Any]] = {}
    problems = []
    for path in sorted(Path(workdir).glob(ROWS_PATTERN)):
        for number, line in enumerate(io.BytesIO(path.read_bytes()), start=1):
            where, row = f"{path.name} line {number}", _decode(line)
            if row is None:
                problems.append(
                    f"{where}: damaged and left out; a unit that has no other row is done again by the next run"
                )
            elif stored is not None and row["config_hash"] != stored["hash"]:
                problems.append(f"{where}: row of another configuration ({row['config_hash']}), ignored")
            else:
                rows.setdefault(row["unit"], row)
    return list(rows.values()), problems


def merge(
    workdir: str | os.PathLike,
    other_workdirs: Iterable[str | os.PathLike],
    config: Mapping[str, Any],
    check: Callable[[Path, Sequence[Mapping[str, Any]]], Any] | None = None,
) -> tuple[int, list[str]]:
    """Copy the rows of other workdirs of this configuration into `workdir`; doing it twice adds nothing.

    The files that a row names are copied before it. `workdir` may be new. ``check`` sees each of the others with its
    rows before anything is copied, and raises ValueError where they do not belong here. Returns (number of rows added,
    problems found on the way).
    """
    others = [as_path(other, "merge") for other in other_workdirs]
    for other in others:
        configuration.check_same(other, configuration.require_config(other), config)
    all_rows = [read_rows(other) for other in others]
    for other, (rows, _) in zip(others, all_rows, strict=True):
        if check is not None:
            check(other, rows)
    added = 0
    with _open_file(Path(workdir), config, _MERGED_FILE) as store:
        problems, done = list(store.problems), store.done()
        for other, (rows, found) in zip(others, all_rows, strict=True):
            problems += [f"{other}: {problem}" for problem in found]
            for row in rows:
                if row["unit"] not in done:
                    problems += _copy_files(row, Path(other), Path(workdir))
                    store.append(row)
                    done.add(row["unit"])
                    added += 1
    return added, problems


def _copy_files(row: Mapping[str, Any], source: Path, target: Path) -> list[str]:
    problems = []
    for name in row.get("files", ()):
        try:
            content = (source / name).read_bytes()
        except OSError as error:
            problems.append(f"{source / name}: not copied ({error.strerror or error}); the row of {row['unit']!r} is")
            continue
        write_whole(target / name, content)
    return problems


def _whole_rows(path: Path) -> list[dict[str, Any]]:
    with open(path, "rb") as file:
        return [row for line in file if (row := _decode(line)) is not None]


def _encode(row: Mapping[str, Any]) -> bytes:
    body = dumps(row).encode()[:-1]
    return body + _CHECKSUM_FIELD + _checksum(body) + b'"}\n'


def _decode(line: bytes) -> dict[str, Any] | None:
    # Tools that rewrite files may change line ends, or leave out the last.
    body, separator, tail = line.rstrip(b"\r\n").rpartition(_CHECKSUM_FIELD)
    if not separator or tail != _checksum(body) + b'"}':
        return None
    return json.loads(body + b"}")


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:16].encode()


def _open_file(workdir: Path, config: Mapping[str, Any], name: str) -> Store:
    with one_line_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        stored = configuration.read_config(workdir) or _create_config(workdir, config)
    configuration.check_same(workdir, stored, config)
    return Store(workdir / name, stored["hash"])


def _open_locked(path: Path) -> int:
    with one_line_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sync_folder(path.parent)
        except BlockingIOError as error:
            os.close(descriptor)
            raise ResultsError(
                f"{path} is open in another process: wait for it to end, or give each process its own --shard"
            ) from error
    return descriptor


def _cut_damaged_tail(descriptor: int, path: Path) -> None:
    """Truncate what follows the last whole line, after keeping a copy of it beside the file; end that line."""
    data = path.read_bytes()
    lines = list(io.BytesIO(data))
    while lines and _decode(lines[-1]) is None:
        lines.pop()
    keep = sum(map(len, lines))
    if data[:keep] and not data[:keep].endswith(b"\n"):
        with one_line_errors(path):
            _write_all(descriptor, b"\n")
            os.fsync(descriptor)
        return
    if keep == len(data):
        return
    with one_line_errors(path):
        with open(f"{path}.damaged", "ab") as copy:
            copy.write(data[keep:] + b"\n")
            copy.flush()
            os.fsync(copy.fileno())
        os.ftruncate(descriptor, keep)
        os.fsync(descriptor)


def _create_config(workdir: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Write config.json, unless rows of another configuration lie there without theirs."""
    found = {row["config_hash"] for path in workdir.glob(ROWS_PATTERN) for row in _whole_rows(path)}
    others = found - {configuration.config_hash(config)}
    # It does exist if another run has started in the meantime.
    if others and not (workdir / configuration.CONFIG_FILE).exists():
        raise ResultsError(
            f"workdir {workdir} has rows of configuration {min(others)} and no {configuration.CONFIG_FILE}: "
            "choose another --workdir"
        )
    return configuration.create_config(workdir, config)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
