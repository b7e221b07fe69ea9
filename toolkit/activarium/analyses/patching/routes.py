"""Who writes before whom reads: the order of sites in a forward, receivers by name, and what is held in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from activarium.edits import Where
from activarium.errors import InputError, MissingSite

STAGES = ("attn", "cross", "mlp")
READERS = ("attn.q", "attn.k", "attn.v", "attn.in", "cross.q", "cross.k", "cross.v", "cross.in", "mlp.in")
WRITERS = ("attn.z", "attn.out", "attn.proj", "cross.z", "cross.out", "cross.proj", "mlp.post", "mlp.out", "mlp.proj")
Receivers = str | Sequence[str] | Mapping[str, Sequence[int] | int | None]


@dataclass(frozen=True)
class Receiver:
    """What a path ends in.

    Attributes:
        site: A reader's input, or `logits`.
        heads: Its heads; None for all, or where it has none.
    """

    site: str
    heads: tuple[int, ...] | None = None

    @property
    def where(self) -> Where:
        """For an edit of it."""
        return Where(heads=self.heads)

    def __str__(self) -> str:
        return self.site if self.heads is None else f"{self.site} heads {', '.join(map(str, self.heads))}"


def receivers_of(model: Any, given: Receivers) -> list[Receiver]:
    """Receivers for site names and patterns, perhaps with their heads.

    Raises:
        UnknownSite: A name that does not exist.
        InputError: A site that is no reader's input, heads it does not have, or `logits` beside others.
    """
    named = given if isinstance(given, Mapping) else dict.fromkeys([given] if isinstance(given, str) else given)
    found = []
    for name, heads in named.items():
        for site in [name] if name == "logits" else model.sites.select(name):
            found.append(_receiver(model, site, heads))
    found = list(dict.fromkeys(found))
    if not found:
        raise InputError("There is no receiver; name sites such as 'blocks.2.attn.q', 'blocks.*.mlp.in' or 'logits'.")
    if len(found) > 1 and any(r.site == "logits" for r in found):
        raise InputError("Setting what the logits are read from would overwrite what other receivers change; ask for 'logits' alone.")
    return found


def _receiver(model: Any, site: str, heads: Any) -> Receiver:
    if site == "logits" or site in _ends(model):
        if heads is not None:
            raise InputError(f"{site} has no heads; give None.")
        return Receiver("logits")
    short = ".".join(site.split(".")[-2:])
    if short not in READERS:
        raise InputError(f"{site} is no reader's input, so no path ends there. Receivers are {', '.join(READERS)} and logits.")
    if heads is None:
        return Receiver(site)
    chosen = (heads,) if isinstance(heads, int) else tuple(int(h) for h in heads)
    held = model.sites.find(site)
    count = held.shape[0] if "head" in held.axes.split() else 0
    if not chosen or not all(0 <= h < count for h in chosen):
        raise InputError(f"{site} has {count} heads, numbered from 0; {list(chosen)} was asked for.")
    return Receiver(site, chosen)


def _ends(model: Any) -> set[str]:
    """The streams after the last block of each stack."""
    return {f"{s.prefix}blocks.{len(s.blocks) - 1}.resid_post" for s in model.anatomy.stacks.values()}


def place(model: Any, site: str) -> tuple[int, int, int]:
    """Where in a forward a site is: stack, layer, sub-layer; the embedding comes before layer 0 and the logits after all.

    Raises:
        InputError: It is no site of a sub-layer.
    """
    stacks = list(model.anatomy.stacks.values())
    if site == "logits":
        return len(stacks), 0, 0
    stem, _, rest = site.rpartition("blocks.")
    number = next((i for i, s in enumerate(stacks) if s.prefix == stem), 0)
    layer, _, short = rest.partition(".")
    if site.endswith("embed") or (layer == "0" and short == "resid_pre"):
        return next(i for i, s in enumerate(stacks) if site.startswith(s.prefix)), -1, 0
    if short not in READERS + WRITERS:
        raise InputError(f"{site} is no one part's write, so no path starts there. Senders are {', '.join(WRITERS)} and embed.")
    return number, int(layer), STAGES.index(short.partition(".")[0])


def reaches(model: Any, sender: str, receiver: str) -> bool:
    """Is the sender written before the receiver is read?"""
    a, b = place(model, sender), place(model, receiver)
    if a[:2] == b[:2] and list(model.anatomy.stacks.values())[a[0]].blocks[a[1]].algebra == "parallel":
        return False
    return a < b


def stop_after(model: Any, receivers: Sequence[Receiver]) -> str | None:
    """A site at which every receiver was read, so that the forward can end there; None where that is not sure."""
    last = max(receivers, key=lambda r: place(model, r.site))
    stack, layer, stage = place(model, last.site)
    block = list(model.anatomy.stacks.values())[stack].blocks[layer]
    if block.algebra == "parallel" or any(place(model, r.site)[0] != stack for r in receivers):
        return None
    return last.site if stage == STAGES.index("mlp") else f"{last.site.rpartition('.')[0]}.z"


def held_sites(model: Any, mlps: bool) -> list[str]:
    """What is held at its base value between sender and receiver: every head's mix, and with `mlps` every MLP's write.

    Raises:
        MissingSite: An attention whose heads cannot be held.
    """
    found = []
    for stack in model.anatomy.stacks.values():
        for layer, block in enumerate(stack.blocks):
            for room in block.writers:
                site = f"{stack.prefix}blocks.{layer}.{room}.{'out' if room == 'mlp' else 'z'}"
                if room != "mlp" and site not in model.sites:
                    raise MissingSite(
                        f"{site} cannot be held ({model.sites.missing.get(site, 'it is not there')}), so paths cannot be told apart."
                    )
                if room != "mlp" or mlps:
                    found.append(site)
    return found
