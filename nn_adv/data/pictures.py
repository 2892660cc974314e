"""Encoded pictures as the pixels of a dataset, whatever kind of PNG they are: without loss, or not at all."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH = 24  # where a PNG has its bits per channel
_STEP = 65535 // 255  # one of 8 bits, in those of 16
_CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")


def decode(encoded: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """Decode a picture.

    Args:
      encoded: a PNG or JPEG file.
      shape: ``(H, W, C)``, with one channel for grey or three for colours.

    Returns:
      uint8 ``[H, W, C]``.

    Raises:
      ValueError: it cannot be decoded, has another size, or more in it than such pixels hold: colours, transparency,
        or 16 bits that are no multiple of 8 bits.
    """
    try:
        picture = Image.open(io.BytesIO(encoded))
        picture.load()
    except (OSError, SyntaxError) as error:  # what Pillow raises for damage
        raise ValueError(f"it cannot be decoded ({error})") from error
    if (picture.height, picture.width) != shape[:2]:
        raise ValueError(f"it has {picture.height} x {picture.width} pixels in place of {shape[0]} x {shape[1]}")
    is_deep = encoded.startswith(_PNG_MAGIC) and encoded[_PNG_DEPTH] == 16
    if is_deep:
        return _shallow(np.asarray(picture), shape)
    if picture.mode != ("L" if shape[2] == 1 else "RGB") or "transparency" in picture.info:
        return _converted(picture, shape[2])
    return np.asarray(picture).reshape(shape)


def _shallow(pixels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Bring 16 bits to 8. Of pictures that are not grey Pillow has kept 8 already, whatever was in the others."""
    if pixels.dtype == np.uint8 or (pixels % _STEP).any():
        raise ValueError("it has 16 bits a channel, of which the dataset holds 8")
    return np.broadcast_to((pixels // _STEP).astype(np.uint8)[..., None], shape)


def _converted(picture: Image.Image, num_channels: int) -> np.ndarray:
    if picture.mode not in _CONVERTIBLE:
        raise ValueError(f"it is in mode {picture.mode}, which cannot be converted without loss")
    pixels = np.asarray(picture.convert("RGBA"))
    if (pixels[..., 3] < 255).any():
        raise ValueError("it has transparent pixels, which the dataset cannot hold")
    if num_channels == 1 and (pixels[..., :1] != pixels[..., 1:3]).any():
        raise ValueError("it has colours, which a grey picture does not hold")
    return pixels[..., :num_channels]
