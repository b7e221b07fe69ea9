"""What every widget shares: its bundle, its static picture, and the line to the browser."""

from __future__ import annotations

import base64
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import traitlets

from activarium.errors import InputError, MissingExtra
from activarium.results import Result

try:
    import anywidget
except ImportError as error:
    raise MissingExtra("Widgets need the package 'anywidget': pip install anywidget. Results print themselves without it.") from error

STATIC = Path(__file__).parent / "static"
BUILD = "npm ci && npm run build   (in the folder widgets/)"

# Shown in place of the widget. textContent, like everything we draw.
_NO_BUNDLE = """export default {{ render({{ el }}) {{
  el.textContent = "The bundle '{name}.js' of this widget is not built. Build it with: {build}";
}} }};
"""


def bundle(name: str) -> Path | str:
    """The built front end of a widget, or a stand-in that says which command builds it."""
    path = STATIC / f"{name}.js"
    return path if path.is_file() else _NO_BUNDLE.format(name=name, build=BUILD)


def stylesheet(name: str) -> Path | str:
    """The built styles of a widget, empty while there are none."""
    path = STATIC / f"{name}.css"
    return path if path.is_file() else "\n"


class Widget(anywidget.AnyWidget):
    """An interactive view of one kind of Result.

    Attributes:
        shows: The kind of Result it starts from.
        spec: Words and shapes, small enough for JSON.
        data: All numbers, as deflated bytes; `spec["arrays"]` says what they are.
        pointed: Index along each axis of what the reader points at; `{}` while nothing is.
        pinned: The same for everything the reader clicked.
    """

    shows: ClassVar[type[Result]] = Result

    spec = traitlets.Dict().tag(sync=True)
    data = traitlets.Bytes().tag(sync=True)
    pointed = traitlets.Dict().tag(sync=True)
    pinned = traitlets.List(traitlets.Dict()).tag(sync=True)

    def __init__(self, result: Result, **traits: Any) -> None:
        super().__init__(**traits)
        self.result = result
        # JupyterLab may deliver messages on another thread than the one that runs cells.
        self._lock = threading.RLock()
        self.on_msg(self._hear)

    @classmethod
    def accepts(cls, result: Result) -> bool:
        """Can this widget show that Result?"""
        return isinstance(result, cls.shows)

    @classmethod
    def of(cls, result: Result, model: Any = None) -> Self:
        """The widget for a Result.

        Args:
            result: A Result of the kind that `shows` names.
            model: A live model, for widgets that run it again on a click; the others leave it alone.

        Raises:
            InputError: The Result is of another kind.
        """
        if not cls.accepts(result):
            raise InputError(
                f"{cls.__name__} shows {cls.shows.__name__}; got {type(result).__name__}. Use show(result), which finds the widget."
            )
        return cls(result)

    def png(self) -> bytes:
        """A static picture for places where no widget can run."""
        raise NotImplementedError

    def carried(self) -> dict[str, Any]:
        """The state that goes into a page without a kernel; widgets that ask one add what its readers may ask for."""
        return self.get_state()

    def answer(self, question: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        """Reply to a question of the browser with words and bytes."""
        raise InputError(
            f"{type(self).__name__} has no answer to {question.get('ask')!r}; the page may be of another version than the kernel."
        )

    def _hear(self, _: Any, content: Any, __: Any) -> None:
        with self._lock:
            words, buffers = ({}, []) if content.get("ask") == "ping" else self.answer(content)
        self.send({"id": content.get("id"), **words}, buffers=buffers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.result.title!r})"

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        found = super()._repr_mimebundle_(**options)
        if found is None:
            return None
        data, metadata = found
        # Untrusted notebooks, GitHub and e-mail show the picture; a terminal shows the words.
        return {**data, "text/plain": repr(self), "image/png": base64.b64encode(self.png()).decode()}, metadata
