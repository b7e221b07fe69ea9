"""Look inside language and vision transformers, on numbers you can trust.

    import activarium as act

    model = act.load("scribe")
    rec = model.run(["Anna gave Tom the book ."], read="blocks.*.mlp.post")
    act.show(act.analyses.lazy_neurons(rec))

Rooms load when they are first touched: importing activarium brings neither torch nor jax nor pandas.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from activarium import analyses as analyses
    from activarium import dashboards as dashboards
    from activarium import dictionaries as dictionaries
    from activarium import edits as edits
    from activarium import metrics as metrics
    from activarium import summaries as summaries
    from activarium import testing as testing
    from activarium import widgets as widgets
    from activarium.activations import Activations as Activations
    from activarium.analyses.patching._against_exact import against_exact as against_exact
    from activarium.capture import load as load
    from activarium.capture import wrap as wrap
    from activarium.features import Features as Features
    from activarium.pairs import pairs as pairs
    from activarium.recording import Recording as Recording
    from activarium.results import identical as identical
    from activarium.results import load as load_result  # noqa: F401
    from activarium.rules import Rules as Rules
    from activarium.store import open_store as open  # noqa: F401
    from activarium.summaries import Survey as Survey
    from activarium.summaries import load_survey as load_survey
    from activarium.widgets import show as show
    from activarium.workflows.atlas import atlas as atlas
    from activarium.workflows.capture import capture as capture
    from activarium.workflows.capture import plan as plan
    from activarium.workflows.cluster import Cluster as Cluster
    from activarium.workflows.explore import explore as explore
    from activarium.workflows.survey import survey as survey

# Public name → where it lives. A place without a colon is a room: `act.edits.Add`.
_NAMES = {
    "Activations": "activarium.activations:Activations",
    "Cluster": "activarium.workflows.cluster:Cluster",
    "Features": "activarium.features:Features",
    "Recording": "activarium.recording:Recording",
    "Rules": "activarium.rules:Rules",
    "Survey": "activarium.summaries:Survey",
    "against_exact": "activarium.analyses:against_exact",
    "analyses": "activarium.analyses",
    "atlas": "activarium.workflows.atlas:atlas",
    "capture": "activarium.capture",  # a room that can be called, see _CallableRoom
    "dashboards": "activarium.dashboards",
    "dictionaries": "activarium.dictionaries",
    "edits": "activarium.edits",
    "explore": "activarium.workflows.explore:explore",
    "identical": "activarium.results:identical",
    "load": "activarium.capture:load",
    "load_result": "activarium.results:load",
    "load_survey": "activarium.summaries:load_survey",
    "metrics": "activarium.metrics",
    "open": "activarium.store:open_store",
    "pairs": "activarium.pairs",  # likewise
    "plan": "activarium.workflows.capture:plan",
    "show": "activarium.widgets:show",
    "summaries": "activarium.summaries",
    "survey": "activarium.workflows.survey:survey",
    "testing": "activarium.testing",
    "widgets": "activarium.widgets",
    "wrap": "activarium.capture:wrap",
}
__all__ = [*_NAMES, "__version__"]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll]


# Room → what a call of it means: `act.capture(…)` and the room `activarium.capture` share a name.
_CALLS = {"capture": "activarium.workflows.capture:capture", "pairs": "activarium.pairs._pairs:pairs"}


class _CallableRoom(ModuleType):
    """A room that answers to a call as well: `act.capture(…)`, `act.pairs(…)`."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """See the function of the same name."""
        return self.__wrapped__(*args, **options)

    @property
    def __wrapped__(self) -> Any:  # so that editors and `help` show the signature of the function
        place, _, function = _CALLS[self.__name__.rpartition(".")[2]].partition(":")
        return getattr(import_module(place), function)


class _FrontDoor(ModuleType):
    """Python binds a room here whenever anything imports it first; that moment is used to make some of them callable."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _CALLS and type(value) is ModuleType:
            value.__class__ = _CallableRoom
        super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        from activarium.errors import unknown

        # AttributeError as well, or hasattr() and copy would stumble.
        raise AttributeError(str(unknown("name in activarium", name, sorted(_NAMES))))
    room, _, attribute = _NAMES[name].partition(":")
    value = import_module(room)
    if attribute:
        value = getattr(value, attribute)
        setattr(sys.modules[__name__], name, value)
    return sys.modules[__name__].__dict__[name]


def __dir__() -> list[str]:
    return sorted(__all__)


sys.modules[__name__].__class__ = _FrontDoor
