"""Driving JupyterLab as a reader does: open, run, point, click, look."""

from __future__ import annotations

import ast
import json
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Lab:
    """A running server.

    Attributes:
        url: Where it answers.
        root: The folder it shows.
    """

    url: str
    root: Path

    def write(self, name: str, cells: list[str]) -> str:
        """A notebook of code cells, without outputs."""
        code = [
            {"cell_type": "code", "id": f"c{i}", "metadata": {}, "source": s, "outputs": [], "execution_count": None}
            for i, s in enumerate(cells)
        ]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        (self.root / name).write_text(json.dumps({"cells": code, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
        return name


def watched(context: Any, allowed: tuple[str, ...] = ("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:")) -> tuple[Any, list[str]]:
    """A page and the list of everything that went wrong on it: requests that leave this machine are refused and noted."""
    troubles: list[str] = []

    def gate(route: Any) -> None:
        if route.request.url.startswith(allowed):
            return route.continue_()
        troubles.append(f"request to {route.request.url}")
        return route.abort()

    context.route("**/*", gate)
    page = context.new_page()
    page.on("pageerror", lambda error: troubles.append(f"page error: {error}"))
    # Pages that were refused by their own policy say so on the console only.
    page.on(
        "console", lambda line: troubles.append(line.text) if "Content Security Policy" in line.text or "activarium:" in line.text else None
    )
    return page, troubles


class NotebookPage:
    """One notebook in one page.

    Attributes:
        page: The Playwright page.
        troubles: Refused requests and script errors; a test ends by asking that there are none.
    """

    def __init__(self, lab: Lab, page: Any, troubles: list[str]) -> None:
        self.lab, self.page, self.troubles = lab, page, troubles

    def open(self, name: str, dark: bool = False) -> None:
        """Wait until the notebook's kernel listens; each wait is one that was seen to be needed."""
        self.page.goto(f"{self.lab.url}/lab/tree/{name}?reset", wait_until="domcontentloaded")
        self.page.wait_for_function("window.jupyterapp && document.querySelector('.jp-Notebook')")
        self.page.evaluate("async () => { await jupyterapp.restored; }")
        if dark:
            self.page.evaluate("jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
            self.page.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
        self.page.wait_for_function(
            """() => { const c = jupyterapp.shell.currentWidget?.context; const k = c?.sessionContext?.session?.kernel;
                       return c?.isReady && k?.connectionStatus === 'connected' && k?.status === 'idle'; }"""
        )

    def run_all(self, widgets: int) -> None:
        """Run every cell, then wait until that many widgets have drawn."""
        self.page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells'); }")
        self.page.wait_for_function(f"document.querySelectorAll('.act[data-ready]').length >= {widgets}", timeout=60_000)
        self.wait_idle()

    def wait_idle(self) -> None:
        self.page.wait_for_function("jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.status === 'idle'")

    def run(self, code: str) -> str:
        """What does this code print in the notebook's kernel? It runs in a new cell at the end."""
        said = self.page.evaluate(
            """async (code) => {
                 const { content, context } = jupyterapp.shell.currentWidget;
                 content.activeCellIndex = content.widgets.length - 1;
                 await jupyterapp.commands.execute('notebook:insert-cell-below');
                 const cell = content.activeCell;
                 cell.model.sharedModel.setSource(code);
                 await jupyterapp.commands.execute('notebook:run-cell');
                 return cell.model.outputs.toJSON().map((o) => [o.text ?? o.traceback ?? JSON.stringify(o)].flat().join('')).join('');
               }""",
            code,
        )
        self.wait_idle()
        return said

    def printed_troubles(self) -> list[str]:
        """Errors and warnings that any cell printed."""
        outputs = "jupyterapp.shell.currentWidget.content.widgets.flatMap((c) => c.model.outputs?.toJSON() ?? [])"
        return self.page.evaluate(
            f"{outputs}.filter((o) => o.output_type === 'error' || o.name === 'stderr').map((o) => JSON.stringify(o))"
        )

    def widget(self, kind: str, at: int = 0) -> WidgetOnPage:
        return WidgetOnPage(self.page, self.page.locator(f".act-{kind}").nth(at))

    def picture(self, path: Path) -> None:
        self.page.screenshot(path=path)

    def shut_down(self) -> None:
        """End every kernel of the server; the next notebook brings its own."""
        host = urlsplit(self.lab.url).netloc
        sessions = json.load(urllib.request.urlopen(f"http://{host}/api/sessions"))
        for session in sessions:
            urllib.request.urlopen(urllib.request.Request(f"http://{host}/api/sessions/{session['id']}", method="DELETE"))


class WidgetOnPage:
    """One of our widgets, as a reader meets it.

    Attributes:
        page: The Playwright page.
        root: The widget's outermost element.
    """

    def __init__(self, page: Any, root: Any) -> None:
        self.page, self.root = page, root

    @property
    def plot(self) -> Any:
        return self.root.locator(".act-plot")

    def read_out(self) -> str:
        """The words under the plot. Not inner_text: the notebook skips rendering cells that are scrolled away."""
        return self.root.locator(".act-readout").text_content()

    def value(self) -> float:
        """The number in the read-out."""
        return float(self.root.locator(".act-value").text_content().split()[0])

    def pins(self) -> list[str]:
        return self.root.locator(".act-pins li").all_text_contents()

    def move_to(self, x: float, y: float, part: str = ".act-plot") -> None:
        """Move the mouse to a point of a part, in shares of its size or in pixels from its corner."""
        target = self.root.locator(part).first
        target.scroll_into_view_if_needed()
        box = target.bounding_box()
        self.page.mouse.move(box["x"] + (x * box["width"] if x <= 1 else x), box["y"] + (y * box["height"] if y <= 1 else y), steps=3)
        self.settle()

    def click(self) -> None:
        """Press and release where the mouse is."""
        self.page.mouse.down()
        self.page.mouse.up()
        self.settle()

    def press(self, *keys: str) -> None:
        self.plot.focus()
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    def settle(self) -> None:
        """Two animation frames, and the moment that a trait waits for company."""
        self.page.evaluate("() => new Promise((done) => setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(done)), 120))")

    def picture(self, path: Path) -> None:
        self.root.scroll_into_view_if_needed()
        self.root.screenshot(path=path)


def wait_until(page: Any, expression: str, seconds: float = 30) -> None:
    """Wait for a JavaScript expression on a page whose policy forbids eval, which Playwright's own waiting needs."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"{expression} did not come true within {seconds} s"
        page.wait_for_timeout(50)


def reads_what_python_has(notebook: NotebookPage, variable: str, kind: str, at: int, part: str = ".act-plot") -> int:
    """Does the read-out agree with `variable.value(variable.pointed)` wherever the mouse goes? Counts the places compared.

    For any notebook: the kernel is asked for the number, so the test needs to know nothing about the data.
    """
    widget = notebook.widget(kind, at)
    seen = {}
    for x, y in ((0.2, 0.3), (0.3, 0.5), (0.45, 0.2), (0.4, 0.6), (0.25, 0.65)):
        widget.move_to(x, y, part)
        if not widget.root.locator(".act-value").count():
            continue
        said, place = widget.read_out(), notebook.run(f"print({variable}.pointed)")
        value = float(notebook.run(f"print({variable}.value({variable}.pointed))"))
        shown = widget.value()
        # Printed as the shortest decimal of a float32 or of a float64: both must lead back to the very number.
        assert shown == value or abs(shown - value) <= 6e-8 * abs(value), (
            f"{variable} at {place}: Python has {value}, the page says {said!r}"
        )
        seen[place] = value
    return len(seen)


def printed(notebook: NotebookPage, code: str) -> Any:
    """What an expression is worth in the kernel: plain data alone."""
    said = notebook.run(f"print(({code}))")
    assert "Error" not in said, said
    return ast.literal_eval(said)
