"""What is run with nn_adv: the experiments, the durable store of their results and the report written from it."""

from __future__ import annotations

import importlib.util
import os
import typing

if typing.TYPE_CHECKING:
    import pandas as pd

_NEEDED = ("absl", "jinja2", "matplotlib", "ml_collections", "orbax", "pandas", "safetensors", "tqdm")
if _missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
    raise ImportError(f"experiments need {', '.join(_missing)}: pip install '.[experiments]' in the checkout")


def records(workdir: str | os.PathLike) -> pd.DataFrame:
    """Return the numbers of a run as a tidy table, for a notebook of one's own; see `report.table`."""
    from experiments import report  # it takes a second, and most of what is here has nothing to do with it

    return report.table(workdir)
