"""Brute-force answers in float64, and in integers between uint8 images."""

from __future__ import annotations

import numpy as np


def as_pixels(images: np.ndarray) -> np.ndarray:
    """Return the values that images stand for: uint8 means v / 255 rounded to float32."""
    if images.dtype == np.uint8:
        images = images.astype(np.float32) / np.float32(255)
    return images.reshape(len(images), -1).astype(np.float64)


def pairwise(points: np.ndarray, queries: np.ndarray, norm: str) -> np.ndarray:
    """Return distances [Q, n] in the units of the points, squared for l2: integers over 255 or 255^2 for uint8."""
    unit = 1.0
    if points.dtype == np.uint8 and queries.dtype == np.uint8:
        unit = 255.0
        points, queries = (x.reshape(len(x), -1).astype(np.int64) for x in (points, queries))
    else:
        points, queries = as_pixels(points), as_pixels(queries)
    rows = []
    for query in queries:
        difference = points - query
        if norm == "l2":
            rows.append((difference**2).sum(axis=1) / unit**2)
        else:
            rows.append({"l1": np.sum, "linf": np.max}[norm](np.abs(difference), axis=1) / unit)
    return np.stack(rows)


def nearest(points: np.ndarray, queries: np.ndarray, k: int, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """Return true distances and indices [Q, k], ties in the order of the index."""
    table = pairwise(points, queries, norm)
    indices = np.argsort(table, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(table, indices, axis=1)
    return (np.sqrt(values) if norm == "l2" else values), indices


def class_distances(points: np.ndarray, labels: np.ndarray, queries: np.ndarray, num_classes: int, norm: str):
    """Return [Q, C], squared for l2, inf for a class without points."""
    table = pairwise(points, queries, norm)
    columns = [table[:, labels == c].min(axis=1, initial=np.inf) for c in range(num_classes)]
    return np.stack(columns, axis=1)


def soft_logits(points: np.ndarray, labels: np.ndarray, queries: np.ndarray, num_classes: int, temperature: float):
    """Return logits [Q, C] and softmax weights within each class [C, Q, n] (zero outside the class)."""
    exponents = -pairwise(points, queries, "l2") / temperature
    logits, weights = [], []
    for c in range(num_classes):
        mine = np.where(labels == c, exponents, -np.inf)
        peak = mine.max(axis=1, keepdims=True)
        if not np.isfinite(peak).all():
            logits.append(np.full(len(queries), -np.inf))
            weights.append(np.zeros_like(mine))
            continue
        unnormalised = np.exp(mine - peak)
        total = unnormalised.sum(axis=1, keepdims=True)
        logits.append((peak + np.log(total))[:, 0])
        weights.append(unnormalised / total)
    return np.stack(logits, axis=1), np.stack(weights)
