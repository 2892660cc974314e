"""What is said on terminals that do not know every sign; and that all is said in one place."""

from __future__ import annotations

import ast
import io
import pathlib
import shlex
import warnings

import pytest

from experiments import console

ROOT = pathlib.Path(console.__file__).parent
TABLE = "       clean   linf     l2\n1NN    100.0  ≤98.6  =70.0\n               ±0.3     ±–"


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", TABLE),
        ("ascii", "       clean   linf     l2\n1NN    100.0 <=98.6  =70.0\n              +-0.3    +--"),
    ],
)
def test_tables_stay_tables(encoding, expected):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console.say(TABLE, "café", file=file)
    file.seek(0)
    text = file.buffer.read().decode("utf-8")
    assert text == f"{expected}\n{'café' if encoding == 'utf-8' else 'caf' + chr(92) + 'xe9'}\n"
    assert len({len(line) for line in expected.splitlines()}) == 1


def test_what_no_encoding_has_is_said(capsys):
    console.say("/tmp/caf\udce9")
    assert capsys.readouterr().out == "/tmp/caf\\udce9\n"


def test_a_stream_without_an_encoding_takes_everything():
    file = io.StringIO()
    console.say("≤", file=file)
    assert file.getvalue() == "≤\n"


def test_a_warning_is_one_line(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    console.shorten_warnings()
    assert warnings.formatwarning("a\n b", UserWarning, "loop.py", 7) == "warning: a b\n"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_else_prints(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call) or path.name == "console.py":
            continue
        assert getattr(node.func, "id", "") != "print", f"line {node.lineno}: say it through experiments.console"
        if getattr(node.func, "attr", "") == "write" and "bar" in ast.unparse(node.func):
            # Standard error escapes what it has not; standard output does not.
            assert "file=sys.stderr" in ast.unparse(node), f"line {node.lineno}: it would be standard output"


@pytest.mark.parametrize(
    ("argument", "typed"),
    [
        ("--workdir=runs/digits", "--workdir=runs/digits"),
        ("--config.methods=('1nn','trades-l2')", "\"--config.methods=('1nn','trades-l2')\""),
        ("--workdir=my runs", "'--workdir=my runs'"),
        ("--workdir=$HOME's", "'--workdir=$HOME'\"'\"'s'"),
    ],
)
def test_a_command_can_be_typed_again(argument, typed):
    line = console.command("experiments.main", [argument])
    assert line == f"python -m experiments.main {typed}"
    assert shlex.split(line) == ["python", "-m", "experiments.main", argument]
