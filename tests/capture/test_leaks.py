"""Nothing stays: memory is flat over hundreds of runs, and an interrupted forward leaves the model as it was."""

import gc
import signal
import threading
from dataclasses import dataclass

import psutil
import pytest
import torch

import activarium as act
from activarium import testing
from activarium.capture._interface import _watcher
from activarium.edits import Add, Edit, Scale, Where
from activarium.errors import InputError, UnknownSite
from activarium.metrics import logit_difference

from .lens_models import KINDS

LONG = [torch.arange(20, 80)[:n] for n in (60, 40, 33, 50)]
METRIC = logit_difference([3] * 4, [5] * 4)
READ = ["blocks.*.resid_post", "blocks.*.attn.pattern"]


@pytest.fixture(autouse=True)
def _heeds_interrupts():
    """A process started in the background is born deaf to SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@dataclass(frozen=True)
class Breaks(Edit):
    """An edit that raises inside the forward."""

    site: str
    error: type[BaseException] = ZeroDivisionError

    def change(self, values):
        if self.error is KeyboardInterrupt:
            signal.raise_signal(signal.SIGINT)  # as Ctrl-C does it
        raise self.error


def reads(model):
    rec = model.run(LONG, READ)
    rec["blocks.0.attn.pattern"].example(1).numpy()
    rec["blocks.*.resid_post"].tensor


def edits(model):
    with model.edited(Scale("blocks.0.mlp.post", 2.0)):
        model.run(LONG, "blocks.*.mlp.post", edits=[Add("blocks.0.resid_mid", torch.ones(32))]).logits.tensor


def differentiates(model):
    rec = model.run(LONG, "blocks.*.resid_post", grad=True, metrics=METRIC)
    rec.backward("logit_difference")["blocks.1.resid_post"].tensor


def measures_and_leaves(model):
    model.run(LONG, "blocks.*.resid_post", grad=True, metrics=METRIC)


def fails(model):
    with pytest.raises(ZeroDivisionError):
        model.run(LONG, READ, grad=True, metrics=METRIC, edits=[Breaks("blocks.1.mlp.post")])
    with pytest.raises(UnknownSite):
        model.run(LONG, "blocks.0.nothing")
    with pytest.raises(InputError):
        model.run([torch.tensor([10_000])])


def resumes(model):
    rec = model.run(LONG, "blocks.0.resid_post")
    model.readout(rec["blocks.0.resid_post"])
    model.resume(LONG, "blocks.0.resid_post", rec["blocks.0.resid_post"], "blocks.1.resid_post", grad=True)


WAYS = [reads, edits, differentiates, measures_and_leaves, fails, resumes]


def live():
    """Bytes of all tensors that Python can reach."""
    found = {}
    for thing in gc.get_objects():
        if type(thing) is torch.Tensor or type(thing) is torch.nn.Parameter:
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def resident():
    return psutil.Process().memory_info().rss


def flat(call, rounds, warm=60):
    """Growth of live tensor bytes and of the process over many calls, as shares of what was there."""
    for _ in range(warm):
        call()
    gc.collect()
    tensors, process = live(), resident()
    for _ in range(rounds):
        call()
    gc.collect()
    return live() / tensors - 1, resident() / process - 1


@pytest.fixture(scope="module")
def model():
    return act.wrap(*testing.tiny("gpt2"), certify=False)


@pytest.mark.stress
@pytest.mark.parametrize("family", ["gpt2", "llama", *KINDS])
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_memory_is_flat_over_two_hundred_rounds(family):
    if family in KINDS:
        pytest.importorskip("transformer_lens", reason="the extra [lens] is not installed")
    made = KINDS[family]("gpt2") if family in KINDS else testing.tiny(family)
    runner = act.wrap(*made, certify=False)
    tensors, process = flat(lambda: [way(runner) for way in WAYS], 200)
    assert abs(tensors) < 0.01 and process < 0.01, (tensors, process)


@pytest.mark.slow
def test_memory_is_flat_over_fewer_rounds(model):
    tensors, process = flat(lambda: [way(model) for way in WAYS], 30, warm=20)
    assert abs(tensors) < 0.01 and process < 0.01, (tensors, process)


def test_the_scales_tell_a_leak(model):
    kept, before = [], live()
    grown, _ = flat(lambda: kept.append(model.run(LONG, READ)["blocks.0.resid_post"].tensor), 3, warm=1)
    assert grown * before > 0.5 * 3 * 183 * 32 * 4  # half of three times 183 rows of 32 numbers


@pytest.mark.parametrize("way", [reads, edits, differentiates, measures_and_leaves, resumes])
def test_nothing_large_waits_for_the_garbage_collector(model, way):
    """A cycle would hold a whole graph until some later collection: memory would climb and fall like a saw."""
    way(model)
    gc.collect()
    gc.disable()
    try:
        before = live()
        way(model)
        assert live() - before < 32 * 1024  # token ids and row tables; one site is 23 kB per example
    finally:
        gc.enable()


# --- interrupted


def settings(runner):
    """Everything that a run touches and must put back."""
    module = runner.torch_module
    return (
        {p: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for p, m in module.named_modules()},
        {p: m.__dict__.get("forward") for p, m in module.named_modules()},
        [
            m.config._attn_implementation_internal
            for m in module.modules()
            if hasattr(m.__dict__.get("config"), "_attn_implementation_internal")
        ],
        [p.requires_grad for p in module.parameters()],
        module.training,
        list(runner._standing),
        _watcher.get(),
    )


def stream(runner):
    return runner.run(LONG, "blocks.0.resid_post")["blocks.0.resid_post"]


def from_a_hook(runner):
    """Somebody else's hook inside the model is where the interrupt lands."""

    def hook(module, args, output):
        signal.raise_signal(signal.SIGINT)

    block = runner.module(runner.anatomy.stacks[""].blocks[1].path)
    handle = block.register_forward_hook(hook)
    try:
        runner.run(LONG, [*READ, "blocks.*.attn.q_rot"])
    finally:
        handle.remove()


