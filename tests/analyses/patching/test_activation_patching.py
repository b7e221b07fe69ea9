"""activation_patching: held against plain hooks, whole forwards and what must hold for any model."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium import testing
from activarium.edits import Set
from activarium.errors import InputError, MissingSite, UnknownSite
from activarium.metrics import Metric

from . import patched_models as tiny

activation_patching = act.analyses.activation_patching


def filled(grid):
    return np.nan_to_num(grid.values)


def change(grid):
    return grid.diagnostics["clean"] - grid.diagnostics["corrupt"]


# --- against a forward with nothing of ours in it


def test_a_cell_is_what_a_plain_hook_gives():
    hf, tokenizer = tiny.net("gpt2")
    model = act.wrap(hf, tokenizer, certify=False)
    pairs = tiny.pairs(model, tiny.CLEAN[:1], tiny.CORRUPT[:1])
    ids = [tokenizer(t, return_tensors="pt").input_ids for t in (tiny.CLEAN[0], tiny.CORRUPT[0])]
    answer, foil = (tokenizer.convert_tokens_to_ids(w) for w in ("Anna", "Tom"))
    kept = []
    module = hf.transformer.h[1].mlp
    with torch.no_grad():
        handle = module.register_forward_hook(lambda m, a, out: kept.append(out.clone()))
        clean, corrupt = (hf(i).logits[0, -1] for i in ids)
        handle.remove()
        for position in range(4):
            handle = module.register_forward_hook(lambda m, a, out, p=position: out.index_copy(1, torch.tensor([p]), kept[0][:, [p]]))
            patched = hf(ids[1]).logits[0, -1]
            handle.remove()
            expected = float((patched[answer] - patched[foil]) - (corrupt[answer] - corrupt[foil]))
            grid = activation_patching(model, pairs, "blocks.1.mlp.out")
            assert grid.values[0, position] == pytest.approx(expected, abs=1e-12)
    assert grid.diagnostics["clean"] == pytest.approx(float(clean[answer] - clean[foil]), abs=1e-12)


# --- identities


@tiny.each()
def test_identical_inputs_have_no_effect_anywhere(family):
    model = tiny.model(family)
    stack = tiny.STACK.get(family, "")
    side = testing.images(2) if model.tokenizer is None else tiny.CLEAN
    pairs = tiny.pairs(model, side, side)
    for kind in ("resid_pre", "attn.k", "mlp.out"):
        grid, forced = (activation_patching(model, pairs, f"{stack}blocks.*.{kind}", reuse=reuse) for reuse in (True, False))
        assert (filled(grid) == 0).all() and grid.masks["known_zero"].sum() == np.isfinite(grid.values).sum()
        assert np.abs(filled(forced)).max() < 1e-12  # other batches, other rounding


def test_dropout_is_refused():
    model = tiny.model("gpt2")
    pairs = tiny.pairs(model)
    model.torch_module.train()
    with pytest.raises(InputError, match="training mode, where dropout changes"):
        activation_patching(model, pairs, "blocks.*.mlp.out")


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@tiny.each()
def test_the_whole_stream_carries_the_whole_change(family, direction):
    model = tiny.model(family)
    grid = activation_patching(
        model, tiny.pairs(model), f"{tiny.STACK.get(family, '')}blocks.*.resid_pre", positions="all", direction=direction
    )
    sign = 1 if direction == "denoise" else -1
    assert grid.axes == ("layer",) and abs(change(grid)) > 1e-3
    assert np.allclose(grid.values, sign * change(grid), rtol=1e-9, atol=1e-12)


def test_everything_that_writes_patched_together_is_the_whole_change():
    """Patching embeddings and every write jointly is the clean run, though no single one is."""
    model = tiny.model("gpt2")
    pairs = tiny.pairs(model)
    writes = ["embed", *model.sites.select(["blocks.*.attn.out", "blocks.*.mlp.out"])]
    clean = model.run(pairs.clean, writes, metrics=pairs.metric)
    metric = pairs.metric.name
    joint = model.run(pairs.corrupt, edits=[Set(s, clean[s].tensor) for s in writes], metrics=pairs.metric)
    assert torch.allclose(joint.metric[metric], clean.metric[metric], rtol=0, atol=1e-12)
    alone = activation_patching(model, pairs, writes[1:], positions="all")
    assert np.abs(alone.values - change(alone)).min() > 1e-3


@tiny.each([*tiny.FAMILIES, "t5_decoder"], [*tiny.QUICK, "bert"])
def test_known_zeros_are_zero_when_they_are_run(family):
    model = tiny.model(family.removesuffix("_decoder"))
    stack = "decoder." if family == "t5_decoder" else tiny.STACK.get(family, "")
    pairs, found = tiny.pairs(model), 0
    if family == "t5_decoder":  # the first decoder token is the same start token in both
        pairs = act.pairs(
            model,
            {"encoder": ["the cat"], "decoder": ["Anna saw"]},
            {"encoder": ["the cat"], "decoder": ["Tom saw"]},
            answers=[7],
            foils=[9],
        )
    for kind in ("resid_pre", "mlp.post", "attn.q", "attn.out", "resid_post"):
        quick = activation_patching(model, pairs, f"{stack}blocks.*.{kind}")
        forced = activation_patching(model, pairs, f"{stack}blocks.*.{kind}", reuse=False)
        assert np.allclose(filled(quick), filled(forced), rtol=0, atol=1e-9), kind
        assert np.array_equal(np.isnan(quick.values), np.isnan(forced.values))
        zero = quick.masks["known_zero"]
        found += zero.sum()
        assert (quick.values[zero] == 0).all() and np.abs(forced.values[zero]).max(initial=0) < 1e-12, kind
        assert (np.abs(forced.values[-1][~zero[-1]]) > 1e-6).any(), "the mask hides everything"
    # T5's encoder looks both ways and every row of it is read; DINOv2's head reads the mean of all patches.
    assert (found > 0) == (family not in ("t5", "dinov2"))


def test_rows_after_the_metric_and_before_the_difference_are_known_to_be_zero():
    model = tiny.model("gpt2")
    metric = Metric(lambda logits: logits[:, 7] - logits[:, 9], position=2, name="at 2")
    pairs = act.pairs(model, ["the cat sat on"], ["the king sat on"], metric)
    zero = activation_patching(model, pairs, "blocks.*.resid_pre").masks["known_zero"]
    assert zero.tolist() == [[True, False, False, True]] * 3
    # Of the last block, only the row that is read counts.
    assert activation_patching(model, pairs, "blocks.*.mlp.out").masks["known_zero"][2].tolist() == [True, True, False, True]


@pytest.mark.parametrize("method", ["activation_patching", "attribution_patching"])
def test_an_encoder_that_reads_the_same_has_no_effect(method):
    model = tiny.model("t5")
    sides = ({"encoder": ["the cat"], "decoder": [word]} for word in ("Anna saw", "Tom saw"))
    pairs = act.pairs(model, *sides, answers=["Anna"], foils=["Tom"])
    for nodes in ("encoder.blocks.*.mlp.out", "decoder.blocks.*.cross.k"):
        found = getattr(act.analyses, method)(model, pairs, nodes)
        assert found.masks["known_zero"].all() and (found.values == 0).all()
    forced = activation_patching(model, pairs, "decoder.blocks.*.cross.k", reuse=False)
    assert np.abs(forced.values).max() < 1e-12
    assert not getattr(act.analyses, method)(model, pairs, "decoder.blocks.*.mlp.out").masks["known_zero"].all()


# --- nodes, columns, directions


def test_heads_of_keys_are_the_groups_and_move_all_queries_that_share_them():
    model = tiny.model("llama")
    pairs = tiny.pairs(model)
    shapes = {n: activation_patching(model, pairs, f"blocks.*.attn.{n}").values.shape for n in "qkvz"}
    assert shapes == {"q": (2, 7, 4), "k": (2, 7, 2), "v": (2, 7, 2), "z": (2, 7, 4)}
    # By hand: one group's values replaced, so that both of its query heads see them.
    site = "blocks.1.attn.v"
    base, source = (model.run(side, site, metrics=pairs.metric) for side in (pairs.corrupt, pairs.clean))
    values = base[site].tensor.clone()
    values[2, 1] = source[site].tensor[2, 1]  # row 2 of the first pair, whose BOS is row 0
    moved = model.run(pairs.corrupt, edits=[Set(site, values)], metrics=pairs.metric)
    expected = (moved.metric["logit_difference"] - base.metric["logit_difference"])[0]
    assert activation_patching(model, pairs, site).per_example[0, 0, 2, 1] == pytest.approx(float(expected), abs=1e-12)


def test_units_are_neurons():
    model = tiny.model("gpt2")
    pairs = tiny.pairs(model)
    grid = activation_patching(model, pairs, "blocks.*.mlp.post", units=[3, 40])
    assert grid.axes == ("layer", "position", "d_mlp") and list(grid.labels["d_mlp"]) == ["3", "40"]
    every = activation_patching(model, pairs, "blocks.1.mlp.post", units="all")
    assert np.allclose(every.values[..., [3, 40]], grid.values[[1]], rtol=0, atol=1e-12, equal_nan=True)


def test_positions_all_each_places_and_numbers():
    model = tiny.model("gpt2")
    pairs = tiny.pairs(model, places={"name": [0, 2], "end": [-1, -1]})
    each = activation_patching(model, pairs, "blocks.*.mlp.out")
    places = activation_patching(model, pairs, "blocks.*.mlp.out", positions="places")
    numbers = activation_patching(model, pairs, "blocks.*.mlp.out", positions=[0, -1, 5])
    assert places.labels["position"] == ("name", "end") and numbers.labels["position"] == ("0", "-1", "5")
    assert np.allclose(places.per_example[0], each.per_example[0][:, [0, 3]], rtol=0, atol=1e-12)
    assert np.allclose(places.per_example[1], each.per_example[1][:, [2, 5]], rtol=0, atol=1e-12)
    assert np.allclose(numbers.values[:, 1], places.values[:, 1])
    # A position that the first pair lacks is the second pair's alone.
    assert np.isnan(numbers.per_example[0, :, 2]).all() and np.allclose(numbers.values[:, 2], each.per_example[1][:, 5])
    assert activation_patching(model, pairs, "blocks.*.mlp.out", positions="all").axes == ("layer",)


def test_one_differing_row_denoised_and_noised_between_the_same_two_runs():
    """At the stream before block 0 one row differs: patching it either way is the whole change, with opposite signs."""
    model = tiny.model("gpt2")
    pairs = tiny.pairs(model)
    there, back = (activation_patching(model, pairs, "blocks.0.resid_pre", direction=d) for d in ("denoise", "noise"))
    assert there.per_example[0, 0, 0] == pytest.approx(-back.per_example[0, 0, 0], abs=1e-12)
    assert there.diagnostics["direction"] == "denoise" and "noise" in back.title
    assert np.allclose([there.values.sum(), back.values.sum()], [change(there), -change(back)])


def test_shares_of_the_change():
    model = tiny.model("gpt2")
    pairs = tiny.pairs(model)
    for direction, whole in (("denoise", 1), ("noise", -1)):
        grid = activation_patching(model, pairs, "blocks.*.resid_pre", positions="all", normalise=True, direction=direction)
        assert grid.unit == "share of M+ - M-" and np.allclose(grid.values, whole)


def test_only_the_cells_that_were_asked_for():
    model = tiny.model("gpt2")
    pairs = tiny.pairs(model)
    whole = activation_patching(model, pairs, "blocks.*.attn.z")
    cells = np.zeros(whole.values.shape, bool)
    cells[1, 5, 2] = cells[2, 3, 0] = True
    some = activation_patching(model, pairs, "blocks.*.attn.z", cells=cells)
    known = some.masks["known_zero"]
    assert np.allclose(some.values[cells], whole.values[cells], rtol=0, atol=1e-12)
    assert np.isnan(some.values[~cells & ~known]).all() and some.masks["not_run"][0, 4, 0]
    with pytest.raises(InputError, match=r"cells= is bool of shape \(2,\); wanted booleans of shape \(3, 6, 4\)"):
        activation_patching(model, pairs, "blocks.*.attn.z", cells=np.ones(2, bool))


# --- batches, padding, types


@pytest.mark.parametrize("family", ["gpt2", "bert", "t5"])
def test_ragged_pairs_are_the_pairs_one_by_one(family):
    model = tiny.model(family)
    stack, pairs = tiny.STACK.get(family, ""), tiny.pairs(model)
    assert len(set(pairs.clean.lengths)) == 2
    both = activation_patching(model, pairs, f"{stack}blocks.*.attn.z")
    for i in range(2):
        alone = activation_patching(model, pairs.select([i]), f"{stack}blocks.*.attn.z")
        rows = alone.values.shape[1]
        assert np.allclose(both.per_example[i][:, :rows], alone.values, rtol=0, atol=1e-12)
        assert np.isnan(both.per_example[i][:, rows:]).all()
    assert both.masks.get("no_row") is None


def test_padding_side_does_not_matter():
    model = tiny.model("gpt2")
    ids = [[model.tokenizer(t).input_ids for t in side] for side in (tiny.CLEAN, tiny.CORRUPT)]
    grids = []
    for left in (True, False):
        sides = []
        for side in ids:
            width = max(map(len, side))
            pad = [[0] * (width - len(t)) for t in side]
            rows = [p + t if left else t + p for p, t in zip(pad, side, strict=True)]
            mask = [[0] * len(p) + [1] * len(t) if left else [1] * len(t) + [0] * len(p) for p, t in zip(pad, side, strict=True)]
            sides.append({"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)})
        grids.append(
            activation_patching(model, act.pairs(model, *sides, answers=["Anna", "Tom"], foils=["Tom", "Anna"]), "blocks.*.mlp.out")
        )
    assert np.array_equal(grids[0].per_example, grids[1].per_example, equal_nan=True)


def test_patches_of_an_image_may_be_shuffled_with_their_positions():
    """A vision transformer knows a patch's place by its position embedding alone: move both, and the effects move with them."""
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    found, linear = [], []
    for moved in (False, True):
        hf, processor = tiny.net("vit")
        pixels = [torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (1, 2)]
        if moved:
            with torch.no_grad():
                at = hf.vit.embeddings.position_embeddings
                at[:, 1:] = at[:, 1:][:, order].clone()
            patches = [p.unfold(2, 8, 8).unfold(3, 8, 8).reshape(1, 3, 16, 8, 8)[:, :, order] for p in pixels]
            pixels = [p.reshape(1, 3, 4, 4, 8, 8).permute(0, 1, 2, 4, 3, 5).reshape(1, 3, 32, 32) for p in patches]
        model = act.wrap(hf, processor, certify=False)
        pairs = act.pairs(model, *({"pixel_values": p} for p in pixels), answers=[0], foils=[1])
        found.append(activation_patching(model, pairs, "blocks.*.resid_pre").values)
        linear.append(act.analyses.attribution_patching(model, pairs, "blocks.*.attn.v").values)
        last = activation_patching(model, pairs, "blocks.*.mlp.out")
        assert (last.values[-1, 1:] == 0).all() and last.masks["known_zero"][-1, 1:].all() and last.values[-1, 0] != 0
    assert np.allclose(found[0][:, 1:][:, order], found[1][:, 1:], rtol=0, atol=1e-10)
    assert np.allclose(found[0][:, 0], found[1][:, 0], rtol=0, atol=1e-10)
    assert np.allclose(linear[0][:, 1:][:, order], linear[1][:, 1:], rtol=0, atol=1e-10) and np.abs(linear[0]).max() > 1e-4


