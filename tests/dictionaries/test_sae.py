"""Every kind of dictionary: closed forms by hand, the numbers of sae-lens, ties, folding, sparse codes, refusals."""

import pytest
import torch

from activarium.dictionaries import SAE, Codes, Design, Origin
from activarium.dictionaries.sae import top_mask, top_places
from activarium.errors import InputError

WIDTH, FEATURES, OUT = 6, 20, 4


def drawn(design, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(p.shape, generator=generator, dtype=dtype).abs() / 3
        if name == "threshold"
        else torch.randn(p.shape, generator=generator, dtype=dtype)
        for name, p in SAE(design).named_parameters()
    }
    return SAE.of_weights(design, weights)


def rows(count=40, width=WIDTH, dtype=torch.float64):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(9), dtype=dtype)


PLAIN = [{"kind": "standard"}, {"kind": "gated"}, {"kind": "jumprelu"}, {"kind": "topk", "k": 3}, {"kind": "abstopk", "k": 3}]
PLAIN += [{"kind": "absjump"}]
DESIGNS = [Design(WIDTH, FEATURES, subtracts_bias=b, **p) for p in PLAIN for b in (True, False)]
DESIGNS += [Design(WIDTH, FEATURES, kind=k, k=3, ranks_by_norm=True) for k in ("topk", "abstopk")]
DESIGNS += [Design(WIDTH, FEATURES, scaling=s) for s in ("layer_norm", "constant_norm_rescale")]
TRANSCODERS = [Design(WIDTH, FEATURES, kind=k, d_out=OUT, transcoder=True, subtracts_bias=False) for k in ("standard", "jumprelu")]
TRANSCODERS += [Design(WIDTH, FEATURES, d_out=OUT, transcoder=True, skip=True, subtracts_bias=False)]


def name(design):
    words = [
        design.kind,
        "β" if design.subtracts_bias else "",
        "norm" if design.ranks_by_norm else "",
        design.scaling,
        "skip" if design.skip else "",
    ]
    return " ".join(w for w in words if w and w != "none")


@pytest.mark.parametrize("design", DESIGNS[:12], ids=name)
def test_codes_are_the_closed_forms(design):
    sae, x = drawn(design), rows()
    seen = x - sae.b_dec if design.subtracts_bias else x
    if design.kind == "gated":
        raw = seen @ sae.W_enc
        wanted = torch.where(raw + sae.b_gate > 0, torch.relu(sae.r_mag.exp() * raw + sae.b_mag), 0)
    else:
        pre = seen @ sae.W_enc + sae.b_enc
        wanted = torch.zeros_like(pre)
        for i, row in enumerate(pre.tolist()):
            order = sorted(range(FEATURES), key=lambda f: -(abs(row[f]) if design.kind == "abstopk" else row[f]))
            for f in order[: design.k] if design.k else range(FEATURES):
                bar = float(sae.threshold[f]) if "jump" in design.kind else 0.0
                size = abs(row[f]) if design.kind.startswith("abs") else row[f]
                wanted[i, f] = row[f] if size > max(bar, 0) else 0
    assert torch.allclose(sae.encode(x), wanted, atol=1e-12)
    assert torch.allclose(sae(x), wanted @ sae.W_dec + sae.b_dec, atol=1e-12)


