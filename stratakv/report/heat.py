"""Colours of types: more bits, more colour; letters that stay readable on each."""

from __future__ import annotations

# Bits -> colour: from pale to deep, so that it also reads in grey and with any colour blindness
_STOPS = {
    2: (0xF6, 0xEF, 0xC9),
    3: (0xB9, 0xDD, 0xBE),
    4: (0x74, 0xC4, 0xB4),
    5: (0x45, 0xA3, 0xB5),
    6: (0x2B, 0x6F, 0xA6),
    8: (0x1D, 0x42, 0x84),
    16: (0x1A, 0x1F, 0x4F),
}
_DARK, _LIGHT = (0x10, 0x18, 0x20), (0xFF, 0xFF, 0xFF)


def colours(bits: float) -> tuple[str, str]:
    """(background, letters) of bits per value as #rrggbb, with a contrast of at least 4.5 to 1 between them."""
    ground = _STOPS[min(_STOPS, key=lambda stop: abs(stop - bits))]
    letters = max((_DARK, _LIGHT), key=lambda ink: contrast(ground, ink))
    return _hex(ground), _hex(letters)


def contrast(left: tuple[int, ...], right: tuple[int, ...]) -> float:
    """The contrast ratio of two colours (WCAG 2.2, relative luminance)."""
    bright, dim = sorted((_luminance(left), _luminance(right)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def _luminance(colour: tuple[int, ...]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (each / 255 for each in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _hex(colour: tuple[int, ...]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
