"""Surveys: one answer from a live model, from memory and from the disk; merged, saved, and refused with words."""

import json

import numpy as np
import pytest
import torch

import activarium as act
from activarium import testing
from activarium.edits import Zero
from activarium.errors import AxisError, CapacityError, InputError, NotFinite, OtherModel, UnknownName, UnknownSite
from activarium.summaries import CoActivation, Count, Gram, Magnitudes, Moments, Quantiles, Survey, TopRows

from ..store.fake_model import FakeModel, texts

EVERY = [Count(), Moments(), Magnitudes(), Quantiles(keep=40), TopRows(5), TopRows(3, magnitude=True), Gram(), CoActivation()]
WANTED = {"blocks.*.mlp.post": EVERY, "blocks.*.attn.q_rot": EVERY, "encoder.out": EVERY, "pooled": [Count(), Moments()]}
SUMS = {"mean", "m2", "m3", "m4", "magnitude", "gram", "total"}


class ExactModel(FakeModel):
    """A model whose arithmetic is exact: what it computes for a row does not depend on the batch."""

    def _values(self, name, rows, shape):
        return super()._values(name, rows, 0)


def alike(a, b, bits=False):
    assert list(a) == list(b)
    for site in a:
        assert list(a[site]) == list(b[site])
        for name, summary in a[site].items():
            other = b[site][name]
            assert summary.state.keys() == other.state.keys()
            for key, value in summary.state.items():
                if key in SUMS and not bits:
                    assert torch.allclose(value, other.state[key], rtol=1e-12, atol=1e-12 * summary.rows), (site, name, key)
                else:
                    assert torch.equal(value, other.state[key]), (site, name, key)


def test_one_answer_in_three_places(tmp_path):
    model, data = FakeModel(), texts(60)
    live = act.survey(model, WANTED, data, batch_tokens=64, progress=False)
    kept = act.capture(model, data, list(WANTED), progress=False, batch_tokens=64)
    store = act.capture(model, data, list(WANTED), tmp_path / "s.acts", progress=False, batch_tokens=64, shard_bytes=40_000)
    assert len(list((tmp_path / "s.acts" / "shards").iterdir())) > 3
    alike(live, act.survey(kept, WANTED, progress=False))
    alike(live, act.survey(store, WANTED, progress=False))
    alike(live, act.survey(act.open(tmp_path / "s.acts"), WANTED, progress=False))
    assert live["pooled"]["Count"].rows == 60
    assert live["encoder.out"]["Count"].rows == sum(len(t) % 5 + 1 for t in data)


@pytest.mark.parametrize("batch_tokens", [32, 50, 100_000])
def test_another_batch_size_changes_nothing_where_arithmetic_is_exact(batch_tokens):
    data = texts(40)
    alike(*(act.survey(ExactModel(), WANTED, data, batch_tokens=n, progress=False) for n in (64, batch_tokens)))


def test_another_batch_size_and_either_padding_side_agree_within_the_models_rounding():
    model = act.wrap(*testing.tiny("llama"), name="llama", certify=False)
    generator = torch.Generator().manual_seed(0)
    ragged = [torch.randint(20, 40, (n,), generator=generator) for n in (3, 9, 5, 1, 7, 2)]
    width = max(map(len, ragged))
    padded = {}
    for side in ("left", "right"):
        ids, mask = torch.zeros(len(ragged), width, dtype=torch.long), torch.zeros(len(ragged), width, dtype=torch.long)
        for i, text in enumerate(ragged):
            where = slice(width - len(text), width) if side == "left" else slice(0, len(text))
            ids[i, where], mask[i, where] = text, 1
        padded[side] = {"input_ids": ids, "attention_mask": mask}
    wanted = {"blocks.*.mlp.post": [Count(), Moments(), Quantiles(keep=10), TopRows(3)], "blocks.*.attn.q_rot": [Moments()]}
    found = [
        act.survey(model, wanted, data, batch_tokens=size, progress=False)
        for data, size in (([t.tolist() for t in ragged], 16), (padded["left"], 64), (padded["right"], 20))
    ]
    for other in found[1:]:
        for site in other:
            a, b = found[0][site], other[site]
            assert torch.allclose(a["Moments"].variance, b["Moments"].variance, rtol=1e-4)
            if "Count" in a:
                assert a["Count"] == b["Count"]
                assert torch.equal(a["Quantiles"].state["row"], b["Quantiles"].state["row"])
                assert torch.allclose(a["TopRows"].state["score"], b["TopRows"].state["score"], rtol=1e-4, atol=1e-6)


