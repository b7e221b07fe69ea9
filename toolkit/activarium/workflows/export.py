"""Results to one .html file: widgets alive with the network off, numbers and provenance inside."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from activarium import pictures
from activarium.errors import InputError
from activarium.results import Report, Result
from activarium.widgets import widget_for
from activarium.widgets.base import BUILD, STATIC, Widget

Part = Result | Widget | str

# default-src 'none' forbids every request. What is let in, and why:
#   script-src  one inline script by its hash, and blob: for the widgets' modules, which the page keeps as text, each once;
#   style-src   'unsafe-inline', because static tables and pictures carry style attributes, which no hash can cover;
#   img-src     data: for the pictures. A script smuggled in as text has neither the hash nor a blob and cannot run.
_POLICY = (
    "default-src 'none'; script-src 'sha256-{hash}' blob:; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
)

_STYLE = """
:root { color-scheme: light dark; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 15px/1.55 system-ui, sans-serif; color: CanvasText; background: Canvas; }
h1 { font-size: 1.6rem; margin: 0 0 1rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .4rem; } h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p { max-width: 44rem; } img { max-width: 100%; image-rendering: pixelated; } table { border-collapse: collapse; font-size: 13px; }
td, th { padding: 1px 10px 1px 0; text-align: left; } details { margin: .6rem 0 0; font-size: 13px; } .static { overflow-x: auto; }
pre { overflow-x: auto; font-size: 12px; } footer { margin-top: 3rem; border-top: 1px solid GrayText; padding-top: .6rem; }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width"><meta name="generator" content="activarium">
<title>{title}</title><style>{style}</style></head><body>
<h1>{title}</h1>
<noscript><p>Scripts are off: the pictures below are still.</p></noscript>
<main>{body}</main>
<footer>{provenance}</footer>
<script type="application/json" id="activarium-state">{state}</script>
<script type="module">{host}</script>
</body></html>
"""


def export_page(parts: Mapping[str, Part], path: str | Path, *, title: str = "activarium", linked: Sequence[tuple[str, str]] = ()) -> int:
    """How do I hand these results to someone who has only a browser?

    Args:
        parts: Heading → Result, widget, or text. Text becomes paragraphs, split at empty lines, and is escaped.
        path: The .html file to write.
        title: Title of the page.
        linked: Pairs of headings whose widgets point together: what one points at, the other shows.

    Returns:
        Size of the file in bytes.

    Raises:
        InputError: A part is of another type, a linked heading shows no widget, or the front end is not built.
    """
    page = _Page()
    body = "".join(page.section(heading, part) for heading, part in parts.items())
    page.link(linked)
    host = _host()
    digest = base64.b64encode(hashlib.sha256(host.encode()).digest()).decode()
    text = _PAGE.format(
        policy=_POLICY.format(hash=digest),
        title=html.escape(title),
        style=_STYLE,
        body=body,
        provenance=_provenance(parts),
        state=_json({"version_major": 2, "version_minor": 0, "state": page.state, "assets": page.assets}),
        host=host,
    )
    return Path(path).write_bytes(text.encode())


class _Page:
    """What the page gathers while its sections are written: widget states, and every module once."""

    def __init__(self) -> None:
        self.state: dict[str, dict[str, Any]] = {}
        self.assets: dict[str, str] = {}
        self._ids: dict[str, str] = {}

    def section(self, heading: str, part: Part, level: int = 2) -> str:
        head = f"<h{level}>{html.escape(heading)}</h{level}>" if heading else ""
        if isinstance(part, str):
            return head + _paragraphs(part)
        if isinstance(part, Report):
            # A report may hold reports; headings below h4 say no more than h4.
            inside = "".join(self.section(name, inner, min(level + 1, 4)) for name, inner in part.parts.items())
            return f"<section>{head}{_paragraphs(part.title)}{pictures.words(part.words)}{inside}</section>"
        return f"<section>{head}{self._figure(heading, part)}</section>"

    def link(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Let the widgets under two headings point together."""
        for pair in pairs:
            for heading in pair:
                if heading not in self._ids:
                    raise InputError(
                        f"linked names {heading!r}, which shows no widget; those that do: {', '.join(map(repr, self._ids)) or 'none'}."
                    )
            source, target = ([f"IPY_MODEL_{self._ids[heading]}", "pointed"] for heading in pair)
            self.state[f"link{len(self.state)}"] = {"model_name": "LinkModel", "state": {"source": source, "target": target}}

    def _figure(self, heading: str, part: Result | Widget) -> str:
        if isinstance(part, Widget):
            return self._widget(heading, part)
        if not isinstance(part, Result):
            raise InputError(f"Part {heading!r} is a {type(part).__name__}; a page is made of Results, widgets and text.")
        kind = widget_for(part)
        if kind is None:
            return f'<div class="static">{part._repr_html_()}</div>'
        widget = kind.of(part)
        try:
            return self._widget(heading, widget)
        finally:
            widget.close()

    def _widget(self, heading: str, widget: Widget) -> str:
        identity = f"widget{len(self.state)}"
        self._ids.setdefault(heading, identity)
        values = {name: value for name, value in widget.carried().items() if name in ("_esm", "_css") or _is_own(widget, name)}
        for name in ("_esm", "_css"):
            values[name] = self._asset(str(values.get(name, "")))
        binary = {name: values.pop(name) for name, value in list(values.items()) if isinstance(value, bytes)}
        buffers = [{"path": [name], "encoding": "base64", "data": base64.b64encode(value).decode()} for name, value in binary.items()]
        self.state[identity] = {"model_name": "AnyModel", "state": values, "buffers": buffers}
        picture = base64.b64encode(widget.png()).decode()
        return f'<div data-widget="{identity}"><img alt="{html.escape(widget.result.title)}" src="data:image/png;base64,{picture}"></div>'

    def _asset(self, text: str) -> str:
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.assets[key] = text
        return key


def _is_own(widget: Widget, name: str) -> bool:
    """Traits that our widgets add; layout, tabbing and the like belong to Jupyter."""
    return not name.startswith("_") and name not in ("layout", "tabbable", "tooltip")


def _host() -> str:
    path = STATIC / "host.js"
    if not path.is_file():
        raise InputError(f"The bundle {path.name!r}, which revives widgets in a page, is not built. Build it with: {BUILD}")
    # Inside a script element these two sequences would end the script or open a comment.
    return path.read_text(encoding="utf-8").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _json(value: Any) -> str:
    """JSON that cannot leave its script element, whatever text is in it."""
    return json.dumps(value, default=str, ensure_ascii=False, sort_keys=True).replace("<", "\\u003c").replace("\u2028", "\\u2028")


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{html.escape(piece.strip())}</p>" for piece in text.split("\n\n") if piece.strip())


def _results(parts: Mapping[str, Part]) -> Iterator[tuple[str, Result]]:
    for heading, part in parts.items():
        result = part.result if isinstance(part, Widget) else part
        if isinstance(result, Report):
            yield from ((f"{heading} / {name}", inner) for name, inner in _results(result.parts))
        if isinstance(result, Result):
            yield heading, result


def _provenance(parts: Mapping[str, Part]) -> str:
    known = {heading: _plain(result.provenance) for heading, result in _results(parts) if result.provenance}
    if not known:
        return "<p>No provenance was recorded for these results.</p>"
    words = json.dumps(known, indent=1, default=str, ensure_ascii=False)
    return f"<details><summary>Provenance of the results on this page</summary><pre>{html.escape(words)}</pre></details>"


def _plain(value: Any) -> Any:
    """Read-only mappings as dicts, so that JSON can be written."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
