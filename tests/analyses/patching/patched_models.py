"""Small models and pairs for the tests of patching: every family in float64, its norms included."""

import pytest
import torch
from torch import nn

import activarium as act
from activarium import testing

CLEAN = ["Anna saw the cat", "Tom gave Anna the red ball"]
CORRUPT = ["Tom saw the cat", "Tom gave Tom the red ball"]
TEXT = ("gpt2", "gpt_neox", "llama", "qwen3", "gemma2", "bert")
IMAGES = ("vit", "dinov2", "clip_vision")
FAMILIES = (*TEXT, "t5", *IMAGES)
QUICK = ("gpt2", "llama", "t5", "vit")
# Of each family: the prefix of the stack that is patched.
STACK = {"t5": "encoder."}


def each(families=FAMILIES, quick=QUICK):
    """One test for every family, of which a few are run every time."""
    marked = [f if f in quick else pytest.param(f, marks=pytest.mark.slow) for f in families]
    return pytest.mark.parametrize("family", marked)


class Root(nn.Module):
    """RMSNorm in the type of its input; the families' own go through float32."""

    def __init__(self, theirs):
        super().__init__()
        self.shift = 1.0 if "Gemma" in type(theirs).__name__ else 0.0
        self.weight, self.eps = theirs.weight, getattr(theirs, "variance_epsilon", None) or theirs.eps

    def forward(self, x):
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * (self.shift + self.weight)


def net(family, **values):
    """A tiny model in float64 and its processor."""
    if family == "clip_vision":
        from transformers import CLIPForImageClassification

        whole, processor = testing.tiny("clip")
        whole.config.num_labels = 5
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = CLIPForImageClassification(whole.config)
        made.vision_model.load_state_dict(whole.vision_model.state_dict())
        nn.init.normal_(made.classifier.weight, generator=torch.Generator().manual_seed(1))
        processor = processor.image_processor
    else:
        made, processor = testing.tiny(family, **values)
    made = made.eval().double()
    for path, module in list(made.named_modules()):
        if type(module).__name__.endswith("RMSNorm") or type(module).__name__ == "T5LayerNorm":
            parent, _, name = path.rpartition(".")
            setattr(made.get_submodule(parent), name, Root(module))
    return made, processor


def model(family, **values):
    return act.wrap(*net(family, **values), name=family, certify=False)


def pairs(model, clean=None, corrupt=None, **options):
    """Two pairs: of texts that differ at one word, or of pictures."""
    if model.tokenizer is None:
        a, b = testing.images(2), testing.images(2, seed=3)
        return act.pairs(model, a if clean is None else clean, b if corrupt is None else corrupt, answers=[0, 1], foils=[2, 3], **options)
    clean, corrupt = clean or CLEAN, corrupt or CORRUPT
    if "decoder.embed" in model.sites:
        beside = ["the cat", "the old king"][: len(clean)]
        clean, corrupt = ({"encoder": side, "decoder": beside} for side in (clean, corrupt))
        words = ["Anna", "Tom"][: len(beside)]
    else:
        words = ["Anna", "Tom"][: len(clean)]
    others = ["Tom", "Anna"][: len(words)]
    return act.pairs(model, clean, corrupt, answers=words, foils=others, **options)


def kinds(model, stack=""):
    """What can be patched in a block of this stack."""
    every = [n.removeprefix(f"{stack}blocks.1.") for n in model.sites if n.startswith(f"{stack}blocks.1.")]
    return [n for n in every if n.rpartition(".")[2] not in ("scores", "pattern", "head_out")]