@pytest.mark.parametrize("design", [*(d for d in DESIGNS if d.kind != "absjump"), *TRANSCODERS], ids=name)
@pytest.mark.slow
def test_numbers_are_those_of_sae_lens(design):
    theirs = pytest.importorskip("sae_lens", reason="the extra [lens] is not installed")
    sae, x = drawn(design), rows()
    kinds = {"standard": "StandardSAE", "gated": "GatedSAE", "jumprelu": "JumpReLUSAE", "topk": "TopKSAE", "abstopk": "AbsTopKSAE"}
    called = kinds[design.kind]
    if design.transcoder:
        called = "SkipTranscoder" if design.skip else {"standard": "Transcoder", "jumprelu": "JumpReLUTranscoder"}[design.kind]
    values = {
        "d_in": WIDTH,
        "d_sae": FEATURES,
        "dtype": "float64",
        "apply_b_dec_to_input": design.subtracts_bias,
        "normalize_activations": design.scaling,
    }
    values |= {"d_out": OUT} if design.transcoder else {}
    values |= {"k": design.k, "rescale_acts_by_decoder_norm": design.ranks_by_norm} if design.k else {}
    twin = getattr(theirs, called)(getattr(theirs, f"{called}Config")(**values))
    state = {n.replace("encoder", "W_enc"): (p.T if n == "encoder" else p).clone() for n, p in sae.named_parameters()}
    twin.load_state_dict(state)
    codes = twin.encode(x)
    assert torch.allclose(sae.encode(x), codes.to_dense() if codes.is_sparse else codes, atol=1e-12)
    assert torch.allclose(sae(x), twin(x), atol=1e-12)


def test_of_equal_values_the_lower_features_are_kept():
    values = torch.tensor([[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0], [3.0, 1.0, 3.0, 2.0]])
    assert top_mask(values, 2).int().tolist() == [[0, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0]]


def test_ties_take_the_lower_feature_in_few_and_in_many_columns():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 4, (200, 60), generator=generator).float()  # almost every row has a tie where the k largest end
    for k in (1, 7, 59, 60):
        places = top_places(values, k)
        by_hand = [sorted(range(60), key=lambda i, row=row: (-row[i], i))[:k] for row in values.tolist()]
        assert [sorted(row) for row in places.tolist()] == [sorted(row) for row in by_hand]
    sae = SAE(Design(3, 5, "topk", k=2))
    sae.encoder.data[:], sae.b_enc.data[:] = 1.0, 0.5  # all features read the same
    assert sae.codes(torch.ones(2, 3)).features.tolist() == [0, 1, 0, 1]
    assert torch.equal(sae.codes(torch.ones(2, 3)).dense(), sae.encode(torch.ones(2, 3)).detach())


@pytest.mark.parametrize("design", DESIGNS, ids=name)
def test_a_row_does_not_depend_on_its_neighbours(design):
    sae, x = drawn(design), rows()
    together = sae.encode(x)
    # Other batch sizes round a product in another order, so the last bit may differ; which features are active may not.
    apart = torch.cat([sae.encode(r[None]) for r in x])
    assert torch.equal(together != 0, apart != 0)
    assert torch.allclose(together, apart, atol=1e-12)


@pytest.mark.parametrize("design", DESIGNS, ids=name)
def test_chosen_features_alone(design):
    sae, x = drawn(design), rows()
    assert torch.allclose(sae.encode(x, features=[7, 2, 11]), sae.encode(x)[:, [7, 2, 11]], atol=1e-12)


@pytest.mark.parametrize("design", [*DESIGNS, *TRANSCODERS], ids=name)
def test_sparse_codes_are_the_dense_ones(design, monkeypatch, tmp_path):
    monkeypatch.setattr("activarium.dictionaries.dictionary.AT_ONCE", 3 * FEATURES)
    sae, x = drawn(design), rows()
    codes, dense = sae.codes(x), sae.encode(x)
    assert torch.allclose(codes.dense(), dense, atol=1e-12)
    assert torch.equal(codes.active, (dense != 0).sum(1))
    assert torch.equal(codes.fires, (dense != 0).sum(0))
    assert torch.allclose(sae.decode(codes), sae.decode(dense), atol=1e-12)
    features, values = codes.row(5)
    assert torch.allclose(dense[5, features.long()], values)
    where, values = codes.feature(3)
    assert torch.equal(where, dense[:, 3].nonzero()[:, 0])
    again = Codes.load(codes.save(tmp_path / "codes.safetensors"))
    assert torch.equal(again.dense(), codes.dense())


@pytest.mark.parametrize("design", DESIGNS[:12], ids=name)
def test_a_scale_that_is_folded_in_changes_nothing(design):
    sae, x = drawn(design), rows()
    folded = sae.folded(3.0)
    assert torch.allclose(folded.encode(x), sae.encode(3 * x), atol=1e-12)
    assert torch.allclose(folded(x), sae(3 * x) / 3, atol=1e-12)


