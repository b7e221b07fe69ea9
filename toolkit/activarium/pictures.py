"""Small static pictures made with numpy alone: what a Result shows where no widget can run (GitHub, e-mail, print)."""

import base64
import html
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Anchor colours: a cividis-like ramp for magnitudes; blue, white, orange for signed values. Safe for colour-blind readers.
SEQUENTIAL = np.array([[0, 34, 78], [53, 69, 108], [102, 105, 112], [148, 142, 119], [200, 184, 102], [254, 232, 56]])
DIVERGING = np.array([[20, 76, 140], [90, 150, 205], [190, 217, 237], [247, 247, 247], [250, 205, 160], [230, 135, 50], [160, 72, 0]])

# Masks that drawings know by name; their meaning is the same in every analysis.
KNOWN_ZERO, NO_ROW = "known_zero", "no_row"
HATCH = 6  # pixels from one diagonal line to the next


def number(value: Any) -> str:
    """A number as a reader wants it: integers whole, others with four digits."""
    if isinstance(value, (bool, np.bool_, str)):
        return str(value)
    if isinstance(value, (int, np.integer)) or float(value).is_integer():
        return f"{int(value)}"
    return f"{float(value):.4g}"


def colour_range(values: np.ndarray) -> tuple[float, float]:
    """Lowest and highest value of the colour scale: symmetric about 0 for signed values, from 0 otherwise."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    size = max(abs(low), abs(high)) or 1.0
    return (-size, size) if low < 0 else (0.0, size)


def paint(values: np.ndarray, limits: tuple[float, float] | None = None) -> np.ndarray:
    """Values of any shape to uint8 colours with a trailing axis of 3; NaN becomes grey."""
    low, high = limits or colour_range(values)
    ramp = DIVERGING if low < 0 else SEQUENTIAL
    share = np.clip((np.nan_to_num(values.astype(float), nan=low) - low) / (high - low), 0, 1) * (len(ramp) - 1)
    channels = [np.interp(share, range(len(ramp)), ramp[:, c]) for c in range(3)]
    colours = np.stack(channels, axis=-1).round().astype(np.uint8)
    colours[~np.isfinite(values)] = 128
    return colours


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 pixels `(height, width, 3)`."""
    height, width, _ = pixels.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines, 6)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def shrink(values: np.ndarray, size: int) -> tuple[np.ndarray, int]:
    """At most `size` cells a side, keeping in each block the value of largest size, so that a lone peak stays visible."""
    step = max(1, -(-max(values.shape) // size))
    if step == 1:
        return values, 1
    rows = [slice(i, i + step) for i in range(0, values.shape[0], step)]
    columns = np.arange(0, values.shape[1], step)
    bare = np.nan_to_num(values.astype(float))
    high = np.stack([np.maximum.reduceat(bare[r].max(0), columns) for r in rows])
    low = np.stack([np.minimum.reduceat(bare[r].min(0), columns) for r in rows])
    return np.where(high >= -low, high, low), step


def marked(pixels: np.ndarray, masks: Mapping[str, np.ndarray]) -> np.ndarray:
    """Pixels with diagonal lines over masked cells, and with nothing at all where a cell stands for no row."""
    found = pixels.copy()
    down, across = np.indices(pixels.shape[:2])
    for name, mask in masks.items():
        rows, columns = (np.arange(n) * m // n for n, m in zip(pixels.shape[:2], mask.shape, strict=True))
        cells = mask[np.ix_(rows, columns)]
        lines = (down + across if name == KNOWN_ZERO else down - across) % HATCH == 0
        found[cells & (True if name == NO_ROW else lines)] = 255 if name == NO_ROW else 128
    return found


def mask_words(masks: Mapping[str, np.ndarray]) -> str:
    """What the marks of `marked` mean, for the masks that cover anything."""
    covering = [name for name, mask in masks.items() if mask.any()]
    return "".join(f" · {'blank' if name == NO_ROW else 'hatched'}: {name.replace('_', ' ')}" for name in covering)


def heatmap(values: np.ndarray, title: str, unit: str, width: int = 480, masks: Mapping[str, np.ndarray] | None = None) -> str:
    """An `<img>` of a 2-D array with a caption that states the colour range and any pooling."""
    if not values.size:
        return "<p>(no values)</p>"
    small, step = shrink(np.asarray(values, dtype=float), 512)
    limits = colour_range(small)
    scale = max(1, min(24, width // small.shape[1], max(4, 600 // small.shape[0])))  # slices stand below each other: keep to a screen
    over = {name: mask[::step, ::step] for name, mask in (masks or {}).items()}
    pixels = marked(paint(small, limits).repeat(scale, 0).repeat(scale, 1), over)
    data = base64.b64encode(png(pixels)).decode()
    note = f" · each pixel is the extreme of {step}×{step} cells" if step > 1 else ""
    caption = f"{html.escape(title)} · colours {number(limits[0])} to {number(limits[1])} {html.escape(unit)}{note}{html.escape(mask_words(over))}"
    return f'<figure style="margin:4px 0"><img alt="{html.escape(title)}" src="data:image/png;base64,{data}"/><figcaption><small>{caption}</small></figcaption></figure>'


def tokens(names: Sequence[str], values: np.ndarray, title: str) -> str:
    """Tokens on a coloured ground, escaped."""
    colours = paint(np.asarray(values, dtype=float))
    spans = [
        f'<span title="{number(v)}" style="background:rgb({r},{g},{b});color:{"#000" if int(r) + int(g) + int(b) > 380 else "#fff"};padding:1px 2px;white-space:pre">{html.escape(n)}</span>'
        for n, v, (r, g, b) in zip(names, values, colours, strict=True)
    ]
    return f"<p><small>{html.escape(title)}</small><br/>{' '.join(spans)}</p>"


def line(text: str) -> str:
    """A small line of its own under a picture; nothing for no text."""
    return f"<p><small>{html.escape(text)}</small></p>" if text else ""


def words(lines: Sequence[str]) -> str:
    """Sentences as a list."""
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>" if lines else ""


def table(lines: Sequence[Sequence[str]]) -> str:
    """Lines of text as an HTML table, the first one as its head."""
    if not lines:
        return ""
    head, *body = [[html.escape(str(cell)) for cell in line] for line in lines]
    cells = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in line) + "</tr>" for line in body)
    return f"<table><thead><tr>{''.join(f'<th>{c}</th>' for c in head)}</tr></thead><tbody>{cells}</tbody></table>"


def card(title: str, picture: str, lines: Sequence[Sequence[str]], notes: Mapping[str, Any]) -> str:
    """Title, picture, table and notes in one block."""
    small = "; ".join(f"{k}: {v}" for k, v in notes.items() if isinstance(v, (str, int, float)))
    foot = f"<small>{html.escape(small)}</small>" if small else ""
    return f"<div><strong>{html.escape(title)}</strong>{picture}{table(lines)}{foot}</div>"