def test_a_survey_equals_the_analysis_of_a_capture():
    model = act.load("scribe-relu")
    words = testing.texts()
    found = act.survey(model, {"blocks.*.mlp.act": [Count()]}, words, exclude=["bos", "special"], progress=False)
    report = act.analyses.lazy_neurons(act.capture(model, words, "blocks.*.mlp.act", progress=False))
    for i, count in enumerate(found.find("blocks.*.mlp.act", "Count").values()):
        assert count.fires.tolist() == report["fires"].values[i].tolist()


def test_edits_that_stand_are_seen():
    model = act.wrap(*testing.tiny("gpt2"), name="gpt2", certify=False)
    wanted = {"blocks.*.mlp.post": [Count()]}
    with model.edited(Zero("blocks.0.mlp.post")):
        edited = act.survey(model, wanted, testing.texts(), progress=False)
    plain = act.survey(model, wanted, testing.texts(), progress=False)
    assert edited["blocks.0.mlp.post"]["Count"].percent == 0
    assert plain["blocks.0.mlp.post"]["Count"].percent > 50


@pytest.mark.parametrize("family", ["gpt2", "bert", "t5", "vit", "clip"])
def test_every_row_wise_site_of_a_model_can_be_surveyed(family):
    model = act.wrap(*testing.tiny(family), name=family, certify=False)
    data = {}
    for name, space in model._encoder.spaces.items():
        if space.modality == "vision":
            data["pixel_values"] = torch.randn(3, *space.image, generator=torch.Generator().manual_seed(0))
        else:
            data[name or "text"] = [[21, 22, 23], [24, 25], [26, 27, 28, 29]]
    sites = [n for n in model.sites if model.sites[n].axes.split()[0] in ("row", "example")]
    if family == "clip":  # its logits compare every text of the batch with every image
        with pytest.raises(InputError, match="what depends on the batch cannot be surveyed"):
            act.survey(model, {"logits": [Count()]}, data, batch_tokens=10, progress=False)
        sites.remove("logits")
    found = act.survey(model, {s: [Count(), Moments()] for s in sites}, data, batch_tokens=10, progress=False)
    recorded = model.run(data, read=sites)
    for site in sites:
        values = recorded[site].tensor.double()
        assert found[site]["Count"].rows == len(values), site
        assert torch.allclose(found[site]["Moments"].mean, values.flatten(1).mean(0), atol=1e-5), site


def test_kinds_of_rows_can_be_left_out():
    model = act.load("glyph")
    pictures = testing.images(2)
    every, patches = (
        act.survey(model, {"blocks.0.resid_post": [Count()]}, pictures, exclude=e, progress=False)["blocks.0.resid_post"]["Count"].rows
        for e in ((), ("cls",))
    )
    assert (every, patches) == (130, 128)


def test_top_rows_come_with_their_context(tmp_path):
    model = act.load("scribe")
    found = act.survey(model, {"blocks.1.mlp.post": [TopRows(2)]}, testing.texts(), progress=False)
    ranking = found.result("blocks.1.mlp.post", "TopRows")
    kept = act.capture(model, testing.texts(), "blocks.1.mlp.post", tmp_path / "s.acts", progress=False)
    table = kept.rows[""].frame()
    first = next(iter(zip(ranking.columns["example"], ranking.columns["position"], ranking.columns["context"], strict=True)))
    token = table[(table.example == first[0]) & (table.position == first[1])].text.item()
    assert f"[{token}]" in first[2]
    again = act.survey(kept, {"blocks.1.mlp.post": [TopRows(2)]}, progress=False).result("blocks.1.mlp.post", "TopRows")
    assert again.columns["context"].tolist() == ranking.columns["context"].tolist()


def test_saved_and_loaded(tmp_path):
    found = act.survey(FakeModel(), WANTED, texts(20), progress=False)
    again = act.load_survey(found.save(tmp_path / "s.survey"))
    alike(found, again, bits=True)
    assert again.provenance == found.provenance
    assert act.identical(again.report(), found.report())
    assert [p.name for p in tmp_path.iterdir()] == ["s.survey"]
    again.merge(found)
    assert again["pooled"]["Count"].rows == 40


def test_a_file_that_is_no_survey_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"not tensors")
    with pytest.raises(InputError, match="is not a saved survey"):
        act.load_survey(tmp_path / "x")
    act.survey(FakeModel(), {"pooled": [Count()]}, texts(3), progress=False).result("pooled", "Count").save(tmp_path / "r")
    with pytest.raises(InputError, match="is a safetensors file, but not a saved survey"):
        act.load_survey(tmp_path / "r")


