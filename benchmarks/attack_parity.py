"""Are our attacks as strong as the published ones? Two small networks on which the authors' code was run.

  python benchmarks/attack_parity.py --reference=../shared/reference/apgd

The folder holds the networks, 200 images for each, and `outcomes.json`, the share of images that the published code
left unbroken with one attack or with its ensemble ("aa"), in float32 and for some also in float64. Each line is
printed and stored in docs/benchmarks/attack_parity.json as soon as it is known, with the commit that it is of; a
second run does what is missing, so delete the file to do all anew.
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import sys
import time

import jax

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for the loader of these networks, which the tests share

from timing import environment  # noqa: E402

from nn_adv import attacks  # noqa: E402
from nn_adv.threat import Threat  # noqa: E402
from tests.attacks import reference_models  # noqa: E402

_RESULTS = ROOT / "docs" / "benchmarks" / "attack_parity.json"
_NUM_IMAGES = 200  # those that a network gets wrong are among them, and count as broken
_NORMS = {key: norm for norm, key in reference_models.KEYS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    found = json.loads(_RESULTS.read_text()) if _RESULTS.exists() else {}
    for name, published in _published(arguments.reference).items():
        if name not in found:
            started = time.perf_counter()
            left = _left_by_ours(arguments.reference, name)
            seconds = round(time.perf_counter() - started, 1)
            found[name] = published | left | {"seconds": seconds, "commit": environment()["commit"]}
            _RESULTS.write_text(json.dumps(found, indent=1) + "\n")
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


def _left_by_ours(folder: pathlib.Path, name: str) -> dict[str, object]:
    network, norm, epsilon, attack = name.split()
    model = reference_models.load(folder, network)
    num_classes = {"c10": 10, "c2": 2}[network]
    threat = Threat(norm, round(255 * float(epsilon)) / 255 if norm == "linf" else float(epsilon))
    suite = None if attack == "aa" else (attacks.named_attack(attack, num_classes),)
    result = attacks.ensemble(
        model.logits_fn, model.images, model.labels, key=jax.random.key(0), threat=threat, attacks=suite, batch_size=196
    )
    shares = [count / _NUM_IMAGES for count in result.num_unbroken[1:]]
    return {"ours": shares[-1], "ours_after_each": dict(zip(result.names, shares, strict=True))}


if __name__ == "__main__":
    main()
