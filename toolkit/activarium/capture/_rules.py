"""Relevance rules in one forward: hooks that give a component another gradient and leave its value bit for bit as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from activarium.capture._block import Block
from activarium.capture._cuts import read_cut
from activarium.capture._gradients import Scaled, checked, ratio, scaled, slope_of, with_gradient_of
from activarium.capture._rule_modules import NormForm, blocks_of, rule_modules
from activarium.capture._sites import Place
from activarium.capture._tempered import Tempered, tempered_mix
from activarium.capture._trace import first_tensor
from activarium.rules import ATTENTION, Rules

if TYPE_CHECKING:
    from activarium.attention import AttentionSpec
    from activarium.capture._masks import Span
    from activarium.capture._runner import TorchRunner

Change = Callable[[Tensor], Tensor]


class BoundRules:
    """The rules of one forward. Nothing is bound to the model but hooks, which go with the forward.

    Attributes:
        rules: What was asked for.
        fired: Rule → what it acted on.
    """

    def __init__(self, model: TorchRunner, rules: Rules) -> None:
        self.model, self.rules = model, rules
        self._found = rule_modules(model)
        self.fired: dict[str, set[str]] = {n: set() for n in ("norms", "qk_norms", "activations", "gates", "attention")}

    def report(self) -> dict[str, Any]:
        """What was asked for, how many modules each rule acted on, and what it could not be bound to."""
        fields = self.rules.to_json()
        asked = [n for n, on in fields.items() if on not in (False, "ordinary")]
        notes = [words for n in asked for words in self._found.notes.get(n, ())]
        return {"name": self.rules.name, "fields": fields} | {n: len(paths) for n, paths in self.fired.items()} | {"notes": notes}

    # --- hooks

    def hooks(self) -> Iterator[RemovableHandle]:
        """Hooks in place, one after the other. Rules come before edits and reads of the same output, so those see what goes on."""
        rules, found = self.rules, self._found
        if rules.norms:
            yield from self._each("norms", found.norms, self._norm)
            yield from self._each("qk_norms", found.qk_norms if rules.qk_norms else {}, self._norm)
        if rules.activations:
            yield from self._each("activations", found.activations, self._activation)
            yield from self._soft_cap()
        functional = found.functional if rules.activations else {}
        gated = found.gated if rules.gates else {}
        for name in dict.fromkeys([*functional, *gated]):
            block = functional.get(name) or gated[name]
            yield from self._neurons(block, name in functional, name in gated)
        if rules.attention != "ordinary" and not self.model.watches:
            yield from self._attention_places()

    def _each(self, rule: str, paths: dict[str, Any], made: Callable[..., Tensor]) -> Iterator[RemovableHandle]:
        for path, what in paths.items():

            def hook(module: nn.Module, args: Any, kwargs: Any, output: Any, path: str = path, what: Any = what) -> Any:
                x = first_tensor(args) if args else first_tensor(list(kwargs.values()))
                if x is None or not isinstance(output, Tensor) or not output.requires_grad:
                    return None
                self.fired[rule].add(path)
                return made(path, module, what, x, output)

            yield self.model.torch_module.get_submodule(path).register_forward_hook(hook, prepend=True, with_kwargs=True)

    def _norm(self, path: str, module: nn.Module, form: NormForm, x: Tensor, y: Tensor) -> Tensor:
        return checked(form.frozen(module, x, y), y, path)

    def _activation(self, path: str, module: nn.Module, slope: float, x: Tensor, y: Tensor) -> Tensor:
        return with_gradient_of(x * ratio(x, y, slope), y)

    def _soft_cap(self) -> Iterator[RemovableHandle]:
        """The tanh that some models put over their logits, in code of the model itself."""
        model: Any = self.model.torch_module
        config = getattr(model, "cfg", None) or model.config
        cap = getattr(config, "output_logits_soft_cap", 0) or getattr(config, "final_logit_softcapping", 0)
        head = getattr(model, "unembed", None) or getattr(model, "get_output_embeddings", lambda: None)()
        if not cap or cap < 0 or head is None:
            return
        seen: list[Tensor] = []

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            y = output if isinstance(output, Tensor) else output.logits
            x = seen.pop()
            self.fired["activations"].add("logit soft-cap")
            new = self._activation("logit soft-cap", module, 1.0, x, y)
            if isinstance(output, Tensor):
                return new
            output.logits = new
            return output

        yield head.register_forward_hook(lambda _m, _a, output: seen.append(output))
        yield model.register_forward_hook(after, prepend=True)

    # --- neurons: activations that no module computes, and products

    def _neurons(self, block: Block, functional: bool, gated: bool) -> Iterator[RemovableHandle]:
        places, seen = block.places, dict[str, Tensor]()

        def noted(leaf: str) -> Change:
            def change(raw: Tensor) -> Tensor:
                seen[leaf] = raw
                return raw

            return change

        for leaf in self._branches(functional):
            if leaf in places:
                yield self._at(places[leaf], noted(leaf), last=True)
        yield self._at(places["mlp.post"], lambda post: self._post(post, places, seen, functional, gated))

    def _branches(self, functional: bool) -> tuple[str, ...]:
        """What must be seen before the neurons."""
        return ("mlp.pre", "mlp.up") if functional else ()

    def _post(self, post: Tensor, places: dict[str, Place], seen: dict[str, Tensor], functional: bool, gated: bool) -> Tensor:
        path = places["mlp.post"].path
        if functional:
            post = self._functional(post, places, seen, path)
        if gated:
            self.fired["gates"].add(path)
            post = Scaled.apply(post, 0.5)  # type: ignore[assignment]
        return post

    def _functional(self, post: Tensor, places: dict[str, Place], seen: dict[str, Tensor], path: str) -> Tensor:
        if not post.requires_grad:
            return post
        self.fired["activations"].add(path)
        raw, raw_up = seen.pop("mlp.pre"), seen.pop("mlp.up", None)
        x, bent = (read_cut(t, places["mlp.pre"].cut).reshape(post.shape) for t in (raw, slope_of(post, raw)))
        if raw_up is None:
            return with_gradient_of(x * ratio(x, post, bent), post)
        # The derivative of a product by one factor is the other: the activation, with no division.
        up, act = (read_cut(t, places["mlp.up"].cut).reshape(post.shape) for t in (raw_up, slope_of(post, raw_up)))
        slope = (bent / up.detach()).nan_to_num(0.0, 0.0, 0.0)
        rest = (post - act * up).detach()  # a bias that some code adds after the product
        return checked(x * ratio(x, act, slope) * up + rest, post, path)

    # --- attention

    @property
    def explicit(self) -> bool:
        """Has the mix of an attention a gradient of its own, made from queries, keys and values?"""
        return self.rules.attention == "tempered"

    @property
    def seated(self) -> bool:
        """Do these rules want the attention kernels?"""
        return self.rules.attention != "ordinary" and self.model.watches

    def attended(self, path: str, *values: Tensor) -> list[Tensor]:
        """Queries, keys and values as they enter an attention kernel, with the gradient that the rule gives them."""
        if self.rules.attention == "ordinary":
            return list(values)
        self.fired["attention"].add(path)
        return [scaled(v, factor) for v, factor in zip(values, ATTENTION[self.rules.attention], strict=True)]

    def _attention_places(self) -> Iterator[RemovableHandle]:
        """Where attention is the model's own code: at its pattern if that is held constant, else where q, k and v pass."""
        for name, block in blocks_of(self.model):
            places, path = block.places, block.attention.get("attn", name)
            if self.rules.attention == "frozen" and "attn.pattern" in places:
                yield self._at(places["attn.pattern"], self._counted(path, None), last=True)
                continue
            if self.explicit:
                seen: list[Tensor] = []
                yield self._at(places["attn.scores"], lambda scores, seen=seen: seen.append(scores) or scores, last=True)
                yield self._at(places["attn.pattern"], lambda value, seen=seen, path=path: checked(Tempered.apply(seen.pop()), value, path))
            for leaf, factor in zip("qkv", ATTENTION[self.rules.attention], strict=True):
                place = places.get(f"attn.{leaf}_rot") or places.get(f"attn.{leaf}")
                if place is not None:
                    yield self._at(place, self._counted(path, factor), last=True)

    def mixed(self, path: str, z: Tensor, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, spans: list[Span]) -> Tensor:
        """The mix `example query head d_head` with a gradient of its own; asked for where rules are `explicit`."""
        return tempered_mix(path, z, q, k, v, spec, spans)

    def _counted(self, path: str, factor: float | None) -> Change:
        def change(value: Tensor) -> Tensor:
            self.fired["attention"].add(path)
            return scaled(value, factor)

        return change

    def _at(self, place: Place, change: Change, last: bool = False) -> RemovableHandle:
        """A hook at a place of a site, before edits and reads or after them."""
        module = self.model.module(place.path)
        if place.side == "output":

            def after(_m: nn.Module, _args: Any, output: Any) -> Any:
                return change(output)

            return module.register_forward_hook(after, prepend=not last)

        def before(_m: nn.Module, args: Any, kwargs: Any) -> Any:
            key = place.argument
            if isinstance(key, int):
                return (*args[:key], change(args[key]), *args[key + 1 :]), kwargs
            return args, {**kwargs, key: change(kwargs[key])}

        return module.register_forward_pre_hook(before, prepend=not last, with_kwargs=True)
