"""What does APGD through the soft form leave of its accuracy, beside the exact answer?

Digits, ten classes, the first so many test images with classes balanced. Every attack is judged by 1NN itself; one that
breaks an image inside its proven radius ends the run.

  python -m benchmarks.tempered --output=docs/benchmarks/tempered.json
"""

from __future__ import annotations

import time
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.timing import command, environment, keep
from experiments import evaluate
from nn_adv import attacks, certify, data, neighbors
from nn_adv.pixels import as_float
from nn_adv.threat import Threat, random_start

RADII = {"linf": (0.1, 0.15), "l2": (0.4, 0.6)}
TEMPERATURES = (0.01, 0.03, 0.1, 0.3, 1.0)
SCHEDULE = (0.03, 0.01, 0.1, 0.3)  # the default of `attacks.tempered_apgd`


class Setting(NamedTuple):
    """1NN, the images to attack, which of the test images they are, and their exact radii in one norm."""

    reference: neighbors.Reference
    images: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray
    exact: certify.Radius


@jax.jit
def _tempered(reference, images, labels, keys, threat, temperatures):
    return attacks.tempered_apgd(
        lambda x, temperature: neighbors.soft_logits(reference, x, temperature),
        images,
        labels,
        key=keys,
        threat=threat,
        predict_fn=lambda x: neighbors.predict(reference, x),
        temperatures=temperatures,
    ).success


@jax.jit
def _annealed(reference, images, labels, keys, threat, temperatures):
    """Cool down: every temperature starts where the one before ended, the first at random."""

    def run(points, temperature):
        found = attacks.apgd(
            lambda x: neighbors.soft_logits(reference, x, temperature),
            images,
            labels,
            key=keys,
            threat=threat,
            loss_fn=attacks.margin,
            starts=points,
            predict_fn=lambda x: neighbors.predict(reference, x),
        )
        return found.adversarial, found.success

    start = random_start(threat, keys, images)
    return jax.lax.scan(run, start, temperatures)[1].any(axis=0)


def _timed(call, *arguments) -> tuple[np.ndarray, float]:
    """Return what a call gives and how long it takes once it is compiled."""
    jax.block_until_ready(call(*arguments))
    started = time.perf_counter()
    return np.asarray(call(*arguments)), round(time.perf_counter() - started, 2)


def _row(setting: Setting, epsilon: float, name: str, found: list[tuple[np.ndarray, float]]) -> dict:
    """Count what was left, one number per seed, after holding what broke against its proven radius."""
    for success, _ in found:
        if np.any(success & setting.exact.correct & (setting.exact.lower > epsilon * (1 + 1e-6))):
            raise SystemExit(f"{name} broke an image inside its proven radius at {epsilon}")
    row = {"name": name, "unbroken": [int(np.sum(~success)) for success, _ in found], "seconds": found[0][1]}
    print(epsilon, row, flush=True)
    return row


def _run_radius(setting: Setting, threat: Threat, seeds: int) -> dict:
    epsilon = float(threat.epsilon)
    keys = [attacks.example_keys(jax.random.key(seed), setting.numbers) for seed in range(seeds)]

    def attack(call, temperatures):
        arguments = (threat, np.asarray(temperatures, np.float32))
        return [_timed(call, setting.reference, setting.images, setting.labels, key, *arguments) for key in keys]

    found = {
        f"T {temperature:g} x {runs}": attack(_tempered, (temperature,) * runs)
        for temperature in TEMPERATURES
        for runs in (1, len(SCHEDULE))
    }
    found["annealed"] = attack(_annealed, sorted(SCHEDULE, reverse=True))
    found["schedule"] = attack(_tempered, SCHEDULE)
    robust = setting.exact.correct & (setting.exact.lower >= epsilon)
    rows = [_row(setting, epsilon, name, results) for name, results in found.items()]
    return {"epsilon": epsilon, "exact": int(np.sum(robust)), "rows": rows}


def _run_norm(norm: str, num_images: int, seeds: int) -> dict:
    digits = data.load("digits")
    chosen = evaluate.balanced(digits.test_labels, num_images)
    reference = neighbors.fit(digits.train_images, digits.train_labels, digits.num_classes)
    images, labels = np.asarray(as_float(digits.test_images[chosen])), digits.test_labels[chosen]
    exact = certify.radius(reference, digits.test_images[chosen], labels, norm=norm)
    setting = Setting(reference, images, labels, chosen, exact)
    return {"cases": [_run_radius(setting, Threat(norm, epsilon), seeds) for epsilon in RADII[norm]]}


def main() -> None:
    """Run all norms and print, and with ``--output`` write, the results."""
    parser = command(__doc__)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    report: dict = {"images": arguments.images, "schedule": SCHEDULE, "norms": {}}
    for norm in RADII:
        report["norms"][norm] = _run_norm(norm, arguments.images, arguments.seeds)
        report["environment"] = environment()
        keep(arguments.output, report)


if __name__ == "__main__":
    main()
