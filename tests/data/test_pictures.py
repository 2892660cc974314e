"""Pictures of every kind become the pixels they show, or are refused in one line."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from nn_adv.data import pictures

_RNG = np.random.default_rng(0)
_GREY = _RNG.integers(0, 256, (5, 4), np.uint8)
_COLOUR = _RNG.integers(0, 256, (5, 4, 3), np.uint8)
_OPAQUE = np.full((5, 4, 1), 255, np.uint8)
_GREY_TYPE, _RGB_TYPE, _PALETTE_TYPE, _GREY_ALPHA_TYPE, _RGBA_TYPE = 0, 2, 3, 4, 6


def _png(pixels, colour_type, depth=8, palette=None, transparent=None):
    """Write a PNG of any kind, without the library that is tested."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    def line(row):
        if depth >= 8:
            return row.astype(f">u{depth // 8}").tobytes()
        return np.packbits((row[:, None] >> np.arange(depth)[::-1]).astype(np.uint8) & 1).tobytes()

    height, width = pixels.shape[:2]
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))]
    parts += [chunk(b"PLTE", palette.tobytes())] if palette is not None else []
    parts += [chunk(b"tRNS", transparent)] if transparent else []
    content = zlib.compress(b"".join(b"\0" + line(row) for row in pixels))
    return b"".join([*parts, chunk(b"IDAT", content), chunk(b"IEND", b"")])


def _grey(pixels, num_channels=1):
    return np.repeat(pixels[..., None], num_channels, axis=2)


_BITS = _GREY & 1
_GREYS, _COLOURS = np.repeat(np.array([[7], [250]], np.uint8), 3, axis=1), np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
_KEPT = {
    "grey": (_png(_GREY, _GREY_TYPE), _grey(_GREY)),
    "colours": (_png(_COLOUR, _RGB_TYPE), _COLOUR),
    "grey for colours": (_png(_GREY, _GREY_TYPE), _grey(_GREY, 3)),
    "grey in colours": (_png(_grey(_GREY, 3), _RGB_TYPE), _grey(_GREY)),
    "1 bit": (_png(_BITS, _GREY_TYPE, depth=1), _grey(_BITS * np.uint8(255))),
    "2 bits": (_png(_GREY & 3, _GREY_TYPE, depth=2), _grey((_GREY & 3) * np.uint8(85))),
    "4 bits": (_png(_GREY & 15, _GREY_TYPE, depth=4), _grey((_GREY & 15) * np.uint8(17))),
    "16 bits": (_png(_GREY * np.uint16(257), _GREY_TYPE, depth=16), _grey(_GREY)),
    "16 bits for colours": (_png(_GREY * np.uint16(257), _GREY_TYPE, depth=16), _grey(_GREY, 3)),
    "palette of colours": (_png(_BITS, _PALETTE_TYPE, palette=_COLOURS), _COLOURS[_BITS]),
    "palette of greys": (_png(_BITS, _PALETTE_TYPE, palette=_GREYS), _GREYS[_BITS][..., :1]),
    "palette of 1 bit": (_png(_BITS, _PALETTE_TYPE, depth=1, palette=_COLOURS), _COLOURS[_BITS]),
    "palette, opaque": (
        _png(_BITS, _PALETTE_TYPE, palette=_COLOURS, transparent=b"\xff\xff"),
        _COLOURS[_BITS],
    ),
    "grey, opaque": (_png(np.concatenate([_grey(_GREY), _OPAQUE], axis=2), _GREY_ALPHA_TYPE), _grey(_GREY)),
    "colours, opaque": (_png(np.concatenate([_COLOUR, _OPAQUE], axis=2), _RGBA_TYPE), _COLOUR),
    "a grey that would be transparent": (_png(_GREY | 1, _GREY_TYPE, transparent=b"\0\4"), _grey(_GREY | 1)),
}


@pytest.mark.parametrize("name", _KEPT)
def test_what_a_picture_shows_is_kept(name):
    encoded, expected = _KEPT[name]
    pixels = pictures.decode(encoded, expected.shape)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected)


def _cmyk():
    encoded = io.BytesIO()
    PIL.Image.fromarray(_RNG.integers(0, 256, (5, 4, 4), np.uint8), "CMYK").save(encoded, "jpeg")
    return encoded.getvalue()


_REFUSED = {
    "colours for grey": (_png(_COLOUR, _RGB_TYPE), (5, 4, 1), "colours, which a grey picture does not hold"),
    "palette for grey": (_png(_BITS, _PALETTE_TYPE, palette=_COLOURS), (5, 4, 1), "colours, which a grey"),
    "16 bits": (_png(_GREY * np.uint16(257) + 1, _GREY_TYPE, depth=16), (5, 4, 1), "16 bits a channel, of which"),
    "colours of 16 bits": (_png(_COLOUR * np.uint16(257), _RGB_TYPE, depth=16), (5, 4, 3), "16 bits a channel"),
    "transparency": (
        _png(np.concatenate([_COLOUR, _OPAQUE - 1], axis=2), _RGBA_TYPE),
        (5, 4, 3),
        "transparent pixels, which the dataset cannot hold",
    ),
    "transparent grey": (
        _png(_GREY, _GREY_TYPE, transparent=struct.pack(">H", _GREY[0, 0])),
        (5, 4, 1),
        "transparent pixels",
    ),
    "inks": (_cmyk(), (5, 4, 3), "in mode CMYK, which cannot be converted without loss"),
    "another shape": (_png(_GREY, _GREY_TYPE), (4, 5, 1), "5 x 4 pixels in place of 4 x 5"),
    "another size": (_png(_GREY, _GREY_TYPE), (28, 28, 1), "5 x 4 pixels in place of 28 x 28"),
    "nothing": (b"", (5, 4, 1), "cannot be decoded"),
    "no picture": (b"text", (5, 4, 1), "cannot be decoded"),
    "half": (_png(_COLOUR, _RGB_TYPE)[:60], (5, 4, 3), "cannot be decoded"),
}


@pytest.mark.parametrize("name", _REFUSED)
def test_what_cannot_be_kept_is_refused_in_one_line(name):
    encoded, shape, message = _REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        pictures.decode(encoded, shape)
    assert "\n" not in str(caught.value)
