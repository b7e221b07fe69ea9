"""Thresholds that learn: penalties by hand, slopes of sae-lens, a target that is reached, dead features that are pulled up."""

import pytest
import torch

import activarium as act
from activarium.dictionaries import Recipe, train
from activarium.dictionaries.gates import jump
from activarium.dictionaries.learner import Learner
from activarium.dictionaries.rows import RowSource
from activarium.errors import InputError

SITE = "blocks.0.resid_post"
NONE = torch.zeros(0, dtype=torch.int64)
WAYS = {
    "step": {},
    "tanh": {"penalty": "tanh"},
    "target": {"target": 6.0},
    "both": {"both": True},
    "tanh, both, lift": {"penalty": "tanh", "both": True, "lift": 0.02},
}


def held(**values):
    rows = torch.randn(200, 8, generator=torch.Generator().manual_seed(4))
    made = Learner(Recipe(24, "jumprelu", **values), RowSource(act.testing.recording_of({SITE: rows})[SITE]).statistics(0), False, 100)
    with torch.no_grad():
        made.sae.threshold.copy_(0.3 + torch.rand(24, generator=torch.Generator().manual_seed(5)))
        made.sae.b_enc.copy_(torch.randn(24, generator=torch.Generator().manual_seed(6)) / 4)
        made.sae.double()
    return made, (made.scale * rows).double()


def test_penalties_by_hand():
    made, x = held(sparsity=0.4)
    pre = (x - made.sae.b_dec) @ made.sae.W_enc + made.sae.b_enc
    codes = pre * (pre > made.sae.threshold)
    error = (x - made.sae.b_dec - codes @ made.sae.W_dec).square().sum(1).mean()
    count = (codes > 0).sum(1).double()
    tanh = torch.tanh(4 * codes * made.sae.W_dec.norm(dim=1)).sum(1).mean()
    wanted = {"step": count.mean(), "tanh": tanh, "target": 2 / 6 * (count - 6).square().mean()}
    for way, amount in wanted.items():
        step = jump(Recipe(24, "jumprelu", sparsity=0.4, **WAYS[way]), made.sae, x, x, NONE)
        assert float(step.loss.detach()) == pytest.approx(float((error + 0.4 * amount).detach())), way
        assert step.active == int(count.sum())
    dead = torch.tensor([3, 7])
    lacking = ((made.sae.threshold - pre).relu() * made.sae.W_dec.norm(dim=1))[:, dead].sum(1).mean()
    step = jump(Recipe(24, "jumprelu", sparsity=0.4, lift=0.02), made.sae, x, x, dead)
    assert float(step.loss.detach()) == pytest.approx(float((error + 0.4 * count.mean() + 0.02 * lacking).detach()))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_losses_and_slopes_are_those_of_sae_lens(way):
    pytest.importorskip("sae_lens", reason="the extra [lens] is not installed")
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    values = WAYS[way]
    made, x = held(sparsity=0.4, bandwidth=0.2, **values)
    mode = "quadratic" if "target" in values else values.get("penalty", "step")
    more = {"target_l0": values.get("target"), "pre_act_loss_coefficient": values.get("lift"), "jumprelu_ste_to_input": "both" in values}
    config = JumpReLUTrainingSAEConfig(d_in=8, d_sae=24, dtype="float64", jumprelu_bandwidth=0.2, jumprelu_sparsity_loss_mode=mode, **more)
    twin = JumpReLUTrainingSAE(config)
    twin.load_state_dict({("W_enc" if n == "encoder" else n): (p.T if n == "encoder" else p) for n, p in made.sae.named_parameters()})
    dead = torch.tensor([3, 7, 11])
    with torch.no_grad():  # theirs keeps thresholds in float32
        made.sae.threshold.copy_(twin.threshold.double())
    asked = TrainStepInput(
        sae_in=x,
        coefficients={"l0": 0.4},
        dead_neuron_mask=torch.zeros(24, dtype=torch.bool).index_fill(0, dead, True),
        n_training_steps=0,
        is_logging_step=False,
    )
    theirs = twin.training_forward_pass(asked)
    theirs.loss.backward()
    ours = jump(made.recipe, made.sae, x, x, dead)
    ours.loss.backward()
    assert float(ours.loss.detach()) == pytest.approx(float(theirs.loss.detach()), rel=1e-10)
    for name, p in twin.named_parameters():
        grad = made.sae.encoder.grad.T if name == "W_enc" else dict(made.sae.named_parameters())[name].grad
        assert torch.allclose(grad, p.grad.double(), atol=1e-5 if name == "threshold" else 1e-10), name
        assert bool(p.grad.any()), name


@pytest.mark.slow
def test_codes_of_a_row_come_to_the_target():
    rows = act.testing.planted_rows(20_000, width=32, atoms=48, active=4)[1]
    recipes = [Recipe(48, "jumprelu", target=t, sparsity=2.0, bandwidth=0.5, learning_rate=1e-2) for t in (3.0, 8.0)]
    made = train(act.testing.recording_of({SITE: rows}), SITE, recipes, batch=512, steps=500, progress=False)
    for recipe, one in zip(recipes, made, strict=True):
        assert float((one.sae.encode(rows[:4000]) > 0).sum(1).float().mean()) == pytest.approx(recipe.target, rel=0.2)


def test_lift_brings_dead_features_back():
    rows = act.testing.planted_rows(6000, width=16, atoms=24, active=2)[1]
    source = RowSource(act.testing.recording_of({SITE: rows})[SITE])
    ends = []
    for lift in (0.0, 0.02):
        made = Learner(Recipe(24, "jumprelu", lift=lift, dead_after=1000, learning_rate=3e-3), source.statistics(0), False, 1000)
        with torch.no_grad():
            made.sae.b_enc[:12] = -30.0
        for (x, y), _ in zip(source.batches(250, 0), range(120), strict=False):
            made.learn(x, y)
        ends.append(float(made.sae.b_enc.detach()[:12].mean()))
    assert ends[0] == pytest.approx(-30.0, abs=1e-3)
    assert ends[1] > -29.9


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "topk", "k": 3, "target": 3.0}, "target= is for jumprelu; this is topk"),
        ({"kind": "gated", "lift": 0.1}, "lift= is for jumprelu; this is gated"),
        ({"penalty": "l2"}, "no penalty is called 'l2'"),
        ({"target": 99.0}, "target=99 codes of 24 features"),
        ({"target": 3.0, "penalty": "tanh"}, "and no other penalty"),
    ],
)
def test_recipes_that_make_no_sense(values, words):
    with pytest.raises(InputError, match=words):
        Recipe(24, **({"kind": "jumprelu"} | values))
