"""The store of rows: nothing acknowledged is lost, nothing is counted twice, nothing of another run is mixed in."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import configuration, files, store

CONFIG = {"dataset": "digits", "methods": ["1nn", "standard"], "training": {"epochs": 3}}
ROWS_FILE = "rows-00000-of-00001.jsonl"
REPOSITORY = Path(__file__).resolve().parents[2]


def _row(unit: str, **fields) -> dict:
    return {"unit": unit, "config_hash": configuration.config_hash(CONFIG), "seconds": 0.1, **fields}


def _fill(workdir: Path, units, *, shard=(0, 1)) -> None:
    with store.open_store(workdir, CONFIG, shard=shard) as opened:
        for unit in units:
            opened.append(_row(unit))


def _raise(error: Exception):
    def fail(*_):
        raise error

    return fail


def _units(workdir: Path) -> list[str]:
    return [row["unit"] for row in store.read_rows(workdir)[0]]


def test_rows_come_back_as_written(tmp_path):
    row = _row("digits/0v1/1nn/0", classes=["zéro\n", "one"], evaluations=[{"epsilon": 8 / 255, "norm": None}])
    with store.open_store(tmp_path / "new" / "folder", CONFIG) as opened:
        assert opened.done() == set()
        opened.append(row)
        assert opened.done() == {row["unit"]}
    rows, problems = store.read_rows(tmp_path / "new" / "folder")
    assert rows == [row] and problems == []


def test_numpy_scalars_are_stored_as_plain_numbers(tmp_path):
    with store.open_store(tmp_path, CONFIG) as opened:
        opened.append(_row("a", robust=np.int64(3), epsilon=np.float32(0.5)))
    assert store.read_rows(tmp_path)[0] == [_row("a", robust=3, epsilon=0.5)]


def test_what_is_not_plain_or_not_finite_is_refused_and_leaves_no_trace(tmp_path):
    with store.open_store(tmp_path, CONFIG) as opened:
        with pytest.raises(ValueError, match="JSON compliant"):
            opened.append(_row("a", loss=float("nan")))
        with pytest.raises(TypeError, match="object"):
            opened.append(_row("a", loss=object()))
    assert (tmp_path / ROWS_FILE).read_bytes() == b""


def test_an_empty_or_missing_folder_has_no_rows(tmp_path):
    assert store.read_rows(tmp_path) == ([], [])
    assert store.read_rows(tmp_path / "missing") == ([], [])


def test_every_truncation_of_the_last_line_loses_only_that_line(tmp_path):
    _fill(tmp_path, ["a", "b"])
    whole = (tmp_path / ROWS_FILE).read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first + 1, len(whole) - 1):
        (tmp_path / ROWS_FILE).write_bytes(whole[:length])
        assert _units(tmp_path) == ["a"]
        with store.open_store(tmp_path, CONFIG) as opened:
            assert opened.done() == {"a"}
            assert len(opened.problems) == 1 and f"{ROWS_FILE} line 2" in opened.problems[0]
            opened.append(_row("b"))
        assert (tmp_path / ROWS_FILE).read_bytes() == whole
        assert store.read_rows(tmp_path)[1] == []
    copy = (tmp_path / f"{ROWS_FILE}.damaged").read_bytes()
    assert copy.endswith(whole[first:-2] + b"\n")


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data.replace(b"\n", b"\r\n")])
def test_other_line_ends_damage_nothing(tmp_path, change):
    _fill(tmp_path, ["a", "b"])
    path = tmp_path / ROWS_FILE
    path.write_bytes(change(path.read_bytes()))
    with store.open_store(tmp_path, CONFIG) as opened:
        assert opened.done() == {"a", "b"} and not opened.problems
        opened.append(_row("c"))
    rows, problems = store.read_rows(tmp_path)
    assert [row["unit"] for row in rows] == ["a", "b", "c"] and not problems
    assert not path.with_name(f"{ROWS_FILE}.damaged").exists()


@pytest.mark.parametrize("asked", ["{}", "[]", '{"units": 1, "settings": {}}', '{"units": [], "settings": 1}', "{"])
def test_what_was_asked_for_is_read_or_named(tmp_path, asked):
    (tmp_path / configuration.ASKED_FILE).write_text(asked)
    with pytest.raises(files.ResultsError, match=r"asked.json is damaged \(.*\): remove it"):
        configuration.read_asked(tmp_path)


def test_every_damaged_byte_is_noticed(tmp_path):
    _fill(tmp_path, ["a", "b", "c"])
    whole = (tmp_path / ROWS_FILE).read_bytes()
    line = whole.index(b"\n") + 1
    for position in range(line, 2 * line - 1):
        damaged = bytearray(whole)
        damaged[position] ^= 0x04
        (tmp_path / ROWS_FILE).write_bytes(damaged)
        rows, problems = store.read_rows(tmp_path)
        assert [row["unit"] for row in rows] == ["a", "c"]
        assert problems and f"{ROWS_FILE} line 2" in problems[0]


def test_a_damaged_line_in_the_middle_is_done_again_and_the_rest_kept(tmp_path):
    _fill(tmp_path, ["a", "b", "c"])
    whole = (tmp_path / ROWS_FILE).read_bytes()
    (tmp_path / ROWS_FILE).write_bytes(whole.replace(b'"unit": "b"', b'"unit": "x"'))
    with store.open_store(tmp_path, CONFIG) as opened:
        assert opened.done() == {"a", "c"}
        opened.append(_row("b"))
    rows, problems = store.read_rows(tmp_path)
    assert [row["unit"] for row in rows] == ["a", "c", "b"]
    assert len(problems) == 1 and "line 2" in problems[0]


def test_zeros_left_by_a_lost_machine_are_cut(tmp_path):
    _fill(tmp_path, ["a"])
    with open(tmp_path / ROWS_FILE, "ab") as file:
        file.write(bytes(5000) + b"\n" + bytes(100))
    _fill(tmp_path, ["b"])
    assert store.read_rows(tmp_path) == ([_row("a"), _row("b")], [])


_WRITER = """
import sys
from experiments import configuration, files, store
workdir, config = sys.argv[1], {config!r}
with store.open_store(workdir, config) as opened:
    for number in range(100000):
        unit = f"unit{{number}}"
        if unit not in opened.done():
            opened.append({{"unit": unit, "config_hash": opened.config_hash, "padding": "x" * 20000}})
            print(unit, flush=True)
