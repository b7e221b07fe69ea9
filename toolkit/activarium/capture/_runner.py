"""A Hugging Face model as a Runner: named sites to read and edit, gradients, weights, read-outs, resumed forwards."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from activarium.activations import Activations
from activarium.branches import Branches
from activarium.capture import _weights
from activarium.capture._answers import Answers, needed, needs_kernel
from activarium.capture._bound import bound_rules
from activarium.capture._branches import run_branches
from activarium.capture._encode import Encoder
from activarium.capture._inputs import Batch, Inputs
from activarium.capture._interface import watching
from activarium.capture._looks_back import looks_back
from activarium.capture._meanwhile import Meanwhile
from activarium.capture._normalise import normalise
from activarium.capture._probe import Anatomy
from activarium.capture._resume import Resume
from activarium.capture._session import Keep, Session, Stop, as_rows
from activarium.capture._sites import Place, Site
from activarium.capture._sparse_mlp import SparseMLPs
from activarium.edits import Edit
from activarium.errors import InputError, unknown
from activarium.metrics import Metric
from activarium.recording import Recording
from activarium.rules import Rules, Secant

if TYPE_CHECKING:
    from activarium.capture._certify import Certificate
    from activarium.capture._decode import Decoded
    from activarium.capture._generate import Generation


class TorchRunner(Meanwhile):
    """A model whose activations can be read and edited by name. Made by `act.load` and `act.wrap`.

    Attributes:
        name: Name or folder it was loaded under.
        torch_module: The Hugging Face model itself.
        tokenizer: Its tokenizer, if any.
        processor: Its image processor, if any.
        keeps: `run` heeds `keep=`.
        watches: Attention passes through kernels that are routed through our seat, rather than through the model's own code.
        sites: All sites, as a table that prints itself.
        certificate: What was proven about them at load.
        running_sparse: What `sparse` has opened and not closed yet.
    """

    certificate: Certificate
    keeps = True
    watches = True

    def __init__(self, name: str, model: Any, encoder: Encoder, anatomy: Anatomy) -> None:
        self.name, self.anatomy, self.sites = name, anatomy, anatomy.sites
        self.torch_module: Any = model
        self._encoder = encoder
        self.tokenizer, self.processor = encoder.tokenizer, encoder.processor
        self._lock = threading.RLock()  # widget messages arrive on another thread
        self._standing: list[Edit] = []
        self._gone: list[str] = []  # blocks that do not run at present
        self.running_sparse: list[SparseMLPs] = []
        self._hashed: tuple[Any, str] | None = None
        self._modules = dict(model.named_modules())
        self._paths = {id(m): p for p, m in self._modules.items()}
        self._attention = self._attention_names()
        self._looks_back: dict[str, bool] = {}

    def __reduce__(self) -> Any:
        """For a worker's process: weights, tokenizer and certificate travel; locks, hooks and caches are made anew."""
        return _arrived, (type(self), self.name, self.torch_module, self._encoder, self.anatomy, self.certificate)

    # --- what it is

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(p.dtype for p in self.torch_module.parameters() if p.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.torch_module.parameters()).device

    @cached_property
    def quantised(self) -> str:
        """Path of the first layer whose weight is quantised; empty if none is."""
        return next((path for path, module in self._modules.items() if _weights.is_quantised(module)), "")

    @property
    def rounds_inputs(self) -> bool:
        """Are there integer layers, which round what they take in as well?"""
        return bool(self.quantised) and any(
            isinstance(w := getattr(m, "weight", None), Tensor) and not w.is_floating_point() for m in self._modules.values()
        )

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes of a classifier, in the order of its logits."""
        table = getattr(self.torch_module.config, "id2label", None)
        site = self.sites.missing.get("logits") is None and self.sites["logits"]
        return (
            [str(table[i]) for i in range(site.shape[0])]
            if site and table and site.axes == "example class" and len(table) == site.shape[0]
            else None
        )

    @property
    def eager(self) -> bool:
        """Does attention run eager (and not a fused kernel)?"""
        return (self.torch_module.config._attn_implementation or "eager").endswith("eager")

    @property
    def identity(self) -> dict[str, Any]:
        """Name, weight hash, dtype, kernel and versions: what a store or Result is stamped with."""
        import transformers

        return {
            "name": self.name,
            "class": type(self.torch_module).__name__,
            "weight_hash": self._weight_hash(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "kernel": self.torch_module.config._attn_implementation,
            "processor_hash": self._encoder.hash,
            "certificate": self.certificate.summary(),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }

    def notes(self) -> tuple[str, ...]:
        """What a reader of its numbers should know; kept in the certificate."""
        return ()

    def _weight_hash(self) -> str:
        """Hashed again only if a weight was changed or replaced: torch counts every change in place."""
        stamp = tuple((v.data_ptr(), v._version) for v in self.torch_module.state_dict(keep_vars=True).values())
        if self._hashed is None or self._hashed[0] != stamp:
            self._hashed = stamp, weight_hash(self.torch_module)
        return self._hashed[1]

    def module(self, path: str) -> nn.Module:
        """A module by its dotted path."""
        if path not in self._modules:
            raise unknown("module in this model", path, self._modules)
        return self._modules[path]

    def path_of(self, module: nn.Module) -> str:
        """Dotted path of a module."""
        return self._paths[id(module)]

    def _attention_names(self) -> dict[tuple[str, int], str]:
        names: dict[tuple[str, int], str] = {}
        for stack in self.anatomy.stacks.values():
            for i, block in enumerate(stack.blocks):
                for room, path in block.attention.items():
                    names[path, block.turn] = f"{stack.prefix}blocks.{i}.{room}"
        return names

    def attention_name(self, path: str, turn: int) -> str | None:
        """`blocks.3.attn` for the module that calls the attention kernel."""
        return self._attention.get((path, turn))

    def site(self, name: str) -> Site:
        """A site of the vocabulary, or any module's output as `module:PATH`."""
        if name.startswith("module:"):
            path = name.removeprefix("module:")
            self.module(path)
            return Site(name, "row d_model", place=Place(path, "output"), kind="module", note="uncertified")
        return self.sites.find(name)

    def block_entry(self, name: str) -> Place:
        """Where the stream enters a block, `blocks.3`."""
        prefix, _, number = name.rpartition("blocks.")
        stack = self.anatomy.stacks.get(prefix.rstrip("."))
        if stack is None or not number.isdigit() or int(number) >= len(stack.blocks):
            raise unknown("block", name, [f"{s.prefix}blocks.{i}" for s in self.anatomy.stacks.values() for i in range(len(s.blocks))])
        return stack.blocks[int(number)].places["resid_pre"]

    def post_norm(self, name: str) -> bool:
        """Is this site in a stack whose norms follow the sums?"""
        stack = self.anatomy.stacks[self.sites[name].rows if self.sites[name].rows in self.anatomy.stacks else ""]
        return stack.blocks[0].algebra == "post-norm"

    def row_space(self, name: str, edit: Edit) -> str:
        """Row space of a site that an edit touches."""
        if name.startswith("module:"):
            return next(iter(self._encoder.spaces))
        return self.sites[name].rows

    # --- running

    def inputs(self, data: Any, *, bos: Any = "tokenizer") -> Inputs:
        """Text, token ids, images or a dict of them, encoded without padding.

        Args:
            data: A text, a list of texts, token ids, images, or a dict (`text images encoder decoder input_ids attention_mask pixel_values`).
            bos: `"tokenizer"` adds the special tokens that the tokenizer adds; True makes sure that a text begins with BOS; False adds none.

        Raises:
            InputError: Empty, too long, out of range, or of the wrong size or mode; the message says which and what to do.
        """
        if isinstance(data, Inputs):  # those that came from another process left their decoder behind
            return replace(data, words=self._encoder.words) if data.words is str else data
        return self._encoder.encode(data, bos)

    def run(
        self,
        inputs: Any,
        read: str | Sequence[str] = (),
        *,
        edits: Sequence[Edit] = (),
        metrics: Metric | Mapping[str, Metric] | None = None,
        grad: bool = False,
        stop_after: str | None = None,
        bos: Any = "tokenizer",
        keep: Keep | None = None,
        rules: Rules | Secant | str | None = None,
    ) -> Recording:
        """One forward over one right-padded batch: read sites after edits, measure the answer.

        Args:
            inputs: See `inputs`.
            read: Site names and patterns (`blocks.*.mlp.post`); `module:PATH` reads any module.
            edits: Applied in list order, after those of `edited`.
            metrics: One or several scalars of the logits; they come back as `rec.metric` with axis `example`.
            grad: Keep the graph, so that `rec.backward(name)` gives gradients at every site read.
            stop_after: End the forward once this site was read.
            bos: See `inputs`.
            keep: Called with each site and its value as it is read; what it returns is kept in its stead (a copy in another
                dtype, in memory that is used again). The forward goes on with the value. Not heeded with edits or `grad`.
            rules: Relevance rules, or the name of a set of them, for the gradients of this forward (`grad=True`); values stay bit
                for bit. `rec.provenance["rules"]` counts what each rule acted on and notes what it could not be bound to.

        Returns:
            Recording of the sites, with `logits` if the forward was not cut short.

        Raises:
            UnknownSite: A name that does not exist; nearest names are listed.
            SilentHook: A requested site did not fire exactly once.
            UnknownName: No set of rules has the name given.
            InputError: Rules without `grad`, or in float16.
        """
        batch = self.inputs(inputs, bos=bos).batch
        with self._lock:
            return self._run(batch, read, edits, metrics, grad, stop_after, lambda arguments: self._forward(batch, arguments), keep, rules)

    __call__ = run

    def generate(
        self,
        inputs: Any,
        max_new_tokens: int = 20,
        read: str | Sequence[str] = (),
        *,
        edits: Sequence[Edit] = (),
        do_sample: bool = False,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: str | int | Sequence[str | int] | None = None,
        num_beams: int = 1,
        bos: Any = "tokenizer",
    ) -> Generation:
        """Let the model write on, with its cache of keys and values, and read every row of prompts and responses.

        The words are transformers' own: its `generate` chooses them. What is read equals one clean forward over the final texts.

        Args:
            inputs: See `inputs`; texts may have different lengths.
            max_new_tokens: Most tokens to write.
            read: Site names and patterns, `logits` among them.
            edits: Applied in every forward. `Where(phases="response")` leaves the prompt alone, `Where(positions=-1)` touches the newest row.
            do_sample: Draw the next token instead of taking the likeliest.
            temperature: Of the draw, above 0.
            top_k: Draw from the likeliest `top_k` tokens.
            top_p: Draw from the likeliest tokens that hold this share of the probability.
            seed: Of the draw; torch's own generator is left alone.
            stop: Words or token ids that end a text, beside the model's own end-of-text token.
            num_beams: Only 1.
            bos: See `inputs`.

        Returns:
            Recording, token ids and texts. Row columns `phase` (`prompt` or `response`) and `step` (number of the forward, 0 for the prompt).

        Raises:
            InputError: The model does not write text, has too few positions, or cannot be read while it writes.
            SilentHook: A site did not fire exactly once in a forward.

        Example:
            >>> import activarium as act
            >>> model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
            >>> written = model.generate(["the cat", "Anna saw"], max_new_tokens=3, read="blocks.1.resid_post")
            >>> written.recording["blocks.1.resid_post"].shape
            (10, 32)
            >>> written.recording.table()["phase"].value_counts().to_dict()
            {'response': 6, 'prompt': 4}
        """
        from activarium.capture._generate import generate

        if self._gone:
            raise InputError(
                f"{self._gone[0]} is removed, so it would leave a hole in the cache that generate counts positions by. "
                f"Use generate(..., edits=[SkipBlock({self._gone[0]!r})])."
            )
        options = {"do_sample": do_sample, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        prompts = self.inputs(inputs, bos=bos)
        with self._lock:
            every = [*self._standing, *edits]
            limits = {"max_new_tokens": max_new_tokens, "stop": stop, "seed": seed, "num_beams": num_beams}
            return generate(self, prompts, self.sites.select(read), every, **limits, settings=options)

    def _run(
        self,
        batch: Batch,
        read: Any,
        edits: Any,
        metrics: Any,
        grad: bool,
        stop_after: str | None,
        forward: Callable[..., Any],
        keep: Keep | None = None,
        rules: Rules | Secant | str | None = None,
    ) -> Recording:
        if self.torch_module.training:
            raise InputError(f"{self.name} is in training mode, where dropout changes what is read. Call model.torch_module.eval() first.")
        if grad and self.quantised:
            raise InputError(
                f"{self.name} is quantised ({self.quantised} holds rounded codes), so it can be read but gives no gradients. Load it unquantised."
            )
        names = self.sites.select(read)
        reads, every = needed(self, names, grad), [*self._standing, *edits]
        watch, bound = needs_kernel(names), bound_rules(self, rules, grad)
        session = Session(self, batch, reads, every, grad=grad, stop_after=stop_after, watch=watch, keep=keep, rules=bound)
        arguments = {k: v.to(self.device) for k, v in batch.arguments.items()}
        output = None
        with session.hooked(), nullcontext() if grad else torch.no_grad(), suppress(Stop):
            output = forward(arguments)
        session.check_fired()
        return Answers(self, session, output).recording(names, metrics)

    def _forward(self, batch: Batch, arguments: dict[str, Tensor]) -> Any:
        given = set(batch.inputs.data)
        if len(self._encoder.spaces) > 1 and given < set(self._encoder.spaces):
            method = {"vision": "get_image_features", "text": "get_text_features"}.get(next(iter(given)))
            if method == "get_text_features" and not hasattr(self.torch_module, method):
                return self.torch_module(**arguments, **self._encoder.quiet)  # a language model that can also do without images
            if method is None:
                raise InputError(f"{self.name} needs texts for {' and '.join(self._encoder.spaces)}; found only {', '.join(given)}.")
            return getattr(self.torch_module, method)(**arguments)
        return self.call(**arguments, **self._encoder.quiet)

    def call(self, **arguments: Any) -> Any:
        """The model's own forward; what it returns has `logits` if it has a head."""
        return self.torch_module(**arguments)

    def kernel(self, session: Session) -> AbstractContextManager[None]:
        """While it is open, the session sees what enters every attention kernel."""
        return watching(self.torch_module, session.seat)

    def kept(self, inputs: Inputs, name: str, value: Tensor) -> Activations:
        """The rows, without pads, of what `keep` is given for a site while these inputs run."""
        site = self.site(name)
        session = Session(self, inputs.batch, (), (), grad=False, stop_after=None, watch=False)
        value = value.transpose(1, 2) if site.kind == "rotary" else value
        rows = as_rows(value, None, session.cells(site.rows), inputs.batch.index.get(site.rows), site.rows == "example")
        return Activations(rows, site.axes, site=site.name, index=session.table(site.rows), space=site.rows)

    def looks_back(self, space: str = "") -> bool:
        """Does a row of this row space depend on earlier rows alone (causal attention)?"""
        if space not in self._looks_back:
            self._looks_back[space] = looks_back(self, space)
        return self._looks_back[space]

    def gradient_site(self, name: str) -> str:
        """Where a site's whole gradient is seen: a sum of stream and write is no module, so it is taken at the write."""
        stem, _, leaf = name.rpartition(".")
        if leaf not in ("resid_mid", "resid_cross") or self.post_norm(name):
            return name
        return self.sites.find(f"{stem}.{'cross' if leaf == 'resid_cross' else 'attn'}.out").name

    def sites_hold(self, name: str) -> str:
        """Name under which a site's values are kept."""
        return name if name.startswith("module:") else self.sites.find(name).name

    # --- weights, the rest of a forward

    def decode(self, inputs: Any, max_new_tokens: int = 20, *, tokens: Any = None, bos: Any = "tokenizer") -> Decoded:
        """Write on with the likeliest tokens in a bare loop: nothing is read, nothing ends a text early, every step is timed.

        Args:
            inputs: See `inputs`; all prompts of one length.
            max_new_tokens: Tokens to write, exactly.
            tokens: Given tokens `(example, step)` in the place of the likeliest ones; the logits are then those before each of them.
            bos: See `inputs`.

        Raises:
            InputError: Prompts of several lengths, or more tokens than the model has positions.
        """
        from activarium.capture._decode import decode

        prompts = self.inputs(inputs, bos=bos)
        with self._lock, torch.no_grad():
            return decode(self, prompts, max_new_tokens, tokens)

    @cached_property
    def weights(self) -> dict[str, tuple[str, str, Any]]:
        """Every named weight, with the module that holds it and how it lies there."""
        return _weights.names(self)

    def weight(self, name: str) -> Tensor:
        """A named weight with named axes, `blocks.3.attn.W_O` as `head d_head d_model`; a view where the model allows.

        Raises:
            UnknownName: No such weight; the nearest names are listed.
        """
        return _weights.weight(self, name)

    def normalise(self, name: str, rows: Tensor) -> Tensor:
        """What a norm makes of `row d_model`: `blocks.3.attn.norm`, `blocks.3.mlp.post`, `final_norm`. Rows as they are where there is none."""
        return normalise(self, name, rows)

    def readout(self, resid: Tensor | Activations) -> Tensor:
        """What the head says of each row of the residual stream alone: the model's own final norm, head and soft-cap.

        Args:
            resid: `row d_model`, as after the last block.

        Returns:
            `row vocab` or `row class`, in logits.

        Raises:
            InputError: The head pools several rows, so one row alone has no answer.
            MissingSite: This class has no head.
        """
        with self._lock:
            return Resume(self).readout(resid.tensor if isinstance(resid, Activations) else resid)

    def resume(
        self,
        inputs: Any,
        at: str,
        values: Tensor | Activations,
        read: str | Sequence[str] = (),
        *,
        edits: Sequence[Edit] = (),
        metrics: Metric | Mapping[str, Metric] | None = None,
        grad: bool = False,
        start: int = 0,
        cached_kv: Recording | None = None,
    ) -> Recording:
        """Run only the rest of a forward, from a block boundary on, with given values there.

        Args:
            inputs: The inputs of the whole forward.
            at: `blocks.i.resid_pre` or `blocks.i.resid_post` (with the stack's name before it where there are several).
            values: `row d_model`: every row, or with `start` the rows from that position on.
            start: Run only positions from here on (causal models, texts of one length); earlier keys and values come from `cached_kv`.
            cached_kv: A recording of the same inputs with `blocks.*.attn.k_rot` and `blocks.*.attn.v`.

        Returns:
            Recording, as of `run`.
        """
        with self._lock:
            return Resume(self).run(
                self.inputs(inputs), at, values, read, edits=edits, metrics=metrics, grad=grad, start=start, cached_kv=cached_kv
            )

    def branches(
        self,
        inputs: Any,
        branches: Sequence[Branches],
        metric: Metric,
        *,
        memory: int = 1 << 30,
        advance: Callable[[int], Any] = lambda _: None,
    ) -> tuple[list[np.ndarray], dict[str, Any]]:
        """The metric of many variants of one forward, of which only what differs is run.

        Args:
            inputs: The inputs of the base forward.
            branches: The variants, one set per site.
            metric: What is measured of each.
            memory: Bytes that the streams of variants run together may take.
            advance: Called with the number of variants just run.

        Returns:
            The metric per variant, in the order given, and what it cost.
        """
        with self._lock:
            return run_branches(self, self.inputs(inputs), branches, metric, memory, advance)

    def __repr__(self) -> str:
        stacks = ", ".join(f"{len(s.blocks)} blocks{' of ' + n if n else ''}" for n, s in self.anatomy.stacks.items())
        return f"TorchRunner({self.name!r}: {type(self.torch_module).__name__}, {stacks or 'no blocks recognised'}, {self.certificate.verdict})"


def _arrived(kind: type[TorchRunner], name: str, model: Any, encoder: Encoder, anatomy: Anatomy, certificate: Certificate) -> TorchRunner:
    runner = kind(name, model, encoder, anatomy)
    runner.certificate = certificate
    return runner


def weight_hash(model: nn.Module) -> str:
    """Hash of all weights by name, so that a store can tell its model from another."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()
