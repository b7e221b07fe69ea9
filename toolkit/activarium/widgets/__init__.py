"""Every widget: an interactive view of one kind of Result. The folder is the list; `show` picks the right one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from activarium._registry import Registry, class_name
from activarium.errors import InputError, unknown
from activarium.results import Report, Result

if TYPE_CHECKING:
    from activarium.protocols import Pages
    from activarium.widgets.base import Widget

registry = Registry(__name__, Path(__file__).parent, "widget", class_name)


def show(result: Result | Pages, model: Any = None, *, as_: str = "") -> Any:
    """What does this Result look like, to point at and click?

    Args:
        result: Any Result, or Pages of features. A kind without a widget of its own shows its static picture; a Report shows its
            parts in order.
        model: A live model, for widgets that can run it again on a click; for a ranking of features, the Pages to open them in.
        as_: Name of the widget to show it with, where there are several: `"Landscape"` for a Grid that is a `Heatmap` otherwise.

    Returns:
        A widget, a box of widgets, or the Result itself where its static form is all there is. Jupyter displays each.

    Raises:
        InputError: This is no Result, or the named widget cannot show it.
        UnknownName: No widget has the name in `as_`.
    """
    if _is_pages(result) or (_is_pages(model) and not as_):
        return registry.entry("FeatureBrowser").load().of(result, model)
    if not isinstance(result, Result):
        raise InputError(f"show() wants a Result; got {type(result).__name__}. Analyses return Results: show(act.analyses.logit_lens(…)).")
    if isinstance(result, Report):
        if as_:
            raise InputError(f"as_={as_!r} names a widget for one Result, and a Report has many. Show a part of it: {', '.join(result)}.")
        return _report(result, model)
    widget = registry.entry(as_ if as_ in registry else class_name(as_)).load() if as_ else widget_for(result)
    return result if widget is None else widget.of(result, model)


def _is_pages(thing: Any) -> bool:
    """Does it hold pages of features? Asked here as well as by the browser, which need not be loaded for a no."""
    return not isinstance(thing, Result) and all(hasattr(thing, name) for name in ("columns", "page", "find"))


def widget_for(result: Result) -> type[Widget] | None:
    """The widget class that shows this Result, or None if its static form is all there is.

    A Result that is best seen in a particular way names the widget: `diagnostics={"view": "Landscape"}`.
    """
    kind = type(result).__name__
    view = result.diagnostics.get("view")
    if isinstance(view, str) and view in registry and registry.entry(view).load().accepts(result):
        return registry.entry(view).load()
    # The files say what they show, so that only widgets of this kind are imported; one that needs more than a Result is made by name.
    fitting = (entry.load() for entry in registry if entry.settings.get("shows") == kind and "needs" not in entry.settings)
    return next((widget for widget in fitting if widget.accepts(result)), None)


def _report(report: Report, model: Any) -> Any:
    import html

    from ipywidgets import HTML, VBox

    from activarium import pictures

    parts: list[Any] = [HTML(f"<h3>{html.escape(report.title)}</h3>{pictures.words(report.words)}")]
    for name, part in report.parts.items():
        shown = show(part, model)
        parts.append(HTML(f"<h4>{html.escape(name)}</h4>"))
        parts.append(HTML(shown._repr_html_()) if isinstance(shown, Result) else shown)
    return VBox(parts)


def __getattr__(name: str) -> Any:
    if name.startswith("_"):  # Python and its tools probe for private names; none of them is a widget
        raise AttributeError(name)
    if name not in registry:
        raise AttributeError(str(unknown("widget", name, registry.entries)))
    made = registry.entry(name).load()
    globals()[name] = made
    return made


def __dir__() -> list[str]:
    return sorted([*registry.entries, "registry", "show", "widget_for"])
