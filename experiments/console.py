"""What a run says on a terminal: signs that the terminal has not are written in others, none ends a run."""

from __future__ import annotations

import sys
import warnings
from typing import TextIO

# As wide as the signs, so that tables stay tables; "L∞" is read with the two spaces in front of it.
_PLAIN = {"  L∞": "Linf", "∞": "inf", "≤": "<", "≥": ">", "±": "~", "−": "-", "–": "-"}


def say(*lines: str, file: TextIO | None = None) -> None:
    """Print lines of text to ``file``, standard output by default, in what its encoding has."""
    stream = file or sys.stdout
    print(*(writable(line, getattr(stream, "encoding", None) or "utf-8") for line in lines), sep="\n", file=stream)


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