def test_a_file_cannot_name_anything_to_execute(tmp_path):
    from safetensors.torch import load_file, save_file

    path = act.survey(FakeModel(), {"pooled": [Count()]}, texts(3), progress=False).save(tmp_path / "s")
    words = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])["__metadata__"]
    save_file(load_file(path), path, metadata=words | {"activarium survey": words["activarium survey"].replace('"Count"', '"load_survey"')})
    with pytest.raises(UnknownName, match="No kind of summary called 'load_survey'"):
        act.load_survey(path)


def test_sites_that_are_the_same_share_their_summaries():
    found = act.survey(FakeModel(), {"blocks.*.resid_pre": [Count()], "blocks.0.resid_post": [Moments()]}, texts(5), progress=False)
    assert list(found) == ["blocks.0.resid_pre", "blocks.0.resid_post"]
    assert list(found["blocks.1.resid_pre"]) == ["Count", "Moments"]


# --- refusals


def test_what_cannot_be_surveyed_is_said():
    model, data = FakeModel(), texts(3)
    with pytest.raises(AxisError, match=r"blocks\.0\.attn\.pattern has axes 'head query key'; a survey goes over rows"):
        act.survey(model, {"blocks.0.attn.pattern": [Count()]}, data, progress=False)
    with pytest.raises(UnknownSite, match="resid_past"):
        act.survey(model, {"blocks.0.resid_past": [Count()]}, data, progress=False)
    with pytest.raises(InputError, match="A model needs data"):
        act.survey(model, {"pooled": [Count()]}, progress=False)
    with pytest.raises(InputError, match="There is nothing to survey"):
        act.survey(model, {}, data, progress=False)
    with pytest.raises(InputError, match="is asked for twice at one site"):
        Survey({"pooled": [Count(), Count()]})
    kept = act.capture(model, data, ["pooled"], progress=False)
    with pytest.raises(UnknownSite, match="mlp"):
        act.survey(kept, {"blocks.*.mlp.post": [Count()]}, progress=False)
    with pytest.raises(InputError, match="found data beside it"):
        act.survey(kept, {"pooled": [Count()]}, data, progress=False)


def test_a_site_that_is_absent_in_one_of_two_models_is_named():
    a = act.survey(FakeModel(), {"pooled": [Count()], "encoder.out": [Count()]}, texts(3), progress=False)
    b = act.survey(FakeModel(), {"pooled": [Count()]}, texts(3), progress=False)
    with pytest.raises(UnknownSite, match=r"No site in one of the two surveys called 'encoder\.out'"):
        a.merge(b)
    with pytest.raises(UnknownSite, match=r"encoder\.out"):
        b.merge(a)
    with pytest.raises(OtherModel, match=r"weights w0.*weights other"):
        b.merge(act.survey(FakeModel(weights="other"), {"pooled": [Count()]}, texts(3), progress=False))


def test_overflow_names_site_and_example_and_leaves_the_model_as_it_was():
    hf_model, tokenizer = testing.tiny("gpt2")
    model = act.wrap(hf_model.half(), tokenizer, name="gpt2", certify=False)
    with torch.no_grad():
        hf_model.transformer.h[1].mlp.c_fc.bias[0] = 60000.0
        hf_model.transformer.h[1].mlp.c_proj.weight[0] = 10.0
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf_model.modules()]
    with pytest.raises(NotFinite, match=r"blocks\.1\.mlp\.proj met .* infinite.*float16 ends at 65504.*First in example 3"):
        act.survey(model, {"blocks.1.mlp.proj": [Moments()]}, testing.texts(), progress=False)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf_model.modules()] == hooks
    counted = act.survey(model, {"blocks.1.mlp.proj": [Count(), Magnitudes()]}, testing.texts(), progress=False)["blocks.1.mlp.proj"]
    assert counted["Magnitudes"].infinite == int(counted["Count"].state["infinite"]) > 0


def test_states_that_do_not_fit_are_refused_before_the_model_runs(monkeypatch):
    from activarium.workflows import survey

    model = FakeModel()
    monkeypatch.setattr(survey, "free_memory", lambda: 1000)
    with pytest.raises(CapacityError, match="These states take .* 1,000 are free"):
        act.survey(model, {"pooled": [Gram()]}, texts(3), progress=False)
    assert model.ran == []


def test_a_pattern_in_the_brackets_points_to_find():
    found = act.survey(FakeModel(), {"blocks.*.mlp.post": [Count()]}, texts(3), progress=False)
    with pytest.raises(UnknownSite, match="survey.find"):
        found["blocks.*.mlp.post"]
    assert np.array_equal(
        [s.rows for s in found.find("blocks.*.mlp.post", "Count").values()], [found["blocks.0.mlp.post"]["Count"].rows] * 2
    )
