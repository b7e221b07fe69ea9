"""Dictionaries in every layout, written here at small size: the numbers by each library's own formula, sae-lens both ways, refusals."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from activarium.dictionaries import SAE, Design, Origin, load, save
from activarium.errors import InputError, UnknownName

WIDTH, FEATURES, OUT = 6, 16, 5
GENERATOR = torch.Generator().manual_seed(4)


def draw(*shape):
    return torch.randn(*shape, generator=GENERATOR)


X = draw(30, WIDTH)


def write(folder, settings, weights, config="cfg.json", file="sae_weights.safetensors"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / config).write_text(json.dumps(settings))
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, **{k: v.numpy() for k, v in weights.items()})
    elif path.suffix == ".pt":
        torch.save(weights, path)
    else:
        save_file({k: v.contiguous() for k, v in weights.items()}, path)
    return folder


def close(found, wanted):
    assert found.shape == wanted.shape
    assert torch.allclose(found, wanted, atol=1e-5)
    assert bool(wanted.any())


# --- sae-lens, both ways

KINDS = [
    ("StandardSAE", {}),
    ("StandardSAE", {"apply_b_dec_to_input": False, "normalize_activations": "layer_norm"}),
    ("GatedSAE", {}),
    ("JumpReLUSAE", {}),
    ("TopKSAE", {"k": 3}),
    ("TopKSAE", {"k": 3, "rescale_acts_by_decoder_norm": True}),
    ("AbsTopKSAE", {"k": 3}),
    ("MatchingPursuitSAE", {"max_iterations": 4, "residual_threshold": 0.3}),
    ("MatchingPursuitSAE", {"stop_on_duplicate_support": False, "apply_b_dec_to_input": False, "max_iterations": 9}),
    ("Transcoder", {"d_out": OUT}),
    ("SkipTranscoder", {"d_out": OUT}),
    ("JumpReLUTranscoder", {"d_out": OUT}),
    ("JumpReLUSkipTranscoder", {"d_out": OUT}),
]


def theirs(called, values):
    import sae_lens
    from sae_lens.saes import transcoder
    from sae_lens.saes.sae import SAEMetadata

    room = sae_lens if hasattr(sae_lens, called) else transcoder
    about = SAEMetadata(hook_name="blocks.1.hook_resid_post", model_name="tiny", prepend_bos=True)
    base = {"apply_b_dec_to_input": False} if "d_out" in values else {}
    made = getattr(room, called)(getattr(room, f"{called}Config")(d_in=WIDTH, d_sae=FEATURES, metadata=about, **base | values))
    with torch.no_grad():
        for name, p in made.named_parameters():
            p.copy_(draw(*p.shape).abs() / 3 if name == "threshold" else draw(*p.shape))
    return made


@pytest.mark.slow
@pytest.mark.parametrize(("called", "values"), KINDS, ids=[f"{c} {' '.join(map(str, v.values()))}" for c, v in KINDS])
def test_we_read_theirs_and_they_read_ours(called, values, tmp_path):
    pytest.importorskip("sae_lens", reason="the extra [lens] is not installed")
    from sae_lens import SAE as Theirs

    made = theirs(called, values)
    made.save_model(tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    assert (ours.origin.site, ours.origin.model, ours.origin.bos) == ("blocks.1.resid_post", "tiny", True)
    codes = made.encode(X)
    close(ours.encode(X), codes.to_dense() if codes.is_sparse else codes)
    close(ours(X), made(X))
    back = Theirs.load_from_disk(str(save(ours, tmp_path / "ours")))
    assert type(back) is type(made)
    close(back(X), made(X))
    assert back.cfg.metadata.hook_name == "blocks.1.hook_resid_post"
    again = load(tmp_path / "ours")
    assert torch.equal(again.encode(X), ours.encode(X))
    assert again.design == ours.design


def old(**more):
    return {
        "d_in": WIDTH,
        "d_sae": FEATURES,
        "hook_point": "blocks.2.hook_resid_pre",
        "model_name": "gpt2-small",
        "dtype": "float32",
        **more,
    }


def plain():
    return {"W_enc": draw(WIDTH, FEATURES), "W_dec": draw(FEATURES, WIDTH), "b_enc": draw(FEATURES), "b_dec": draw(WIDTH)}


def test_flat_settings_from_before_version_six(tmp_path):
    w = plain()
    sae = load(write(tmp_path / "a", old(activation_fn_str="relu", normalize_activations=False), w))
    close(sae.encode(X), torch.relu((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]))
    assert (sae.origin.site, sae.origin.bos) == ("blocks.2.resid_pre", True)
    top = load(write(tmp_path / "b", old(activation_fn_str="topk", activation_fn_kwargs={"k": 2}), w))
    assert (top.design.kind, top.design.k) == ("topk", 2)
    logs = load(write(tmp_path / "c", old(architecture="jumprelu"), w | {"log_threshold": draw(FEATURES)}))
    assert bool((logs.threshold > 0).all())


def test_a_factor_of_ones_is_dropped_and_another_one_multiplies_what_is_written(tmp_path):
    w, factor = plain(), 1 + draw(FEATURES).abs()
    ones = load(write(tmp_path / "a", old(), w | {"scaling_factor": torch.ones(FEATURES)}))
    codes = ones.encode(X)
    close(ones(X), codes @ w["W_dec"] + w["b_dec"])
    tuned = load(write(tmp_path / "b", old(finetuning_scaling_factor=True), w | {"scaling_factor": factor}))
    close(tuned(X), (codes * factor) @ w["W_dec"] + w["b_dec"])


def test_a_scale_that_is_not_folded_must_be_told(tmp_path):
    w = plain()
    folder = write(tmp_path / "a", old(normalize_activations=True), w)
    with pytest.raises(InputError, match="trained on rows multiplied by a factor that its files do not tell"):
        load(folder)
    wanted = torch.relu((2.5 * X - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    close(load(folder, scale=2.5).encode(X), wanted)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 2.5}))
    close(load(folder).encode(X), wanted)
    close(load(folder)(X), (wanted @ w["W_dec"] + w["b_dec"]) / 2.5)


def test_architectures_whose_codes_are_not_ours_are_named(tmp_path):
    with pytest.raises(InputError, match="architecture 'crosscoder', whose codes are not computed here"):
        load(write(tmp_path / "c", old(architecture="crosscoder"), plain()))
    with pytest.raises(InputError, match="depends on all tokens before it, and a dictionary here reads rows one by one"):
        load(write(tmp_path / "t", old(architecture="temporal"), plain()))


def test_transcoders_that_sae_lens_does_not_have_come_back_too(tmp_path):
    design = Design(WIDTH, FEATURES, "topk", k=2, d_out=OUT, transcoder=True, skip=True, subtracts_bias=False)
    sae = SAE(design, Origin("blocks.0.mlp.in", "blocks.0.mlp.out", model="scribe", exclude=("bos",)), seed=3)
    again = load(save(sae, tmp_path / "sae"))
    assert (again.design, again.origin) == (sae.design, sae.origin)
    assert torch.equal(again(X), sae(X))


@pytest.mark.slow
@pytest.mark.parametrize("transcoder", [False, True])
def test_signed_codes_above_a_threshold_come_back_and_sae_lens_refuses_them(transcoder, tmp_path):
    more = {"d_out": OUT, "transcoder": True, "skip": True, "subtracts_bias": False} if transcoder else {}
    sae = SAE(Design(WIDTH, FEATURES, "absjump", **more), Origin("blocks.0.mlp.in"), seed=3)
    sae.threshold.data.fill_(0.4)
    folder = save(sae, tmp_path / "sae")
    again = load(folder)
    assert (again.design, again.origin) == (sae.design, sae.origin)
    assert torch.equal(again.encode(X), sae.encode(X))
    assert bool((again.encode(X) < 0).any())
    said = json.loads((folder / "cfg.json").read_text())
    assert said["metadata"]["readers"].startswith("activarium alone: sae-lens has no architecture 'absjump")
    theirs = pytest.importorskip("sae_lens", reason="the extra [lens] is not installed")
    with pytest.raises(KeyError, match="absjump"):
        theirs.SAE.load_from_disk(str(folder))


# --- the others, by their own formulas


@pytest.mark.parametrize("lower", [True, False])
def test_gemma_scope(tmp_path, lower):
    w = plain() | {"threshold": draw(FEATURES).abs()}
    named = {k.lower() if lower else k: v for k, v in w.items()}
    folder = tmp_path / "gemma-scope-2b-pt-res" / "layer_12" / "width_16k" / "average_l0_80"
    sae = load(write(folder, {}, named, "notes.json", "params.npz"))
    pre = X @ w["W_enc"] + w["b_enc"]  # b_dec is not taken off
    close(sae.encode(X), torch.relu(pre) * (pre > w["threshold"]))
    close(sae(X), (torch.relu(pre) * (pre > w["threshold"])) @ w["W_dec"] + w["b_dec"])
    assert (sae.origin.site, sae.origin.model) == ("blocks.12.resid_post", "gemma-2-2b")


def test_gemma_scope_two_with_its_affine_skip(tmp_path):
    w = {
        "w_enc": draw(WIDTH, FEATURES),
        "w_dec": draw(FEATURES, OUT),
        "b_enc": draw(FEATURES),
        "b_dec": draw(OUT),
        "threshold": draw(FEATURES).abs(),
    }
    skip = draw(WIDTH, OUT)
    folder = tmp_path / "transcoder" / "layer_3_width_16k"
    said = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "affine_connection": True}
    sae = load(write(folder, said, w | {"affine_skip_connection": skip}, "config.json", "params.safetensors"))
    pre = X @ w["w_enc"] + w["b_enc"]
    close(sae(X), (torch.relu(pre) * (pre > w["threshold"])) @ w["w_dec"] + w["b_dec"] + X @ skip)
    assert (sae.origin.site, sae.origin.target) == ("blocks.3.mlp.in", "blocks.3.mlp.out")
    with pytest.raises(InputError, match="writes to 4 layers at once"):
        load(write(folder, said, w | {"w_dec": draw(FEATURES, 4, OUT)}, "config.json", "params.safetensors"))


def test_llama_scope(tmp_path):
    w = {
        "encoder.weight": draw(FEATURES, WIDTH),
        "decoder.weight": draw(WIDTH, FEATURES),
        "encoder.bias": draw(FEATURES),
        "decoder.bias": draw(WIDTH),
    }
    norm, bar = 3.0, 0.4
    said = {
        "d_model": WIDTH,
        "jump_relu_threshold": bar,
        "dataset_average_activation_norm": {"in": norm},
        "hook_point_in": "blocks.7.hook_resid_post",
    }
    sae = load(write(tmp_path / "l", said, w, "hyperparams.json", "checkpoints/final.safetensors"))
    s = WIDTH**0.5 / norm
    pre = (s * X) @ w["encoder.weight"].T + w["encoder.bias"]
    codes = torch.relu(pre) * (pre > bar * s)
    close(sae.encode(X), codes)
    close(sae(X), (codes @ w["decoder.weight"].T + w["decoder.bias"]) / s)
    assert sae.origin.site == "blocks.7.resid_post"


def of_trainer(called, **more):
    return {
        "trainer": {
            "dict_class": called,
            "activation_dim": WIDTH,
            "dict_size": FEATURES,
            "layer": 4,
            "lm_name": "EleutherAI/pythia",
            **more,
        }
    }


def test_dictionary_learning(tmp_path):
    linear = {"encoder.weight": draw(FEATURES, WIDTH), "encoder.bias": draw(FEATURES), "decoder.weight": draw(WIDTH, FEATURES)}
    shift = draw(WIDTH)
    plain_pre = (X - shift) @ linear["encoder.weight"].T + linear["encoder.bias"]
    sae = load(write(tmp_path / "a", of_trainer("AutoEncoder"), linear | {"bias": shift}, "config.json", "ae.pt"))
    close(sae(X), torch.relu(plain_pre) @ linear["decoder.weight"].T + shift)
    assert (sae.origin.site, sae.origin.model) == ("blocks.4.resid_post", "pythia")

    extra = {"b_dec": shift, "k": torch.tensor(2), "threshold": torch.tensor(9.0)}  # its threshold is not used by its own encode
    top = load(write(tmp_path / "b", of_trainer("AutoEncoderTopK", k=2), linear | extra, "config.json", "ae.pt"))
    values, where = plain_pre.topk(2)
    close(top.encode(X), torch.zeros_like(plain_pre).scatter(1, where, values.relu()))

    batch = {"W_enc": linear["encoder.weight"].T.clone(), "W_dec": draw(FEATURES, WIDTH), "b_enc": linear["encoder.bias"], "b_dec": shift}
    batch["threshold"] = torch.tensor(0.5)
    made = load(write(tmp_path / "c", of_trainer("BatchTopKSAE"), batch, "config.json", "ae.pt"))
    close(made.encode(X), plain_pre.relu() * (plain_pre > 0.5))
    jump = load(write(tmp_path / "d", of_trainer("JumpReluAutoEncoder"), batch, "config.json", "ae.pt"))
    pre = X @ batch["W_enc"] + batch["b_enc"]
    close(jump.encode(X), pre.relu() * (pre > 0.5))

    gated = {"encoder.weight": linear["encoder.weight"], "decoder.weight": linear["decoder.weight"], "decoder_bias": shift}
    gated |= {"gate_bias": draw(FEATURES), "mag_bias": draw(FEATURES), "r_mag": draw(FEATURES)}
    raw = (X - shift) @ gated["encoder.weight"].T
    sizes = torch.relu(raw * gated["r_mag"].exp() + gated["mag_bias"]) * (raw + gated["gate_bias"] > 0)
    close(load(write(tmp_path / "e", of_trainer("GatedAutoEncoder"), gated, "config.json", "ae.pt")).encode(X), sizes)
    with pytest.raises(InputError, match="dict_class 'Other', which is not read here"):
        load(write(tmp_path / "f", of_trainer("Other"), linear, "config.json", "ae.pt"))


@pytest.mark.parametrize("transcode", [False, True])
def test_sparsify(tmp_path, transcode):
    w = {"encoder.weight": draw(FEATURES, WIDTH), "encoder.bias": draw(FEATURES), "W_dec": draw(FEATURES, WIDTH), "b_dec": draw(WIDTH)}
    w |= {"W_skip": draw(WIDTH, WIDTH)} if transcode else {}
    said = {"d_in": WIDTH, "num_latents": FEATURES, "k": 3, "normalize_decoder": True, "transcode": transcode, "skip_connection": transcode}
    sae = load(write(tmp_path / "layers.5.mlp", said, w, file="sae.safetensors"))
    pre = (X if transcode else X - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]
    values, where = pre.relu().topk(3)
    wanted = torch.zeros_like(pre).scatter(1, where, values) @ w["W_dec"] + w["b_dec"]
    close(sae(X), wanted + (X @ w["W_skip"].T if transcode else 0))
    assert sae.origin.site == ("blocks.5.mlp.in" if transcode else "blocks.5.mlp.proj")


# --- what is refused


class Harm:
    """Something that would run if a file were unpickled."""

    def __reduce__(self):
        return (print, ("harm",))


def test_hostile_and_damaged_files_are_refused(tmp_path, capsys):
    w = plain()
    with pytest.raises(InputError, match="holds something else than tensors, which is never loaded"):
        load(write(tmp_path / "a", of_trainer("AutoEncoder"), {"encoder.weight": Harm()}, "config.json", "ae.pt"))
    folder = write(tmp_path / "b", old(), w)
    (folder / "sae_weights.safetensors").write_bytes((folder / "sae_weights.safetensors").read_bytes()[:100])
    with pytest.raises(InputError, match=r"sae_weights\.safetensors cannot be read"):
        load(folder)
    objects = tmp_path / "layer_1"
    objects.mkdir()
    np.savez(objects / "params.npz", W_enc=np.array([Harm()], dtype=object))
    with pytest.raises(InputError, match=r"params\.npz cannot be read"):
        load(objects)
    (folder / "cfg.json").write_text("{nonsense")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        load(folder)
    assert "harm" not in capsys.readouterr().out


def test_wrong_shapes_missing_names_and_no_dictionary_at_all(tmp_path):
    w = plain()
    with pytest.raises(InputError, match=r"has b_enc of shape \(16,\); found \(15,\)"):
        load(write(tmp_path / "a", old(), w | {"b_enc": draw(15)}))
    with pytest.raises(InputError, match="has no 'd_sae'; it has"):
        load(write(tmp_path / "b", {k: v for k, v in old().items() if k != "d_sae"}, w))
    with pytest.raises(InputError, match="W_enc|encoder holds numbers that are not finite"):
        load(write(tmp_path / "c", old(), w | {"W_enc": w["W_enc"] * float("nan")}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no dictionary in a layout known here .*sae_lens.*; it holds nothing"):
        load(tmp_path / "empty")
    with pytest.raises(InputError, match="There is no folder 'gpt2-small-res-jb', and no bundled dictionary of that name"):
        load("gpt2-small-res-jb")
    with pytest.raises(UnknownName, match="No layout of dictionaries called 'saelens'. Did you mean 'sae_lens'"):
        load(tmp_path / "a", layout="saelens")
    sae = SAE(Design(WIDTH, FEATURES))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="holds other files already"):
        save(sae, tmp_path / "full")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "precious"
