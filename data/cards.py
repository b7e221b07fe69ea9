"""What every model card needs: intervals, checksums, and the figures written once for machines and once for people."""

import hashlib
import json
from math import sqrt
from pathlib import Path


def wilson(share: float, n: int) -> tuple[float, float]:
    """Between which bounds does the true share lie, with 95 % confidence? (Wilson 1927, score interval.)"""
    if n < 1:
        raise ValueError(f"An interval needs at least one trial; found n = {n}.\n    Measure on more examples.")
    z = 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def figure(share: float, n: int) -> dict[str, float | int | list[float]]:
    """How is a measured share written in `card.json`? With its number of trials and 95 % interval."""
    low, high = wilson(share, n)
    return {"value": round(share, 4), "n": n, "interval_95": [round(low, 4), round(high, 4)]}


def sha256(path: Path) -> str:
    """What is the checksum of this file?"""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_json(path: Path, content: object) -> None:
    """Write JSON that diffs well: indented, one final newline."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def figure_table(figures: dict[str, dict]) -> str:
    """How do the measured shares read in a README? A Markdown table, one row per behaviour."""
    rows = ["| held-out behaviour | measured | n | 95 % interval |", "|---|---|---|---|"]
    for name, found in figures.items():
        low, high = found["interval_95"]
        rows.append(f"| {name} | {found['value']:.3f} | {found['n']} | {low:.3f} – {high:.3f} |")
    return "\n".join(rows)