@pytest.mark.parametrize("design", TRANSCODERS, ids=name)
def test_a_transcoder_has_a_scale_on_either_side(design):
    sae, x = drawn(design), rows()
    folded = sae.folded(3.0, 0.5)
    assert torch.allclose(folded(x), sae(3 * x) / 0.5, atol=1e-12)


@pytest.mark.parametrize("design", [d for d in DESIGNS if d.k is None or d.ranks_by_norm], ids=name)
def test_unit_directions_write_the_same(design):
    sae, x = drawn(design), rows()
    folded = sae.folded(unit=True)
    assert torch.allclose(folded.W_dec.norm(dim=1), torch.ones(FEATURES, dtype=torch.float64))
    assert torch.allclose(folded(x), sae(x), atol=1e-12)
    with pytest.raises(InputError, match="other lengths would keep other features"):
        drawn(Design(WIDTH, FEATURES, "topk", k=3)).folded(unit=True)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "relu"}, "No kind of dictionary called 'relu'. Known: standard, gated"),
        ({"kind": "topk"}, "topk keeps k=None of 20 features; give k from 1 to 20"),
        ({"kind": "topk", "k": 21}, "topk keeps k=21 of 20"),
        ({"k": 3}, "k=3 is for topk and abstopk"),
        ({"transcoder": True}, "its b_dec cannot be taken from its input"),
        ({"d_out": 3}, "Reading 6 numbers and writing 3: say transcoder=True"),
        ({"skip": True}, "with a skip: say transcoder=True"),
        ({"scaling": "whiten"}, "No scaling called 'whiten'"),
        ({"ranks_by_norm": True}, "ranks_by_norm is for topk and abstopk"),
    ],
)
def test_designs_that_make_no_sense_are_refused(values, words):
    with pytest.raises(InputError, match=words):
        Design(WIDTH, FEATURES, **values)


def test_wrong_rows_and_wrong_weights_are_refused():
    sae = SAE(Design(WIDTH, FEATURES), Origin(site="blocks.1.resid_post"))
    with pytest.raises(InputError, match=r"reads rows of 6 numbers \(blocks\.1\.resid_post\); got shape \(2, 7\)"):
        sae(torch.zeros(2, 7))
    weights = {n: p.detach() for n, p in sae.named_parameters()}
    with pytest.raises(InputError, match=r"has b_enc of shape \(20,\); found none"):
        SAE.of_weights(sae.design, {n: p for n, p in weights.items() if n != "b_enc"})
    with pytest.raises(InputError, match=r"has threshold of shape none; found \(20,\)"):
        SAE.of_weights(sae.design, weights | {"threshold": torch.zeros(20)})
    with pytest.raises(InputError, match="b_dec holds numbers that are not finite"):
        SAE.of_weights(sae.design, weights | {"b_dec": torch.full((6,), float("inf"))})
    with pytest.raises(InputError, match="A transcoder writes another site than it reads: give the rows"):
        drawn(TRANSCODERS[0]).error(rows())


def test_files_that_hold_no_codes_are_refused(tmp_path):
    from safetensors.torch import save_file

    codes = Codes.of_dense(torch.eye(3))
    tensors = {"starts": codes.starts, "features": codes.features + 5, "values": codes.values}
    save_file(tensors, tmp_path / "bad", metadata={"width": "3"})
    with pytest.raises(InputError, match="do not fit together"):
        Codes.load(tmp_path / "bad")
    (tmp_path / "worse").write_bytes(b"not at all")
    with pytest.raises(InputError, match="holds no codes"):
        Codes.load(tmp_path / "worse")
    with pytest.raises(InputError, match="There is no feature 3; the dictionary has 3"):
        codes.feature(3)
    with pytest.raises(InputError, match="cannot stand under one another"):
        Codes.concatenate([codes, Codes.of_dense(torch.eye(4))])
