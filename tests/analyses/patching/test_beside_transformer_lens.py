"""The same grids as TransformerLens' own patching loop, cell by cell, on the same weights."""

import pytest
import torch

import activarium as act
from activarium import testing

from ...capture.lens_models import hooked

lens = pytest.importorskip("transformer_lens", reason="transformer-lens is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:transformer_lens"),
]
LOOPS = {
    "blocks.*.resid_pre": "get_act_patch_resid_pre",
    "blocks.*.attn.out": "get_act_patch_attn_out",
    "blocks.*.mlp.out": "get_act_patch_mlp_out",
    "blocks.*.attn.z": "get_act_patch_attn_head_out_by_pos",
    "blocks.*.attn.v": "get_act_patch_attn_head_v_by_pos",
    "blocks.*.attn.q": "get_act_patch_attn_head_q_by_pos",
}
CLEAN = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16], [20, 21, 22, 23, 24, 25]])
CORRUPT = torch.tensor([[5, 6, 7, 30, 9, 10], [11, 12, 40, 14, 15, 16], [20, 21, 22, 23, 60, 25]])
ANSWERS, FOILS = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])


@pytest.fixture(scope="module")
def twins():
    net, tokenizer = testing.tiny("gpt2")
    return act.wrap(net, tokenizer, certify=False), hooked("gpt2")[0]


@pytest.mark.parametrize("nodes", LOOPS)
def test_the_grids_agree(twins, nodes):
    from transformer_lens import patching

    model, theirs = twins
    pairs = act.pairs(model, CLEAN, CORRUPT, act.metrics.logit_difference(ANSWERS, FOILS))

    def metric(logits):
        rows = torch.arange(3)
        return (logits[rows, -1, ANSWERS] - logits[rows, -1, FOILS]).mean()

    with torch.no_grad():
        base = metric(theirs(CORRUPT))
        _, cache = theirs.run_with_cache(CLEAN)
        wanted = getattr(patching, LOOPS[nodes])(theirs, CORRUPT, cache, metric) - base
    found = act.analyses.activation_patching(model, pairs, nodes).values
    if found.ndim == 3:  # theirs are `layer position head` as well
        assert wanted.shape == found.shape
    assert abs(found - wanted.double().numpy()).max() < 1e-5