# --- bad input


@pytest.mark.parametrize(
    ("nodes", "options", "error", "words"),
    [
        ("blocks.*.mlp.oot", {}, UnknownSite, "mlp.out"),
        ("blocks.0.attn.head_out", {}, InputError, "no node of one row. Patch z instead"),
        ("blocks.0.attn.pattern", {}, InputError, "Patch q, k or z instead"),
        ("logits", {}, InputError, "no node of one row. Choose sites with rows"),
        ("module:transformer.h.0", {}, InputError, "is no certified site"),
        (["blocks.0.attn.z", "blocks.0.mlp.out"], {}, InputError, "4 heads per row.*1 node per row.*do not fit into one grid"),
        ("blocks.*.attn.z", {"units": "all"}, InputError, "its nodes are heads; leave out units="),
        ("blocks.*.mlp.post", {"units": [48]}, InputError, "has units 0 to 47"),
        ("blocks.*.mlp.post", {"units": "most"}, InputError, "give 'all' or numbers"),
        ("blocks.*.mlp.out", {"direction": "up"}, InputError, "'denoise' patches clean values into the corrupted run"),
        ("blocks.*.mlp.out", {"positions": "places"}, InputError, "These pairs name no places"),
        ("blocks.*.mlp.out", {"positions": "some"}, InputError, "give 'each', 'all', 'places' or position numbers"),
        ("blocks.*.mlp.out", {"positions": [9]}, InputError, r"No pair has any of the positions \[9\]"),
    ],
)
def test_what_is_no_node_is_refused_with_the_next_step(nodes, options, error, words):
    model = tiny.model("gpt2")
    with pytest.raises(error, match=words):
        activation_patching(model, tiny.pairs(model), nodes, **options)