"""


def test_a_run_killed_at_any_moment_continues_with_nothing_lost_or_twice(tmp_path):
    moments = random.Random(0)
    acknowledged: list[str] = []
    for _ in range(20):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER.format(config=CONFIG), str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        first = process.stdout.readline()
        time.sleep(moments.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        lines = (first + process.communicate()[0]).splitlines(keepends=True)
        acknowledged += [line.strip() for line in lines if line.endswith("\n")]
        assert set(acknowledged) <= set(_units(tmp_path))
    assert len(acknowledged) == len(set(acknowledged)) >= 20
    units = _units(tmp_path)
    assert sorted(units, key=lambda unit: int(unit[4:])) == [f"unit{number}" for number in range(len(units))]
    lines = (tmp_path / ROWS_FILE).read_bytes().splitlines()
    assert len(units) <= len(lines) <= len(units) + 1  # At most the last kill's torn line is left.


def test_another_configuration_is_refused_in_one_line_with_what_differs(tmp_path):
    _fill(tmp_path, ["a"])
    other = {"dataset": "digits", "methods": ["1nn"], "training": {"epochs": 3, "beta": 6.0}}
    with pytest.raises(files.ResultsError) as error:
        store.open_store(tmp_path, other)
    message = str(error.value)
    assert configuration.config_hash(CONFIG) in message and configuration.config_hash(other) in message
    assert 'methods: ["1nn", "standard"] -> ["1nn"]' in message and "training.beta: absent -> 6.0" in message
    assert "epochs" not in message and "--workdir" in message and "\n" not in message
    assert _units(tmp_path) == ["a"]


def test_of_two_configurations_that_start_at_once_one_wins(tmp_path):
    script = (
        "import sys; from experiments import store\n"
        "config, shard = {'seed': int(sys.argv[2]) % 2}, (int(sys.argv[2]), 6)\n"
        "with store.open_store(sys.argv[1], config, shard=shard) as opened:\n"
        "    opened.append({'unit': sys.argv[2], 'config_hash': opened.config_hash})\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(index)], stderr=-1, cwd=REPOSITORY)
        for index in range(6)
    ]
    errors = [process.communicate()[1] for process in processes]
    winners = {index for index, process in enumerate(processes) if process.returncode == 0}
    assert winners in ({0, 2, 4}, {1, 3, 5})
    assert all(b"belongs to configuration" in errors[index] for index in set(range(6)) - winners)
    assert {int(unit) for unit in _units(tmp_path)} == winners


def test_the_hash_ignores_the_order_of_keys_and_tuples(tmp_path):
    assert configuration.config_hash({"a": 1, "b": (1, 2)}) == configuration.config_hash({"b": [1, 2], "a": 1})
    assert configuration.config_hash({"a": 1}) != configuration.config_hash({"a": 2})


def test_a_row_of_another_configuration_is_neither_appended_nor_read(tmp_path):
    _fill(tmp_path, ["a"])
    with store.open_store(tmp_path, CONFIG) as opened, pytest.raises(files.ResultsError, match="config_hash"):
        opened.append(_row("b") | {"config_hash": "0000"})
    foreign = tmp_path / "foreign"
    with store.open_store(foreign, {"dataset": "mnist"}) as opened:
        opened.append({"unit": "b", "config_hash": opened.config_hash})
    os.rename(foreign / ROWS_FILE, tmp_path / "rows-00001-of-00002.jsonl")
    rows, problems = store.read_rows(tmp_path)
    assert [row["unit"] for row in rows] == ["a"]
    assert len(problems) == 1 and "rows-00001-of-00002.jsonl line 1" in problems[0]


def test_rows_without_their_config_file_are_not_mixed_with_others(tmp_path):
    _fill(tmp_path, ["a"])
    (tmp_path / "config.json").unlink()
    with pytest.raises(files.ResultsError, match="has rows of configuration"):
        store.open_store(tmp_path, {"dataset": "mnist"})
    _fill(tmp_path, ["b"])
    assert _units(tmp_path) == ["a", "b"]


def test_a_damaged_config_file_is_refused_in_one_line(tmp_path):
    _fill(tmp_path, ["a"])
    for content in ('{"hash": "0000", "config": {}}', '{"hash"', "[]"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(files.ResultsError, match="config.json is damaged"):
            store.open_store(tmp_path, CONFIG)


def test_rows_go_on_in_a_file_that_is_put_in_the_place_of_the_one_opened(tmp_path):
    path = tmp_path / ROWS_FILE
    with store.open_store(tmp_path, CONFIG) as opened:
        opened.append(_row("a"))
        earlier = path.read_bytes()
        opened.append(_row("b"))
        for unit in ("c", "d"):  # as git does that restores an earlier version
            path.unlink()
            path.write_bytes(earlier)
            opened.append(_row(unit))
        path.unlink()
        opened.append(_row("e"))
        with pytest.raises(files.ResultsError, match="is open in another process"):
            store.open_store(tmp_path, CONFIG)
        path.unlink()
        path.write_bytes(earlier[:-5])  # and the last row goes on at the end
    assert store.read_rows(tmp_path)[1] == [] and _units(tmp_path) == ["a", "b", "c", "d", "e"]
    assert path.with_name(f"{ROWS_FILE}.damaged").exists()


def test_a_full_disk_in_the_place_of_another_file_can_be_made_good(tmp_path, monkeypatch):
    path = tmp_path / ROWS_FILE
    with store.open_store(tmp_path, CONFIG) as opened:
        for unit in ("a", "b"):
            opened.append(_row(unit))
        path.unlink()
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", _raise(OSError(errno.ENOSPC, "No space left on device")))
            with pytest.raises(files.ResultsError, match="no space left to write"):
                opened.append(_row("c"))
        opened.append(_row("c"))
    assert _units(tmp_path) == ["a", "b", "c"]


def test_rows_do_not_go_on_in_a_workdir_that_has_become_another_ones(tmp_path):
    opened = store.open_store(tmp_path, CONFIG)
    opened.append(_row("a"))
    (tmp_path / ROWS_FILE).unlink()
    (tmp_path / configuration.CONFIG_FILE).unlink()
    with store.open_store(tmp_path, CONFIG | {"dataset": "mnist"}):
        pass
    for write in (lambda: opened.append(_row("b")), opened.close):
        with pytest.raises(files.ResultsError, match="has become a workdir of another configuration"):
            write()


def test_a_unit_is_never_appended_twice(tmp_path):
    with store.open_store(tmp_path, CONFIG) as opened:
        opened.append(_row("a"))
        with pytest.raises(files.ResultsError, match="already"):
            opened.append(_row("a"))
    assert _units(tmp_path) == ["a"]


def test_two_processes_cannot_open_one_shard(tmp_path):
    with store.open_store(tmp_path, CONFIG, shard=(0, 2)):
        with pytest.raises(files.ResultsError, match="another process") as error:
            store.open_store(tmp_path, CONFIG, shard=(0, 2))
        assert "\n" not in str(error.value)
        store.open_store(tmp_path, CONFIG, shard=(1, 2)).close()
    store.open_store(tmp_path, CONFIG, shard=(0, 2)).close()


def test_shards_write_their_own_files_and_know_each_others_units(tmp_path):
    _fill(tmp_path, ["a", "c"], shard=(0, 2))
    _fill(tmp_path, ["b"], shard=(1, 2))
    assert sorted(path.name for path in tmp_path.glob("rows*")) == [
        "rows-00000-of-00002.jsonl",
        "rows-00001-of-00002.jsonl",
    ]
    with store.open_store(tmp_path, CONFIG, shard=(3, 4)) as opened:
        assert opened.done() == {"a", "b", "c"}


@pytest.mark.parametrize("shard", [(1, 1), (-1, 2), (0, 0)])
def test_an_impossible_shard_is_refused(tmp_path, shard):
    with pytest.raises(files.ResultsError, match="shard"):
        store.open_store(tmp_path, CONFIG, shard=shard)


def test_a_unit_done_by_two_shards_counts_once_and_the_first_file_wins(tmp_path):
    with (
        store.open_store(tmp_path, CONFIG, shard=(0, 2)) as one,
        store.open_store(tmp_path, CONFIG, shard=(1, 2)) as two,
    ):
        two.append(_row("a", robust=2))
        one.append(_row("a", robust=1))
    assert store.read_rows(tmp_path) == ([_row("a", robust=1)], [])


def test_merge_adds_each_unit_once_however_often_it_runs(tmp_path):
    _fill(tmp_path / "one", ["a", "b"])
    _fill(tmp_path / "two", ["b", "c"])
    with open(tmp_path / "two" / ROWS_FILE, "ab") as file:
        file.write(b'{"unit": "d"')
    added, problems = store.merge(tmp_path / "all", [tmp_path / "one", tmp_path / "two"], CONFIG)
    assert added == 3 and len(problems) == 1 and "line 3" in problems[0]
    assert store.merge(tmp_path / "all", [tmp_path / "one", tmp_path / "two"], CONFIG)[0] == 0
    assert _units(tmp_path / "all") == ["a", "b", "c"]
    assert store.merge(tmp_path / "one", [tmp_path / "two"], CONFIG)[0] == 1
    assert sorted(_units(tmp_path / "one")) == ["a", "b", "c"]


def test_merged_rows_have_one_title(tmp_path):
    for name in ("one", "two"):
        with store.open_store(tmp_path / name, CONFIG) as opened:
            opened.append(_row(name) | {"dataset": f"{name}.npz"})
    store.merge(tmp_path / "all", [tmp_path / "one", tmp_path / "two"], CONFIG)
    assert [row["dataset"] for row in store.read_rows(tmp_path / "all")[0]] == ["one.npz"] * 2


def test_merge_refuses_another_configuration_and_a_folder_without_results(tmp_path):
    _fill(tmp_path / "one", ["a"])
    store.open_store(tmp_path / "two", {"dataset": "mnist"}).close()
    with pytest.raises(files.ResultsError, match="belongs to configuration"):
        store.merge(tmp_path / "all", [tmp_path / "one", tmp_path / "two"], CONFIG)
    with pytest.raises(files.ResultsError, match="belongs to configuration"):
        store.merge(tmp_path / "two", [tmp_path / "one"], {"dataset": "mnist"})
    with pytest.raises(files.ResultsError, match="holds no results"):
        store.merge(tmp_path / "all", [tmp_path / "missing"], CONFIG)
    with pytest.raises(files.ResultsError, match="belongs to configuration"):
        store.merge(tmp_path / "all", [tmp_path / "one"], {"dataset": "mnist"})
    with pytest.raises(ValueError, match="one has other networks"):
        store.merge(tmp_path / "all", [tmp_path / "one"], CONFIG, _refuse)
    assert not (tmp_path / "all").exists()


def _refuse(other, rows):
    raise ValueError(f"{other.name} has other networks: {[row['unit'] for row in rows]}")


def test_a_full_disk_is_one_clear_error_and_the_results_stay(tmp_path, monkeypatch):
    write = os.write

    def half_then_full(descriptor, data):
        if len(data) < 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[: len(data) // 2])

    with store.open_store(tmp_path, CONFIG) as opened:
        opened.append(_row("a"))
        before = (tmp_path / ROWS_FILE).read_bytes()
        monkeypatch.setattr(os, "write", half_then_full)
        with pytest.raises(files.ResultsError, match="no space left") as error:
            opened.append(_row("b"))
        assert "\n" not in str(error.value) and opened.done() == {"a"}
        assert (tmp_path / ROWS_FILE).read_bytes() == before
        monkeypatch.undo()
        opened.append(_row("b"))
    assert store.read_rows(tmp_path) == ([_row("a"), _row("b")], [])


@pytest.mark.parametrize("stop", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_half_line_that_cannot_be_taken_back_closes_the_store(tmp_path, monkeypatch, stop):
    def write_half(descriptor, data, write=os.write):
        write(descriptor, data[:20])
        raise stop

    def refuse(descriptor, length):
        raise OSError(errno.EIO, "Input/output error")

    with store.open_store(tmp_path, CONFIG) as opened:
        opened.append(_row("a"))
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write_half)
            patch.setattr(os, "ftruncate", refuse)
            with pytest.raises(KeyboardInterrupt if isinstance(stop, KeyboardInterrupt) else files.ResultsError):
                opened.append(_row("b"))
        with pytest.raises(files.ResultsError, match="closed"):
            opened.append(_row("c"))
    with store.open_store(tmp_path, CONFIG) as opened:
        assert len(opened.problems) == 1
        opened.append(_row("b"))
    assert store.read_rows(tmp_path) == ([_row("a"), _row("b")], [])


def test_short_writes_are_completed(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    _fill(tmp_path, ["a", "b"])
    assert store.read_rows(tmp_path) == ([_row("a"), _row("b")], [])


def test_a_workdir_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(files.ResultsError, match="cannot write"):
        store.open_store(tmp_path / "file" / "folder", CONFIG)


def test_each_line_is_json_with_a_checksum(tmp_path):
    _fill(tmp_path, ["a"])
    line = json.loads((tmp_path / ROWS_FILE).read_text())
    assert set(line) == {*_row("a"), "checksum"}
