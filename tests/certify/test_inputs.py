"""What cannot be certified is refused by everything that certifies, in one line, before any work."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from nn_adv import certify, neighbors
from nn_adv.certify import inputs
from nn_adv.threat import Threat

RNG = np.random.default_rng(0)
POINTS = RNG.random((20, 4)).astype(np.float32)
LABELS = np.arange(20) % 3
REFERENCE = neighbors.fit(POINTS, LABELS, 3)
IMAGES = RNG.random((5, 4)).astype(np.float32)
EMBEDDING = certify.Embedding(lambda images: images.reshape(len(images), -1)[:, :2], 1.0, "first two")
EMBEDDED = neighbors.fit(EMBEDDING(POINTS), LABELS, 3)

ASKED = {
    "radius": functools.partial(certify.radius, REFERENCE, norm="l2"),
    "decide": functools.partial(certify.decide, REFERENCE, threat=Threat("linf", 0.1)),
    "embedded_radius": functools.partial(certify.embedded_radius, EMBEDDED, embed=EMBEDDING, norm="l2", points=POINTS),
    "margin_bound": functools.partial(certify.margin_bound, REFERENCE, distance_norm="l1", threat_norm="l2"),
    "vote_bounds": functools.partial(certify.vote_bounds, REFERENCE, k=3, norm="l2"),
}
LEAVING_OUT = [name for name in ASKED if name != "margin_bound"]
WITH_BOUNDS = ["radius", "decide", "vote_bounds"]


def _with_first_pixel(value):
    images = IMAGES.copy()
    images[3, 0] = value
    return images


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": IMAGES[:0]}, r"labels must be integers \[0\], got int64 of shape \(5,\)"),
        ({"images": np.float32(0.5)}, r"images must be \[N, ...\], got shape \(\)"),
        ({"images": [[0.1, 0.2, 0.3, 0.4], [0.1]]}, "images must be one array, got rows of different shapes"),
        ({"images": IMAGES.astype(int)}, "images must be uint8 or floating point, got dtype int64"),
        ({"images": _with_first_pixel(np.nan)}, "images must be finite.*, got nan at index 3"),
        ({"images": _with_first_pixel(-np.inf)}, "images must be finite.*, got -inf at index 3"),
        ({"labels": LABELS[:4]}, r"labels must be integers \[5\], got int64 of shape \(4,\)"),
        ({"labels": LABELS[:5].astype(float)}, r"labels must be integers \[5\], got 0.0 at index 0 of dtype float64"),
        ({"labels": LABELS[:5] + 1}, r"labels must be in 0\.\.2, got 3 at index 2"),
        ({"labels": LABELS[:5] - 1}, r"labels must be in 0\.\.2, got -1 at index 0"),
    ],
)
def test_bad_images_and_labels_are_refused(name, change, message):
    arguments = {"images": IMAGES, "labels": LABELS[:5]} | change
    with pytest.raises(ValueError, match=message) as error:
        ASKED[name](arguments["images"], arguments["labels"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", LEAVING_OUT)
@pytest.mark.parametrize(
    ("leave_out", "message"),
    [
        (np.zeros(4, int), r"leave_out must be integers \[5\]"),
        (np.zeros(5), r"leave_out must be integers \[5\], got 0.0 at index 0 of dtype float64"),
        (np.full(5, 20), r"leave_out must be in -1\.\.19, got 20 at index 0"),
        (np.full(5, -5), r"leave_out must be in -1\.\.19, got -5 at index 0"),
    ],
)
def test_bad_points_to_leave_out_are_refused(name, leave_out, message):
    with pytest.raises(ValueError, match=message):
        ASKED[name](IMAGES, LABELS[:5], leave_out=leave_out)


@pytest.mark.parametrize("name", ["radius", "decide", "margin_bound", "vote_bounds"])
def test_images_of_another_size_are_refused(name):
    with pytest.raises(ValueError, match=r"images must be \[N, ...\] with 4 pixels each, got shape \(5, 3\)"):
        ASKED[name](IMAGES[:, :3], LABELS[:5])


@pytest.mark.parametrize("name", WITH_BOUNDS)
def test_images_outside_the_bounds_are_refused(name):
    with pytest.raises(ValueError, match=r"images must be finite and inside \(0.0, 1.0\), got 1.5 at index 3"):
        ASKED[name](_with_first_pixel(1.5), LABELS[:5])


@pytest.mark.parametrize(("name"), ["radius", "vote_bounds"])
@pytest.mark.parametrize("bounds", [(1.0, 0.0), (0.5, 0.5), (0.0, np.nan), (0.0,)])
def test_bounds_that_are_none_are_refused(name, bounds):
    with pytest.raises(ValueError, match=r"bounds must be \(lowest, highest\) or None, got"):
        ASKED[name](IMAGES, LABELS[:5], bounds=bounds)


@pytest.mark.parametrize("name", WITH_BOUNDS)
def test_units_that_cannot_belong_together_are_refused(name):
    pixels, floats = (RNG.integers(0, 256, (20, 4)).astype(dtype) for dtype in (np.uint8, np.float32))
    asked = {
        "radius": lambda reference, images: certify.radius(reference, images, LABELS[:5], norm="l2", bounds=(0, 255)),
        "decide": lambda reference, images: certify.decide(
            reference, images, LABELS[:5], threat=Threat("l2", 1.0, (0, 255))
        ),
        "vote_bounds": lambda reference, images: certify.vote_bounds(
            reference, images, LABELS[:5], k=1, norm="l2", bounds=(0, 255)
        ),
    }[name]
    for points, images, message in (
        (floats, pixels, "images must be in the units of the points: .* but the points lie between .* fit the points"),
        (pixels, floats, "images must be in the units of the points: .* divide pixels of 0..255 by 255"),
        (pixels, pixels, r"bounds must be in the units of the pixels, .* got \(0.0, 255.0\)"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            asked(neighbors.fit(points, LABELS, 3), images[:5])
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("power", [-51, 60])
@pytest.mark.parametrize("name", ["radius", "vote_bounds"])
def test_pixels_that_float32_cannot_square_are_refused(name, power):
    scale = np.float32(2.0**power)
    reference = neighbors.fit(POINTS * scale, LABELS, 3)
    ask = functools.partial(getattr(certify, name), norm="l2", bounds=None, **({"k": 3} if name != "radius" else {}))
    with pytest.raises(ValueError, match="points of the reference must have a largest pixel between .* power of two"):
        ask(reference, IMAGES * scale, LABELS[:5])
    if power > 0:
        with pytest.raises(ValueError, match="images must have a largest pixel between .*power of two"):
            ask(REFERENCE, IMAGES * scale, LABELS[:5])


def test_bounds_are_pixels():
    assert inputs.check_bounds((0, 0.2)) == (0.0, float(np.float32(0.2)))
    assert inputs.check_bounds(None) is None
