"""Are our attacks as strong as the published ones? Two small networks on which the authors' code was run.

  python -m benchmarks.attack_parity --reference=REFERENCE_DIR
  python -m benchmarks.attack_parity --reference=REFERENCE_DIR --spread="c10 l2 0.85 apgd-dlr"

The folder holds the networks, 200 images for each, and `outcomes.json`, the share of images that the published code
left unbroken with one attack or with its ensemble ("aa"), in float32 and for some also in float64. Each line is
printed and stored in docs/benchmarks/attack_parity.json as soon as it is known, with the commit that it is of; a
second run does what is missing, so delete the file to do all anew. The second command prints what one attack leaves
with each of forty seeds.
"""

from __future__ import annotations

import collections
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np

from benchmarks.timing import command, environment, keep, kept
from nn_adv import attacks
from nn_adv.threat import Threat
from tests.attacks import reference_models

_RESULTS = pathlib.Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "attack_parity.json"
_SEEDS_OF_ONE_START = 5
_SEEDS_OF_A_SPREAD = 40
_NUM_IMAGES = 200  # those that a network gets wrong are among them, and count as broken
_NORMS = {key: norm for norm, key in reference_models.KEYS.items()}


def main() -> None:
    parser = command(__doc__)
    parser.set_defaults(output=_RESULTS)
    parser.add_argument("--reference", type=pathlib.Path, required=True)
    parser.add_argument("--spread", metavar="NAME", help='"network norm epsilon attack", as the lines are named')
    arguments = parser.parse_args()
    if arguments.spread:
        left = _left_by_ours(arguments.reference, arguments.spread, _SEEDS_OF_A_SPREAD)["ours"]
        print(f"{arguments.spread}: mean {np.mean(left):.4f}, standard deviation {np.std(left, ddof=1):.4f}: {left}")
        return
    found = kept(arguments.output)
    for name, published in _published(arguments.reference).items():
        if name not in found:
            started = time.perf_counter()
            # One random start of one attack is worth a point or two.
            num_seeds = _SEEDS_OF_ONE_START if name.split()[-1] in ("apgd-ce", "apgd-dlr") else 1
            left = _left_by_ours(arguments.reference, name, num_seeds)
            seconds = round(time.perf_counter() - started, 1)
            found[name] = published | left | {"seconds": seconds, "commit": environment()["commit"]}
            keep(arguments.output, found)
        print(name, json.dumps(found[name]), flush=True)


def _published(folder: pathlib.Path) -> dict[str, dict[str, list[float]]]:
    """Return what the published code left, by "network norm epsilon attack"; a value for each of its seeds."""
    outcomes = json.loads((folder / "outcomes.json").read_text())
    published: dict[str, dict[str, list[float]]] = collections.defaultdict(dict)
    for key, outcome in outcomes.items():
        network, dtype, norm, epsilon, attack, _ = key.split("/")
        name = f"{network} {_NORMS[norm]} {epsilon} {attack}"
        published[name].setdefault(f"published_{dtype}", []).append(outcome["robust_accuracy"])
    return dict(published)


def _left_by_ours(folder: pathlib.Path, name: str, num_seeds: int) -> dict[str, Any]:
    network, norm, epsilon, attack = name.split()
    model = reference_models.load(folder, network)
    num_classes = {"c10": 10, "c2": 2}[network]
    threat = Threat(norm, round(255 * float(epsilon)) / 255 if norm == "linf" else float(epsilon))
    suite = None if attack == "aa" else (attacks.named_attack(attack, num_classes),)
    options = {"threat": threat, "attacks": suite, "batch_size": len(model.images)}
    results = [
        attacks.ensemble(model.logits_fn, model.images, model.labels, key=jax.random.key(seed), **options)
        for seed in range(num_seeds)
    ]
    shares = [[count / _NUM_IMAGES for count in result.num_unbroken[1:]] for result in results]
    after_each = {"ours_after_each": dict(zip(results[0].names, shares[0], strict=True))} if attack == "aa" else {}
    return {"ours": [share[-1] for share in shares]} | after_each


if __name__ == "__main__":
    main()
