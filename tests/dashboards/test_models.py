"""Pages of real models: text with tokens and neurons, images with their patches, attention's sources."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium.dashboards import build, source_shares
from activarium.dictionaries import SAE, Design, Origin, controls
from activarium.errors import InputError, UnknownSite


@pytest.fixture(scope="module")
def gpt2():
    return act.wrap(*act.testing.tiny("gpt2"), certify=False)


def of_site(rec, site, features=40, kind="topk", **more):
    width = int(np.prod(rec[site].shape[1:]))
    return SAE(Design(width, features, kind=kind, k=4 if kind == "topk" else None), Origin(site=site, **more), seed=1).requires_grad_(False)


def test_tokens_and_neurons_of_a_language_model(gpt2):
    rec = gpt2.run(act.testing.texts(), read=["blocks.0.resid_post", "blocks.1.mlp.post"])
    sae = of_site(rec, "blocks.0.resid_post")
    page = build(sae, rec, model=gpt2, progress=False).page(3)
    direction = sae.directions[3]
    logits = direction @ (gpt2.weight("final_norm.gain")[:, None] * gpt2.weight("W_U"))
    logits = logits - logits.mean()
    order = logits.argsort(descending=True).tolist()
    assert [w for w, _ in page["promoted"]] == [gpt2.tokenizer.decode([i]) for i in order[:10]]
    assert [w for w, _ in page["suppressed"]] == [gpt2.tokenizer.decode([i]) for i in order[::-1][:10]]
    assert [f for _, f in page["promoted"]] == pytest.approx(logits[order[:10]].tolist(), abs=1e-5)
    assert [f for _, f in page["suppressed"]] == pytest.approx(logits[order[::-1][:10]].tolist(), abs=1e-5)
    cosine = torch.nn.functional.cosine_similarity(direction[None], gpt2.weight("blocks.0.mlp.W_down"))
    assert page["neurons"][0] == (int(cosine.argmax()), pytest.approx(float(cosine.max()), abs=1e-6))
    near = torch.nn.functional.cosine_similarity(direction[None], sae.directions)
    near[3] = -2
    assert page["neighbours"][0] == (int(near.argmax()), pytest.approx(float(near.max()), abs=1e-6))
    neurons = of_site(rec, "blocks.1.mlp.post")
    page = build(neurons, rec, model=gpt2, progress=False).page(0)
    assert page["neurons"][0][0] == int(neurons.directions[0].argmax())
    logits = neurons.directions[0] @ gpt2.weight("blocks.1.mlp.W_down") @ (gpt2.weight("final_norm.gain")[:, None] * gpt2.weight("W_U"))
    assert page["promoted"][0][0] == gpt2.tokenizer.decode([int(logits.argmax())])


def test_without_a_model_pages_say_what_is_not_known(gpt2):
    rec = gpt2.run(act.testing.texts(), read=["blocks.0.mlp.post", "blocks.0.attn.q"])
    pages = build(of_site(rec, "blocks.0.mlp.post"), rec, progress=False)
    assert "promoted" not in pages.page(0) and "without the model" in pages.about["definitions"]["promoted"]
    pages = build(of_site(rec, "blocks.0.attn.q"), rec, model=gpt2, progress=False)
    assert "neurons" not in pages.page(0) and "does not write the residual stream" in pages.about["definitions"]["promoted"]
    assert "no MLP of this model writes" in pages.about["definitions"]["neurons"]


@pytest.mark.parametrize("exclude", [("cls",), ()])
@pytest.mark.parametrize("given", ["images", "pixels", "nothing"])
def test_images_show_their_patches_and_the_picture_once(exclude, given):
    model = act.wrap(*act.testing.tiny("vit"), certify=False)
    images = act.testing.images(5)
    site = "blocks.1.resid_post"
    rec = model.run(images, read=[site, "pixels"] if given == "pixels" else [site])
    sae = of_site(rec, site, exclude=exclude)
    pages = build(sae, rec, images=images if given == "images" else None, progress=False)
    table, codes = rec.rows[""].frame(), sae.encode(rec[site].tensor).numpy()
    for f in range(8):
        for context in pages.page(f).get("contexts", []):
            rows = table[table.example == context["example"]]
            heat = np.full(context["grid"], np.nan, np.float32)
            patch = rows[rows.kind == "patch"]
            heat[patch.y, patch.x] = codes[patch.index, f]
            assert np.allclose(context["values"], heat.ravel(), atol=1e-5)
            assert context["image"].dtype == np.uint8 and context["image"].shape[2] == 3
            if exclude:
                assert "cls" not in context
            else:
                assert context["cls"] == pytest.approx(codes[rows.index[0], f], abs=1e-5)
            if given == "images":
                assert np.array_equal(context["image"], images[context["example"]])
            elif given == "pixels":
                pixels = rec["pixels"].tensor[context["example"]].permute(1, 2, 0).numpy()
                assert np.corrcoef(pixels.ravel(), context["image"].ravel().astype(float))[0, 1] > 0.999
            else:
                assert np.all(context["image"] == 128)
    assert not len(pages.find("0,1")), "places of patches are no words"
    assert {"images": "as given", "pixels": "stretched", "nothing": "grey"}[given] in pages.about["definitions"]["pictures"]
    with pytest.raises(InputError, match="2 were given"):
        build(sae, rec, images=images[:2], progress=False)


def test_large_and_odd_pictures_are_made_small():
    from PIL import Image

    from activarium.dashboards.rows_shown import _pixels, _small

    assert _small(np.zeros((300, 150, 3), np.uint8)).shape == (96, 48, 3)
    assert _pixels(Image.new("L", (4, 6)), 0).shape == (6, 4, 3)
    assert _pixels(np.full((2, 2), 0.5), 0).tolist() == [[[128] * 3] * 2] * 2
    with pytest.raises(InputError, match="Image 3 has shape"):
        _pixels(np.zeros((3, 8, 8), np.uint8), 3)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_sources_sum_to_the_value_before_the_nonlinearity(family):
    model = act.wrap(*act.testing.tiny(family), certify=False)
    site = "blocks.1.attn.z"
    rec = model.run(act.testing.texts(), read=[site, "blocks.1.attn.pattern", "blocks.1.attn.v"])
    heads, keys = rec[site].shape[1], rec["blocks.1.attn.v"].shape[1]
    assert family != "llama" or heads > keys, "query heads share keys and values"
    sae = of_site(rec, site)
    with torch.no_grad():
        sae.b_dec += 0.1
        pre = (rec[site].tensor.flatten(1) @ sae.W_enc).numpy()
    index = rec[site].index
    for row in (0, 3, len(pre) - 1):
        shares = source_shares(sae, rec, 7, row)
        assert shares.shape == (heads, index.span(int(index["example"][row])).stop - index.span(int(index["example"][row])).start)
        assert float(shares.sum()) == pytest.approx(pre[row, 7], abs=1e-5)
    pages = build(sae, rec, sources=[7], progress=False)
    for context in pages.page(7)["contexts"]:
        if context["band"] == "top":
            row = index.span(context["example"]).start + context["position"]
            assert np.allclose(context["sources"], source_shares(sae, rec, 7, row), atol=1e-6)
        else:
            assert "sources" not in context
    assert all("sources" not in c for c in pages.page(8).get("contexts", []))
    with pytest.raises(UnknownSite, match=r"attn\.pattern"):
        source_shares(sae, model.run(act.testing.texts(), read=[site]), 7, 0)
    with pytest.raises(InputError, match=r"reads blocks\.0\.resid_post"):
        source_shares(sae, rec, 7, 0, "blocks.0.resid_post")


def test_a_control_and_signed_codes_have_pages_too(gpt2):
    rec = gpt2.run(act.testing.texts(), read=["blocks.0.resid_post"])
    pages = build(controls.principal(rec["blocks.0.resid_post"], 4), rec, progress=False)
    assert len(pages) == 8 and np.nanmax(pages.columns["max"]) > 0