def keeping(name, value):
    signal.raise_signal(signal.SIGINT)


INTERRUPTED = {
    "by an edit": lambda m: m.run(LONG, READ, edits=[Breaks("blocks.1.mlp.post", KeyboardInterrupt)]),
    "by an edit inside the attention kernel": lambda m: m.run(LONG, READ, edits=[Breaks("blocks.1.attn.q_rot", KeyboardInterrupt)]),
    "by an edit of a sum": lambda m: m.run(LONG, edits=[Breaks("blocks.0.resid_mid", KeyboardInterrupt)]),
    "while reading": lambda m: m.run(LONG, READ, keep=keeping),
    "by another's hook": from_a_hook,
    "with a graph": lambda m: m.run(LONG, READ, grad=True, metrics=METRIC, edits=[Breaks("blocks.1.attn.z", KeyboardInterrupt)]),
    "in the rest of a forward": lambda m: m.resume(
        LONG, "blocks.0.resid_post", stream(m), edits=[Breaks("blocks.1.mlp.post", KeyboardInterrupt, where=Where(positions=(0,)))]
    ),
}


def edited(runner):
    with runner.edited(Breaks("blocks.0.mlp.out", KeyboardInterrupt)):
        runner.run(LONG)


INTERRUPTED["under a standing edit"] = edited


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def runner(request):
    return act.wrap(*testing.tiny(request.param), certify=False)


def check(runner, interrupt):
    weights = {n: v.clone() for n, v in runner.torch_module.state_dict().items()}
    before, logits = settings(runner), runner.run(LONG).logits.tensor
    with pytest.raises(KeyboardInterrupt):
        interrupt(runner)
    assert settings(runner) == before
    assert all(torch.equal(v, weights[n]) for n, v in runner.torch_module.state_dict().items())
    found = []
    thread = threading.Thread(target=lambda: found.append(runner.run(LONG, READ).logits.tensor))  # the lock is free again
    thread.start()
    thread.join(20)
    assert found and torch.equal(found[0], logits)


@pytest.mark.parametrize("where", INTERRUPTED)
def test_an_interrupt_leaves_the_model_as_it_was(runner, where):
    check(runner, INTERRUPTED[where])


@pytest.mark.slow
@pytest.mark.parametrize("where", INTERRUPTED)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_an_interrupt_leaves_a_transformer_lens_model_as_it_was(kind, where):
    pytest.importorskip("transformer_lens", reason="the extra [lens] is not installed")
    check(act.wrap(*KINDS[kind]("llama"), certify=False), INTERRUPTED[where])
