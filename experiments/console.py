"""What is said and typed on a terminal: signs that the terminal has not are written in others, none ends a run."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

# With a space or two that stand in front of it in a table, which so stays one.
_PLAIN = {" ≤": "<=", "≤": "<=", " ≥": ">=", "≥": ">=", " ±": "+-", "±": "+-"}
_PLAIN |= {"−": "-", "–": "-", "—": "-"}


def say(*lines: str, file: TextIO | None = None) -> None:
    """Print lines of text to ``file``, standard output by default, in what its encoding has."""
    stream = file or sys.stdout
    print(*(writable(line, getattr(stream, "encoding", None) or "utf-8") for line in lines), sep="\n", file=stream)


def command(module: str, arguments: Sequence[str]) -> str:
    """Return the command line that starts a module, quoted for a shell: names in single quotes stand in double ones."""

    def quoted(argument: str) -> str:
        is_plain = "'" in argument and not set(argument) & set('"$`\\!')
        return f'"{argument}"' if is_plain else shlex.quote(argument)

    return " ".join(["python", "-m", module, *map(quoted, arguments)])


def shorten_warnings() -> None:
    """Let each warning of this process be one line on standard error, without the place in the code."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {' '.join(str(message).split())}\n"


def writable(text: str, encoding: str) -> str:
    """Return ``text`` with other signs for those that ``encoding`` has not."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        for sign, plain in _PLAIN.items():
            text = text.replace(sign, plain)
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text
