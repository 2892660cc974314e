"""Made-up rows for the tests of the report."""

from __future__ import annotations

import itertools

import numpy as np

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
METHODS = ("1nn", "trades-linf", "trades-l2", "trades-both", "standard")
RADII = {"linf": 8 / 255, "l2": 1.74}
GRID = {norm: [radius * k / 8 for k in (1, 2, 4, 6, 8, 12)] for norm, radius in RADII.items()}


def evaluation(split, norm, epsilon, kind, count, robust):
    """One accuracy."""
    return {"split": split, "norm": norm, "epsilon": epsilon, "kind": kind, "count": count, "robust": int(robust)}


def row(task, method, evaluations, *, dataset="digits", classes=("0", "1"), seed=0, radii=None, **fields):
    """One row with the given evaluations."""
    return {
        "schema": 1,
        "unit": f"{dataset}/{task}/{method}/{seed}",
        "dataset": dataset,
        "dataset_note": "made up",
        "task": task,
        "classes": list(classes),
        "method": method,
        "seed": seed,
        "config_hash": "0123456789ab",
        "num_train": 10000,
        "evaluations": evaluations,
        "main_radii": dict(radii or RADII),
        "attack": {"name": "pgd", "num_steps": 20, "num_restarts": 1},
        "training": None if method == "1nn" else {"model": "small_cnn", "epochs": 10, "selected_epoch": len(task)},
        "seconds": {"train": 0.0 if method == "1nn" else 61.5, "evaluate": 2.25},
        "versions": {"nn_adv": "0.1.0", "jax": "0.10.2", "python": "3.11.9"},
        "device": "cpu",
        "finished": "2026-01-01T00:00:00Z",
    } | fields


def realistic_rows(*, dataset="cifar10", methods=METHODS, num_classes=10, splits=("train", "test"), seed=0):
    """Rows of every pair and method that look like a run: smooth curves, harder and easier pairs, noise."""
    generator = np.random.default_rng(seed)
    # Per method: clean accuracy (train, test), radius in main radii at which half is lost (train, test) per norm.
    shape = {
        "1nn": (1.0, 0.80, {"linf": (1.6, 0.55), "l2": (1.5, 0.65)}),
        "trades-linf": (0.97, 0.93, {"linf": (1.9, 1.3), "l2": (0.7, 0.5)}),
        "trades-l2": (0.96, 0.92, {"linf": (0.8, 0.6), "l2": (1.5, 1.0)}),
        "trades-both": (0.93, 0.90, {"linf": (1.6, 1.15), "l2": (1.4, 0.95)}),
        "standard": (1.0, 0.97, {"linf": (0.15, 0.1), "l2": (0.12, 0.1)}),
    }
    count = 200
    rows = []
    for one, two in itertools.combinations(range(num_classes), 2):
        hardness = generator.normal(0, 0.25)
        for method in methods:
            kind = "exact" if method == "1nn" else "attacked"
            *clean, halves = shape[method]
            found = []
            for split in splits:
                number = ("train", "test").index(split)
                base = np.clip(clean[number] - 0.03 * abs(hardness) * number, 0, 1)
                found.append(evaluation(split, None, 0.0, "clean", count, round(base * count)))
                at_main = []
                for norm, half in halves.items():
                    middle = half[number] * np.exp(-hardness)
                    for epsilon in GRID[norm]:
                        share = base / (1 + np.exp(6 * (epsilon / RADII[norm] - middle)))
                        robust = min(round(base * count), round(share * count))
                        found.append(evaluation(split, norm, epsilon, kind, count, robust))
                        if epsilon == RADII[norm]:
                            at_main.append(robust)
                found.append(evaluation(split, "worst", None, kind, count, 0.97 * min(at_main)))
            rows.append(row(f"{one}v{two}", method, found, dataset=dataset, classes=(CLASSES[one], CLASSES[two])))
    return rows
