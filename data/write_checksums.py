"""Writes the checksum table of data/README.md anew, after a model was trained or the samples were written.

Run it as `python data/write_checksums.py`.
"""

from pathlib import Path

if __package__:  # imported as activarium.data.write_checksums
    from .cards import sha256
else:  # run as a script
    from cards import sha256

HERE = Path(__file__).parent
FOLDERS = ("scribe", "scribe-relu", "glyph", "samples", "dictionaries/*")
START, END = "<!-- checksums -->", "<!-- end of checksums -->"


def table() -> str:
    """Which files are there, how large, and with which checksum? A Markdown table."""
    rows = ["| file | bytes | sha256 |", "|---|---|---|"]
    for path in sorted(path for folder in FOLDERS for path in HERE.glob(f"{folder}/*") if path.is_file()):
        rows.append(f"| {path.relative_to(HERE)} | {path.stat().st_size:,} | `{sha256(path)}` |")
    return "\n".join(rows)


def main() -> None:
    """Put the table between its two marks."""
    readme = HERE / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(START)
    readme.write_text(f"{before}{START}\n{table()}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
