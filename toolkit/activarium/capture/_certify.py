"""The certificate: on these weights and these versions, what is read and written at a site is what the model computes."""

from __future__ import annotations

import copy
import html
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from activarium.capture._identities import BlockAlgebra, Identity, exit_identities
from activarium.capture._image_tokens import probe_text
from activarium.capture._inputs import Inputs
from activarium.capture._spaces import probe_pixels, probe_tokens, uncommon_tokens
from activarium.edits import Add, Where
from activarium.errors import ActivariumError, CertificateError, SilentHook
from activarium.recording import Recording

if TYPE_CHECKING:
    from activarium.capture._runner import TorchRunner

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}
ROUNDED = 5e-2  # quantised layers round their inputs too, and how depends on the batch
EXCUSABLE = 100  # a gap beyond this many tolerances is no rounding, whatever float64 says
WRITABLE = ("resid_pre", "attn.in", "attn.q", "attn.k", "attn.q_rot", "attn.k_rot", "attn.v", "attn.z", "attn.proj", "attn.out", "resid_mid", "cross.in", "cross.q",
            "cross.k", "cross.v", "cross.z", "cross.out", "resid_cross", "mlp.in", "mlp.pre", "mlp.act", "mlp.up", "mlp.post", "mlp.proj", "mlp.out", "resid_post")  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One thing that was tried.

    Attributes:
        name: What was tried.
        site: Where; the worst one if there were several.
        gap: Largest difference relative to the site's largest value.
        tolerance: Largest gap that passes.
        count: How many sites were tried.
        note: What else was found.
    """

    name: str
    site: str
    gap: float
    tolerance: float
    count: int = 1
    note: str = ""

    @property
    def passed(self) -> bool:
        """Within tolerance."""
        return self.gap <= self.tolerance


@dataclass(frozen=True)
class Certificate:
    """All checks of one load.

    Attributes:
        checks: In the order they were made.
        mode: `full`, `quick` or `none`.
        algebra: Stack → how its blocks add up (`pre-norm`, `parallel`, `post-norm`).
        missing: How many sites of the vocabulary the model does not have.
        notes: What a reader of the numbers should know, such as how the weights were processed.
    """

    checks: tuple[Check, ...]
    mode: str
    algebra: dict[str, str]
    missing: int = 0
    notes: tuple[str, ...] = ()

    @classmethod
    def none(cls) -> Certificate:
        """Nothing was proven."""
        return cls((), "none", {})

    @property
    def verdict(self) -> str:
        """One word or two."""
        if self.mode == "none" or not self.algebra:  # without blocks nothing of the vocabulary was there to be proven
            return "uncertified"
        failed = [c for c in self.checks if not c.passed]
        return (
            f"refused ({len(failed)} checks failed)" if failed else f"certified ({self.mode}, {sum(c.count for c in self.checks)} checks)"
        )

    def require(self) -> None:
        """Raise unless every check passed.

        Raises:
            CertificateError: Names the check, the site and the size of the gap.
        """
        failed = [c for c in self.checks if not c.passed]
        if failed:
            lines = [
                f"  {c.name} at {c.site}: gap {c.gap:.2g}, tolerance {c.tolerance:.0e}{'; ' + c.note if c.note else ''}" for c in failed[:8]
            ]
            raise CertificateError(
                "\n".join(
                    [
                        "What would be read is not what this model computes:",
                        *lines,
                        "Pass certify=False to read it uncertified, at your own risk.",
                    ]
                )
            )

    def summary(self) -> dict[str, Any]:
        """For a manifest."""
        worst = max((c.gap for c in self.checks), default=0.0)
        found = {"verdict": self.verdict, "mode": self.mode, "algebra": dict(self.algebra), "worst_gap": worst, "checks": len(self.checks)}
        return found | ({"notes": list(self.notes)} if self.notes else {})

    def _lines(self) -> list[list[str]]:
        return [
            [("ok" if c.passed else "FAILED"), c.name, c.site, f"{c.gap:.1e}", f"{c.tolerance:.0e}", str(c.count), c.note]
            for c in self.checks
        ]

    def __repr__(self) -> str:
        lines = [["", "check", "worst at", "gap", "allowed", "sites", ""], *self._lines()]
        widths = [max(len(line[i]) for line in lines) for i in range(7)]
        algebra = ", ".join(f"{k or 'blocks'} {v}" for k, v in self.algebra.items())
        return "\n".join(
            [
                f"Certificate: {self.verdict}; {algebra}",
                *("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines),
                *(f"note: {n}" for n in self.notes),
            ]
        )

    def _repr_html_(self) -> str:
        rows = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in line) + "</tr>" for line in self._lines())
        head = "".join(f"<th>{c}</th>" for c in ("", "check", "worst at", "gap", "allowed", "sites", ""))
        notes = "".join(f"<p>{html.escape(n)}</p>" for n in self.notes)
        return f"<strong>{html.escape(self.verdict)}</strong><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{notes}"


def certify(model: TorchRunner, *, full: bool = True) -> Certificate:
    """Try everything on a small probe batch; `full` adds the write tests. Nothing is raised: ask the certificate.

    Returns:
        The certificate, with one line per kind of check and the worst site of each.
    """
    model.certificate = Certificate.none()
    return _Examiner(model).examine(full)


class _Examiner:
    def __init__(self, model: TorchRunner) -> None:
        self.model = model
        self.tolerance = TOLERANCE.get(model.dtype, 2e-2)
        self.checks: list[Check] = []
        self.inputs = probe_inputs(model)
        self.reads = [n for n, s in model.sites.items() if n.rpartition(".")[2] not in ("scores", "head_out")]

    def examine(self, full: bool) -> Certificate:
        self._sums_found()
        try:
            recording = self._instrumented()
            self._identities(recording)
            self._padding(recording)
            if full and all(c.passed for c in self.checks):
                self._writes(recording)
        except (ActivariumError, RuntimeError) as error:  # torch's own errors tell of shapes that are no rows
            silent = isinstance(error, SilentHook)
            self._note("every site fires once", str(error).split(" ", 1)[0] if silent else "the forward", float("inf"), note=str(error))
        return self._certificate(full)

    def _certificate(self, full: bool) -> Certificate:
        algebra = {name: stack.blocks[0].algebra for name, stack in self.model.anatomy.stacks.items()}
        mode = "full" if full else "quick"
        return Certificate(tuple(self.checks), mode, algebra, len(self.model.sites.missing), self.model.notes())

    def _note(self, name: str, site: str, gap: float, tolerance: float | None = None, count: int = 1, note: str = "") -> None:
        self.checks.append(Check(name, site, gap, self.tolerance if tolerance is None else tolerance, count, note))

    def _sums_found(self) -> None:
        """A block must be the sum of what its sub-layers write if others of its class are."""
        for stack in self.model.anatomy.stacks.values():
            sums = {type(self.model.module(b.path)) for b in stack.blocks if b.algebra != "unknown"}
            for i, block in enumerate(stack.blocks):
                if block.algebra == "unknown" and type(self.model.module(block.path)) in sums and "attn.proj" in block.places:
                    self._note(
                        "block is the sum of its writers",
                        f"{stack.prefix}blocks.{i}.resid_post",
                        float("inf"),
                        note="something else is added inside the block",
                    )

    def _instrumented(self) -> Recording:
        """The same forward untouched and with every hook in place: bit for bit the same."""
        batch, seen = self.inputs.batch, []
        arguments = {k: v.to(self.model.device) for k, v in batch.arguments.items()}
        with torch.no_grad():
            plain = self.model._forward(batch, arguments)

        def forward(given: dict[str, Tensor]) -> Any:
            seen.append(self.model._forward(batch, given))
            return seen[-1]

        recording = self.model._run(batch, self.reads, (), None, False, None, forward)
        pairs = [(k, v, seen[0][k]) for k, v in plain.items() if isinstance(v, Tensor)]
        wrong = [(k, float((a - b).abs().max())) for k, a, b in pairs if not torch.equal(a, b)]
        self._note(
            "untouched forward = instrumented forward",
            wrong[0][0] if wrong else "the answer",
            wrong[0][1] or float("inf") if wrong else 0.0,
            0.0,
            len(pairs),
        )
        self._note("every site fires once", "all", 0.0, 0.0, len(self.reads))
        return recording

    # --- reads

    def _block_identities(self, recording: Recording) -> Iterator[Identity]:
        for stack in self.model.anatomy.stacks.values():
            for i in range(len(stack.blocks)):
                yield from BlockAlgebra(self.model, recording, stack.name, i).all()
        yield from exit_identities(self.model, recording, list(self.model.anatomy.stacks))

    def _identities(self, recording: Recording) -> None:
        worst: dict[str, tuple[float, str, int]] = {}
        allowed: dict[str, float] = {}
        for identity in self._block_identities(recording):
            gap, site, count = worst.get(identity.name, (-1.0, "", 0))
            worst[identity.name] = (max(gap, identity.gap), identity.site if identity.gap > gap else site, count + 1)
            allowed[identity.name] = max(self.tolerance, identity.floor)
        doubtful = [name for name, (gap, _, _) in worst.items() if gap > allowed[name]]
        wide = self._upcast_gaps() if doubtful and self.model.dtype != torch.float64 else {}
        for name, (gap, site, count) in worst.items():
            if name in doubtful and gap <= EXCUSABLE * self.tolerance and wide.get(name, 1.0) <= 1e-9:
                self._note(name, site, gap, max(gap, self.tolerance), count, f"rounding: the gap is {wide[name]:.0e} in float64")
            else:
                self._note(name, site, gap, allowed[name], count)

    def _upcast_gaps(self) -> dict[str, float]:
        """The same identities in float64: rounding disappears, a bug stays."""
        try:
            model = type(self.model)(
                self.model.name, copy.deepcopy(self.model.torch_module).double(), self.model._encoder, self.model.anatomy
            )
            model.certificate, model.sites = Certificate.none(), self.model.sites
            examiner = _Examiner(model)
            recording = model.run(examiner.inputs, examiner.reads)
            gaps: dict[str, float] = {}
            for identity in examiner._block_identities(recording):
                gaps[identity.name] = max(gaps.get(identity.name, 0.0), identity.gap)
        except (RuntimeError, ActivariumError):  # code that only runs in its own dtype cannot be told from a bug
            return {}
        return gaps

    def _padding(self, together: Recording) -> None:
        """Every example alone gives the rows it has in a padded batch."""
        gap, worst, count = 0.0, "all", 0
        rowwise = [n for n in self.reads if self.model.sites[n].rows != "example" and n.rpartition(".")[2] != "pattern"]
        for e in range(len(self.inputs)):
            alone = self.model.run(self.inputs.select([e]), rowwise)
            for name in rowwise:
                whole, single = together[name], alone[name].tensor.double()
                rows = whole.tensor[whole.index.span(e)].double()  # type: ignore[union-attr]
                size = (
                    float((rows - single).abs().max() / single.abs().max().clamp_min(1e-30)) if rows.shape == single.shape else float("inf")
                )
                if not size <= gap:
                    gap, worst = size, name
            count += len(rowwise)
        self._note("padded batch = one by one", worst, gap, ROUNDED if self.model.rounds_inputs else None, count)

    # --- writes

    def _writes(self, recording: Recording) -> None:
        """A small change at a site must change what follows by the block's algebra, and nothing before it."""
        gap, worst, count, notes = 0.0, "", 0, []
        for stack in self.model.anatomy.stacks.values():
            for i in sorted({0, len(stack.blocks) // 2, len(stack.blocks) - 1}):
                for short in WRITABLE:
                    name = f"{stack.prefix}blocks.{i}.{short}"
                    if name in self.model.sites:
                        size, why = self._write(recording, stack.name, i, name)
                        count += 1
                        if size > gap:
                            gap, worst, notes = size, name, [why]
        self._note(
            "a write changes what follows, as computed by hand", worst or "all", gap, None, count, notes[0] if gap > self.tolerance else ""
        )

    def _write(self, base: Recording, stack: str, i: int, name: str) -> tuple[float, str]:
        """Gap and reason for one site."""
        model = self.model
        values = base[name].tensor
        generator = torch.Generator().manual_seed(i)
        delta = torch.randn(values.shape[1:], generator=generator).to(values) * float(values.double().std().clamp_min(1e-3)) * 0.1
        # A first token sees only itself, so its query decides nothing; a picture's first row is what pooled heads read.
        position = 0 if model._encoder.spaces[base[name].space or stack].modality == "vision" else 1
        edit = Add(name, delta, where=Where(examples=(0,), positions=(position,)))
        prefix = model.anatomy.stacks[stack].prefix
        near = (f"{prefix}blocks.{i}.", f"{prefix}blocks.{i + 1}.attn.in", f"{prefix}blocks.{i + 1}.resid_pre", "logits")
        around = [n for n in self.reads if n.startswith(near) or n.endswith("final_norm")]
        after = model.run(self.inputs, around, edits=[edit])
        row = base[name].index.span(0).start + edit.where.positions[0]  # type: ignore[union-attr,index]
        wanted = values.clone()
        wanted[row] += delta
        changed = {model.sites.find(name).name} | self._carriers(name)
        problems = [(Identity("", name, after[name].tensor, wanted).gap, "the written value is not what a read gives back")]
        problems += [
            (d.gap, f"{d.site}: {d.name} no longer holds")
            for d in self._around(after, stack, i)
            if model.sites.find(d.site).name not in changed and not d.gap <= d.floor
        ]
        gap, why = max(problems)
        entry = f"{model.anatomy.stacks[stack].prefix}blocks.{i}.resid_pre"
        if not name.endswith("resid_pre") and not torch.equal(after[entry].tensor, base[entry].tensor):
            return float("inf"), f"writing {name} changed {entry}, which comes before it"
        if self._reaches(base, after, name):
            return gap, why
        return float("inf"), f"writing {name} changed nothing that follows"

    def _carriers(self, name: str) -> set[str]:
        """Sites that a write to a sum goes through."""
        stem, _, leaf = name.rpartition(".")
        write = name
        if leaf in ("resid_mid", "resid_cross") and not self.model.post_norm(name):
            write = f"{stem}.{'cross' if leaf == 'resid_cross' else 'attn'}.out"
        elif leaf != "out":
            return set()
        held = self.model.sites.find(write)
        scaled = held.place is not None and held.place.cut is not None  # it is its projection under a factor
        return {held.name, *([self.model.sites.find(write.removesuffix("out") + "proj").name] if scaled else [])}

    def _around(self, recording: Recording, stack: str, i: int) -> Iterator[Identity]:
        yield from BlockAlgebra(self.model, recording, stack, i).all()
        if i + 1 < len(self.model.anatomy.stacks[stack].blocks):
            yield from BlockAlgebra(self.model, recording, stack, i + 1)._entrance("attn")
        else:
            yield from exit_identities(self.model, recording, [stack])

    def _reaches(self, base: Recording, after: Recording, name: str) -> bool:
        """Where no identity shows that a value was used (rotation and activation are the family's own), what follows must change."""
        stem, _, leaf = name.rpartition(".")
        if leaf in ("pre", "up") and f"{stem}.post" in base:
            return not torch.equal(base[f"{stem}.post"].tensor, after[f"{stem}.post"].tensor)
        if leaf == "z" and self.model.sites[name].kind == "rotary":
            return not torch.equal(base[f"{stem}.proj"].tensor, after[f"{stem}.proj"].tensor)
        if leaf not in ("q", "k"):
            return True
        rotated = f"{name}_rot"
        if rotated in base and self.model.sites.find(rotated).name != name:
            return not torch.equal(base[rotated].tensor, after[rotated].tensor)
        pattern = f"{stem}.pattern"
        return pattern not in base or not torch.equal(base[pattern].example(0).tensor, after[pattern].example(0).tensor)


def probe_inputs(model: TorchRunner) -> Inputs:
    """A small ragged batch of random tokens or pixels."""
    encoder = model._encoder
    special = uncommon_tokens(model.torch_module, encoder.tokenizer)
    data: dict[str, Any] = {}
    for k, space in enumerate(encoder.spaces.values()):
        if space.modality == "vision":
            data[space.name] = probe_pixels(space, 3, model.dtype, seed=7)
            continue
        lengths = [min(n, space.limit or n) for n in (7 + k, 4 + k, 2 + k)]
        texts = probe_tokens(space, 3, max(lengths), seed=7 + k, avoid=special)
        data[space.name] = [
            probe_text(
                space,
                torch.cat([torch.tensor([space.start] if space.start is not None else []).long(), t[: n - (space.start is not None)]]),
            )
            for t, n in zip(texts, lengths, strict=True)
        ]
    return Inputs(data, np.arange(3), encoder.spaces, {"bos": "none (probe)"}, encoder.words, encoder.special)
