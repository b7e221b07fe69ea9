"""What can go wrong, each error a small lesson: the thing, what was found, what was wanted, the next step."""

import difflib
from collections.abc import Iterable


class ActivariumError(Exception):
    """Anything that activarium itself raises; every child also inherits the builtin a caller would expect."""


class AxisError(ActivariumError, ValueError):
    """A tensor has other axes than the call needs."""


class InputError(ActivariumError, ValueError):
    """Text, tokens, images or arguments that cannot be used as given."""


class UnknownName(ActivariumError, KeyError):
    """A name that nothing answers to; the message lists what exists."""

    def __str__(self) -> str:  # KeyError would print the repr of its argument, line breaks and all
        return str(self.args[0]) if self.args else ""


class UnknownSite(UnknownName):
    """A site that this model or recording does not have."""


class MissingSite(UnknownSite):
    """A site of the vocabulary that this model cannot offer; the message says why."""


class SilentHook(ActivariumError, RuntimeError):
    """A requested site fired another number of times than it should have."""


class CertificateError(ActivariumError, RuntimeError):
    """What is read or written at a site is not what the model computes."""


class NotFinite(ActivariumError, ArithmeticError):
    """NaN or infinity where a statistic needs numbers."""


class CapacityError(ActivariumError, MemoryError):
    """The predicted bytes do not fit in memory or on the disk."""


class StoreError(ActivariumError, OSError):
    """A store that cannot be written or opened as asked."""


class CorruptStore(StoreError):
    """A store whose bytes are not what its journal says."""


class OtherModel(StoreError):
    """A store, dictionary or direction that was made with another model."""


class ClusterError(ActivariumError, ConnectionError):
    """A cluster that does not answer, has no room for the workers asked for, or lost one too often."""


class MissingExtra(ActivariumError, ImportError):
    """An optional package is needed; the message says which extra brings it."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Known names most like the one that was asked for."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.4)


def unknown(kind: str, name: str, known: Iterable[str], error: type[UnknownName] = UnknownName) -> UnknownName:
    """An error for a name nothing answers to, with the nearest ones and the list of what exists."""
    known = list(known)
    close = nearest(name, known)
    hint = f" Did you mean {' or '.join(repr(n) for n in close)}?" if close else ""
    shown = ", ".join(known[:12]) + (f", … ({len(known)} in all)" if len(known) > 12 else "")
    return error(f"No {kind} called {name!r}.{hint} Known: {shown or 'none'}.")
