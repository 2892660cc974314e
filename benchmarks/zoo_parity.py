"""Do the networks of the catalogue compute what the published ones do? At full size, under weights made by a rule.

  python -m benchmarks.zoo_parity --shared=SHARED_DIR

The folder's ``reference/robustbench`` holds outputs of the PyTorch networks (tests/zoo/fixtures.py). Each line is
printed and stored in docs/benchmarks/zoo_parity.json as soon as it is known, with the commit that it is of; a second
run does what is missing, so delete the file, or name fixtures, to do them anew.
"""

from __future__ import annotations

import pathlib
import sys
import time

import jax

from benchmarks.timing import command, environment, keep, kept
from tests.zoo import fixtures

_RESULTS = pathlib.Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "zoo_parity.json"


def main() -> None:
    parser = command(__doc__)
    parser.set_defaults(output=_RESULTS)
    parser.add_argument("--shared", type=pathlib.Path, required=True)
    parser.add_argument("fixtures", nargs="*", help="to do anew; none for those not done yet")
    arguments = parser.parse_args()
    records = fixtures.read(arguments.shared)
    unknown = sorted(set(arguments.fixtures) - set(records))
    if unknown:
        parser.error(f"no fixture {', '.join(unknown)}; there are {', '.join(records)}")
    rows = kept(arguments.output)
    for name in sorted(arguments.fixtures or set(records) - set(rows), key=lambda n: records[n]["n_parameters"]):
        start = time.perf_counter()
        outcome = fixtures.compare(arguments.shared, name)
        jax.clear_caches()
        rows[name] = {
            "models": records[name]["covers"],
            "parameters": outcome.parameters,
            "deviation": outcome.deviation,
            "limit": outcome.limit,
            "seconds": round(time.perf_counter() - start, 1),
            "environment": environment("flax"),
        }
        print(f"{name}: {outcome.deviation:.1e} of {outcome.limit:.0e}, {rows[name]['seconds']} s", flush=True)
        keep(arguments.output, dict(sorted(rows.items())))
    failed = [name for name, row in rows.items() if not row["deviation"] < row["limit"]]
    if failed:
        sys.exit(f"too far from the published outputs: {', '.join(failed)}")


if __name__ == "__main__":
    main()
