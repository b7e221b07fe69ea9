"""A dictionary in the place of a site: bit for bit where it must be, gradients through codes, the same rows for every edit."""

import pytest
import torch

import activarium as act
from activarium.analyses.features.splicing import Splice, splice_of, where_not
from activarium.dictionaries import SAE, Design, Origin, controls
from activarium.edits import Where
from activarium.errors import InputError, OtherModel

DATA = {"gpt2": act.testing.texts, "llama": act.testing.texts, "vit": act.testing.images}
SITE = "blocks.0.resid_post"


@pytest.fixture(scope="module", params=DATA)
def loaded(request):
    model, inputs = act.wrap(*act.testing.tiny(request.param), certify=False), DATA[request.param]()
    return model, inputs, model.run(inputs, read=[SITE, "blocks.1.mlp.in", "blocks.1.mlp.out", "blocks.1.attn.z"])


def weighted(design, origin=None, seed=1):
    """A dictionary in which no bias is zero."""
    generator = torch.Generator().manual_seed(seed)
    made = SAE(design, origin, seed=seed)
    drawn = {name: torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5 for name, p in made.named_parameters()}
    return SAE.of_weights(design, drawn, origin)


def dictionary(recording, site=SITE, **options):
    width = recording[site].tensor[0].numel()
    return weighted(Design(width, 3 * width, **options), Origin(site=site))


def test_the_identity_leaves_every_logit_bit_for_bit(loaded):
    model, inputs, recording = loaded
    same = controls.identity(recording[SITE].shape[1])
    for exclude in ((), ("bos", "cls")):
        edits = splice_of(same, model, site=SITE, exclude=exclude).reconstruction()
        assert torch.equal(model.run(inputs, read="logits", edits=edits).logits.tensor, model.run(inputs, read="logits").logits.tensor)


def test_a_kept_error_leaves_every_logit_whatever_the_dictionary(loaded):
    model, inputs, recording = loaded
    clean = model.run(inputs, read="logits").logits.tensor
    splice = splice_of(dictionary(recording), model)
    for edits in (splice.with_error(), splice.with_error(lambda codes: codes)):
        assert torch.equal(model.run(inputs, read="logits", edits=edits).logits.tensor, clean)
    assert not torch.allclose(model.run(inputs, read="logits", edits=splice.reconstruction()).logits.tensor, clean, atol=1e-2)


def test_gradients_reach_the_codes_and_are_those_of_the_site_along_the_directions(loaded):
    model, inputs, recording = loaded
    sae, seen = dictionary(recording), []

    def watched(codes):
        seen.append(codes)
        return codes

    metric = act.metrics.Metric(lambda logits: logits[:, 3] - logits[:, 1], name="m")
    edits = splice_of(sae, model, exclude=()).with_error(watched)
    run = model.run(inputs, read=SITE, edits=edits, metrics=metric, grad=True)
    found = torch.autograd.grad(run.metric["m"].sum(), seen[0])[0]
    plain = model.run(inputs, read=SITE, metrics=metric, grad=True)
    wanted = plain.backward()[SITE].tensor @ sae.directions.T
    assert found.abs().max() > 1e-4
    assert torch.allclose(found, wanted, atol=1e-5 * float(wanted.abs().max()))


def test_only_the_rows_that_were_asked_for_hold_the_reconstruction(loaded):
    model, inputs, recording = loaded
    sae = dictionary(recording)
    kind = recording[SITE].index["kind"][0]
    splice = splice_of(sae, model, exclude=(kind,))
    touched = torch.as_tensor(recording[SITE].index["kind"] != kind)
    x = recording[SITE].tensor
    mean = x.mean(0) + 1
    wanted = {"reconstruction": sae(x), "zero": torch.zeros_like(x), "mean": mean.expand_as(x)}
    for name, values in wanted.items():
        edits = splice.mean(mean) if name == "mean" else getattr(splice, name)()
        found = model.run(inputs, read=SITE, edits=edits)[SITE].tensor
        assert torch.equal(found[~touched], x[~touched])
        assert torch.allclose(found[touched], values[touched], atol=1e-5)


