"""Anything that is a dictionary becomes one of ours: sae-lens' objects equal to themselves in float64, nearly in float32, flips counted."""

import pytest
import torch

from activarium.dictionaries import SAE, Design, Origin, as_dictionary, save
from activarium.errors import InputError

WIDTH, FEATURES, OUT = 12, 40, 7


def rows(dtype=torch.float64, count=200):
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(dtype)


KINDS = [
    ("StandardSAE", {}),
    ("StandardSAE", {"apply_b_dec_to_input": False, "normalize_activations": "layer_norm"}),
    ("StandardSAE", {"normalize_activations": "constant_norm_rescale"}),
    ("GatedSAE", {}),
    ("GatedSAE", {"normalize_activations": "layer_norm"}),
    ("JumpReLUSAE", {}),
    ("TopKSAE", {"k": 5}),
    ("TopKSAE", {"k": 5, "rescale_acts_by_decoder_norm": True}),
    ("TopKSAE", {"k": 5, "normalize_activations": "layer_norm"}),
    ("AbsTopKSAE", {"k": 5}),
    ("AbsTopKSAE", {"k": 5, "rescale_acts_by_decoder_norm": True}),
    ("MatchingPursuitSAE", {"max_iterations": 5}),
    ("Transcoder", {"d_out": OUT}),
    ("SkipTranscoder", {"d_out": OUT}),
    ("JumpReLUTranscoder", {"d_out": OUT}),
    ("JumpReLUSkipTranscoder", {"d_out": OUT}),
]
NAMES = [f"{c} {' '.join(map(str, v.values()))}".strip() for c, v in KINDS]


def theirs(called, values, dtype="float64"):
    sae_lens = pytest.importorskip("sae_lens", reason="the extra [lens] is not installed")
    from sae_lens.saes import transcoder
    from sae_lens.saes.sae import SAEMetadata

    room = sae_lens if hasattr(sae_lens, called) else transcoder
    about = SAEMetadata(hook_name="blocks.1.hook_resid_post", model_name="tiny", prepend_bos=True)
    base = {"apply_b_dec_to_input": False} if "d_out" in values else {}
    made = getattr(room, called)(getattr(room, f"{called}Config")(d_in=WIDTH, d_sae=FEATURES, dtype=dtype, metadata=about, **base | values))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, p in made.named_parameters():
            drawn = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.copy_(drawn.abs() / 3 if name == "threshold" else torch.nn.functional.normalize(drawn, dim=-1) if p.ndim == 2 else drawn / 3)
    return made


def dense(codes):
    return codes.to_dense() if codes.is_sparse else codes


@pytest.mark.slow
@pytest.mark.parametrize(("called", "values"), KINDS, ids=NAMES)
def test_objects_of_sae_lens_in_memory_are_equal_to_themselves(called, values):
    made, x = theirs(called, values), rows()
    ours = as_dictionary(made)
    codes = dense(made.encode(x))
    assert torch.allclose(ours.encode(x), codes, atol=1e-12)
    assert torch.equal(ours.encode(x) != 0, codes != 0)
    # What it makes of rows, not decode(encode(…)): a skip and the undoing of a scaling are in there alone.
    assert torch.allclose(ours(x), made(x), atol=1e-12)
    assert (ours.d_in, ours.d_out, ours.width, ours.transcoder) == (WIDTH, values.get("d_out", WIDTH), FEATURES, "d_out" in values)
    assert (ours.origin.site, ours.origin.model, ours.dtype) == ("blocks.1.resid_post", "tiny", torch.float64)
    if ours.transcoder:
        y = torch.ones(len(x), OUT, dtype=torch.float64)
        assert torch.allclose(ours.error(x, y), y - made(x), atol=1e-12)
    before = made.W_dec.detach().clone()
    with torch.no_grad():
        made.W_dec.mul_(2)
    assert torch.equal(ours.directions, before)  # a copy: later changes of theirs are not ours


@pytest.mark.slow
@pytest.mark.parametrize(("called", "values"), KINDS, ids=NAMES)
def test_in_float32_codes_differ_by_rounding_and_flips_are_few(called, values, record_property):
    """Codes of the same rows in two precisions: equal to 1e-5 where both are active; a feature flips only next to its threshold or a tie."""
    single, double = as_dictionary(theirs(called, values, "float32")), as_dictionary(theirs(called, values))
    x = rows(count=2000)
    twin = dense(theirs(called, values, "float32").encode(x.float()))
    ours, exact = single.encode(x.float()), double.encode(x)
    for other in (twin, exact):
        flips = (ours != 0) != (other != 0)
        record_property("flips", int(flips.sum()))
        assert int(flips.sum()) <= 1e-5 * ours.numel(), int(flips.sum())
        alike = ~flips.any(1)
        assert torch.allclose(ours[alike].double(), other[alike].double(), atol=1e-5)


@pytest.mark.slow
def test_rows_that_were_rescaled_outside_are_taken_as_they_come():
    """In memory sae-lens leaves `expected_average_only_in` to whoever feeds it: the object's numbers are those of its weights."""
    made, x = theirs("StandardSAE", {"normalize_activations": "expected_average_only_in"}), rows()
    assert torch.allclose(as_dictionary(made)(x), made(x), atol=1e-12)


@pytest.mark.slow
def test_training_objects_and_temporal_ones_are_refused_with_words():
    sae_lens = pytest.importorskip("sae_lens", reason="the extra [lens] is not installed")
    config = sae_lens.TemporalSAEConfig(d_in=WIDTH, d_sae=512, n_heads=2, bottleneck_factor=64, kval_topk=3)
    with pytest.raises(
        InputError, match="TemporalSAE is a temporal dictionary of sae-lens: its code of a token depends on all tokens before it"
    ):
        as_dictionary(sae_lens.TemporalSAE(config))


def test_ours_come_back_as_they_are_and_folders_are_read(tmp_path):
    sae = SAE(Design(WIDTH, FEATURES, "topk", k=3), Origin("blocks.2.mlp.out"))
    assert as_dictionary(sae) is sae
    folder = save(sae, tmp_path / "sae")
    for place in (folder, str(folder)):
        found = as_dictionary(place)
        assert torch.equal(found(rows(torch.float32)), sae(rows(torch.float32)))
        assert found.origin.site == "blocks.2.mlp.out"


@pytest.mark.parametrize(
    "thing", [None, 7, torch.zeros(3, 3), torch.nn.Linear(3, 3), {"W_dec": torch.zeros(3, 3)}], ids=lambda t: type(t).__name__
)
def test_other_things_are_refused(thing):
    with pytest.raises(InputError, match=f"A {type(thing).__name__} is no dictionary known here; wanted one of act.dictionaries"):
        as_dictionary(thing)