def test_experts_are_refused_and_their_output_is_not():
    model = act.wrap(*testing.tiny("mixtral"), certify=False)  # its experts multiply in float32 at most
    grid = activation_patching(model, tiny.pairs(model), "blocks.*.mlp.out")
    assert np.isfinite(grid.values).all()
    with pytest.raises(MissingSite, match=r"mlp\.post"):
        activation_patching(model, tiny.pairs(model), "blocks.*.mlp.post")


def test_equal_metrics_have_no_shares():
    model = tiny.model("gpt2")
    pairs = tiny.pairs(model, tiny.CLEAN, tiny.CLEAN)
    assert (activation_patching(model, pairs, "blocks.*.mlp.out").values == 0).all()
    with pytest.raises(InputError, match="no difference to give shares of"):
        activation_patching(model, pairs, "blocks.*.mlp.out", normalise=True)


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda logits: logits[:, -3:, 5].sum(1), r"If it reads several positions, declare them: Metric\(read, position="),
        (lambda logits: logits, r"gave \(2, 100\) for 2 examples; wanted one number for each"),
        (lambda logits: logits.sum(), r"gave \(\) for 2 examples"),
        (lambda logits: 1.0, r"gave float for 2 examples"),
    ],
)
def test_a_metric_is_one_number_per_example_of_declared_positions(read, words):
    model = tiny.model("gpt2")
    pairs = act.pairs(model, tiny.CLEAN, tiny.CORRUPT, Metric(read, name="own"))
    with pytest.raises(InputError, match=words):
        activation_patching(model, pairs, "blocks.*.mlp.out")


def test_the_model_and_the_pairs_are_left_as_they_were():
    model = tiny.model("gpt2")
    pairs = tiny.pairs(model)
    before = pairs.hash, model.identity["weight_hash"]
    activation_patching(model, pairs, "blocks.*.attn.q")
    assert (pairs.hash, model.identity["weight_hash"]) == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.torch_module.modules())
    assert all(p.grad is None for p in model.torch_module.parameters())