def test_changed_codes_write_just_their_difference(loaded):
    model, inputs, recording = loaded
    sae, x = dictionary(recording), recording[SITE].tensor
    splice = splice_of(sae, model, exclude=())

    def without_first(codes):
        return codes * (torch.arange(codes.shape[1]) != 0)

    lost = sae.encode(x)[:, :1] * sae.directions[0]
    assert lost.norm() > 0.1
    for edits, before in ((splice.with_error(without_first), x), (splice.reconstruction(without_first), sae(x))):
        assert torch.allclose(model.run(inputs, read=SITE, edits=edits)[SITE].tensor, before - lost, atol=1e-5)


def test_a_transcoder_with_a_skip_writes_what_forward_makes_of_what_it_reads(loaded):
    model, inputs, recording = loaded
    x, y = recording["blocks.1.mlp.in"].tensor, recording["blocks.1.mlp.out"].tensor
    origin = Origin(site="blocks.1.mlp.in", target="blocks.1.mlp.out", exclude=("bos", "cls"))
    coder = weighted(Design(x.shape[1], 40, d_out=y.shape[1], transcoder=True, skip=True, subtracts_bias=False), origin)
    splice = splice_of(coder, model)
    touched = ~torch.as_tensor([k in ("bos", "cls") for k in recording["blocks.1.mlp.in"].index["kind"]])
    read = ["blocks.1.mlp.in", "blocks.1.mlp.out"]
    found = model.run(inputs, read=read, edits=splice.reconstruction())
    assert torch.equal(found[read[0]].tensor, x)
    assert torch.allclose(found[read[1]].tensor[touched], coder(x)[touched], atol=1e-5)
    assert torch.equal(found[read[1]].tensor[~touched], y[~touched])
    assert torch.equal(model.run(inputs, read=read[1], edits=splice.with_error())[read[1]].tensor, y)
    zero = model.run(inputs, read=read, edits=splice.zero())
    assert torch.equal(zero[read[0]].tensor, x)
    assert not zero[read[1]].tensor[touched].any()


def test_heads_are_flattened_and_put_back(loaded):
    model, inputs, recording = loaded
    z = recording["blocks.1.attn.z"].tensor
    sae = dictionary(recording, "blocks.1.attn.z")
    splice = splice_of(sae, model)
    found = model.run(inputs, read="blocks.1.attn.z", edits=splice.reconstruction())["blocks.1.attn.z"].tensor
    assert torch.allclose(found, sae(z.flatten(1)).reshape(z.shape), atol=1e-5)
    mean = torch.arange(z[0].numel(), dtype=torch.float32)
    found = model.run(inputs, read="blocks.1.attn.z", edits=splice.mean(mean))["blocks.1.attn.z"].tensor
    assert torch.equal(found[2].flatten(), mean)


def test_refusals(loaded):
    model, inputs, recording = loaded
    sae = dictionary(recording)
    with pytest.raises(InputError, match="its origin has no site, or no target. Give site="):
        splice_of(weighted(Design(4, 8)), model)
    sae.origin = Origin(site=SITE, weight_hash="f00d" * 8, model="another")
    with pytest.raises(OtherModel, match=f"trained on another with weights f00df00df00d…; {model.name} has"):
        splice_of(sae, model)
    x = recording[SITE].shape[1]
    origin = Origin(site="blocks.1.mlp.out", target=SITE)
    backwards = weighted(Design(x, 8, d_out=x, transcoder=True, subtracts_bias=False), origin)
    with pytest.raises(InputError, match="blocks.0.resid_post is computed before blocks.1.mlp.out"):
        model.run(inputs, read="logits", edits=splice_of(backwards, model).reconstruction())
    scaled = weighted(Design(x, 8, scaling="layer_norm"), Origin(site=SITE))
    with pytest.raises(InputError, match="scales each row before it codes it"):
        model.run(inputs, read="logits", edits=splice_of(scaled, model).reconstruction(lambda codes: codes))
    model.run(inputs, read="logits", edits=splice_of(scaled, model).reconstruction())


def test_rows_that_are_left_out_are_said_as_those_that_are_not():
    assert where_not(()) == Where()
    assert "bos" not in where_not(("bos",)).kinds
    assert {"token", "patch", "cls"} <= set(where_not(("bos",)).kinds)
    assert Splice(weighted(Design(4, 8)), "a", "a").where == Where()
