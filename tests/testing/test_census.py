"""The table of model families: what it says still holds, and the checks behind it can fail."""

import dataclasses
import json
from pathlib import Path

import pytest

import activarium as act
from activarium import testing
from activarium.errors import UnknownName
from activarium.testing import census
from activarium.testing.census._oracle import ask

FACTS = json.loads((Path(__file__).parents[2] / "data" / "families.json").read_text(encoding="utf-8"))
TABLE = {c["name"]: c for c in FACTS["classes"]}
CLASSES = {c.name: c for c in census.every_class()}
QUICK = ("LlamaForCausalLM", "OPTForCausalLM", "RobertaForMaskedLM", "DeiTModel", "MambaForCausalLM", "BloomForCausalLM")
SLOW = (
    "ApertusForCausalLM", "BertLMHeadModel", "BioGptForCausalLM", "CohereForCausalLM", "Exaone4ForCausalLM", "FalconForCausalLM",
    "GemmaForCausalLM", "Gemma3ForCausalLM", "GlmForCausalLM", "GPTNeoXForCausalLM", "GPTBigCodeForCausalLM", "GptOssForCausalLM",
    "GraniteForCausalLM", "MiniCPM3ForCausalLM", "MixtralForCausalLM", "NanoChatForCausalLM", "NemotronForCausalLM", "Olmo2ForCausalLM",
    "Phi3ForCausalLM", "Qwen2MoeForCausalLM", "Qwen3ForCausalLM", "DeepseekV3ForCausalLM", "StableLmForCausalLM", "Starcoder2ForCausalLM",
    "BambaForCausalLM", "JambaForCausalLM", "AlbertForMaskedLM", "ElectraForMaskedLM", "ModernBertForMaskedLM", "FNetForMaskedLM",
    "BartForConditionalGeneration", "T5ForConditionalGeneration", "BeitForImageClassification", "Dinov2ForImageClassification",
    "CLIPModel", "SiglipModel",
)  # fmt: skip
SAMPLE = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.mark.filterwarnings("ignore")  # what a class of transformers says about its own tiny configuration
@pytest.mark.parametrize("name", SAMPLE)
def test_class_is_as_the_table_says(name):
    said, found = TABLE[name], census.examine(CLASSES[name]).to_json()
    assert found["outcome"] == said["outcome"], found["reason"]
    assert found["algebra"] == said["algebra"]
    assert set(found["missing"]) <= set(said["missing"]), "sites were lost"
    for check, answer in said["oracle"].items():
        if answer.startswith("agree"):
            assert found["oracle"][check] == answer


def test_sample_has_forty_classes_of_every_kind():
    assert len({*QUICK, *SLOW}) >= 40
    assert {CLASSES[n].task for n in (*QUICK, *SLOW)} >= {
        "causal language model", "masked language model", "encoder–decoder", "image classifier", "two towers"
    }  # fmt: skip


def test_table_names_every_class_and_counts_itself():
    outcomes = [c["outcome"] for c in TABLE.values()]
    assert set(TABLE) == set(CLASSES)
    assert {o: outcomes.count(o) for o in census.OUTCOMES} == {o: FACTS["counts"][o] for o in census.OUTCOMES}
    assert outcomes.count("certified") >= 120
    page = (Path(__file__).parents[2] / "data" / "families.md").read_text(encoding="utf-8")
    assert f"| certified | {outcomes.count('certified')} |" in page
    assert all(f"`{name}`" in page for name in TABLE)


def test_no_class_is_contradicted_and_every_gap_has_a_reason():
    for name, said in TABLE.items():
        assert said["outcome"] != "disputed", name
        assert not any(a.startswith("differ") for a in said["oracle"].values()), name
        assert all(len(reason) > 10 for reason in said["missing"].values()), name
        if said["outcome"] == "certified":
            assert not said["missing"]
            assert said["checks"] > 60
        if said["outcome"] in ("refused", "not built"):
            assert said["reason"], name
    seen = sum(c["oracle"].get("states", "").startswith("agree") for c in TABLE.values() if c["outcome"] == "certified")
    assert seen >= 0.9 * FACTS["counts"]["certified"], "the reference must have looked at nearly all of them"


# --- the reference, which shares nothing with the site finder, must be able to say no


def _replanted(site, other):
    model = act.wrap(*testing.tiny("llama"), certify=False)
    model.sites._sites[site] = dataclasses.replace(model.sites[site], place=model.sites[other].place, same_as=None)
    model.sites._found.clear()
    return model


def test_reference_agrees_with_a_sound_model():
    answers = ask(act.wrap(*testing.tiny("llama"), certify=False))
    assert answers == {"states": "agree: 3", "patterns": "agree: 2", "names": "agree: 12"}


def test_reference_contradicts_a_stream_read_elsewhere():
    assert ask(_replanted("blocks.0.resid_post", "blocks.0.attn.proj"))["states"] == "differ: state 1"


def test_reference_contradicts_patterns_of_another_scale(monkeypatch):
    from activarium.capture import _kernel

    real = _kernel.describe
    monkeypatch.setattr(_kernel, "describe", lambda *args: dataclasses.replace(real(*args), scaling=0.2))
    assert ask(act.wrap(*testing.tiny("llama"), certify=False))["patterns"] == "differ: blocks.0.attn.pattern"


def test_reference_contradicts_a_query_that_is_called_a_key():
    model = act.wrap(*testing.tiny("llama"), certify=False)
    places = model.anatomy.stacks[""].blocks[1].places
    places["attn.q"] = places["attn.k"]
    assert ask(model)["names"] == "differ: blocks.1.attn.q is read off model.layers.1.self_attn.k_proj"


# --- the walk


@pytest.mark.slow
def test_a_class_that_does_not_end_costs_itself_only():
    (late,) = census.walk(["LlamaForCausalLM"], limit=0.0)
    assert (late.outcome, late.reason) == ("refused", "not done after 0 s")


def test_walk_refuses_an_unknown_class():
    with pytest.raises(
        UnknownName, match=r"No text or vision class of transformers called 'LamaForCausalLM'. Did you mean 'LlamaForCausalLM'"
    ):
        next(census.walk(["LamaForCausalLM"]))


def test_parts_are_merged_into_the_table(tmp_path):
    one = census.Verdict("A", "causal language model", "certified", checks=9)
    two = census.Verdict("B", "causal language model", "partly", missing={"blocks.*.mlp.act": "no module computes it <here>|there"})
    census.write([one, two], tmp_path)
    census.write([census.Verdict("A", "causal language model", "refused", "the certificate failed")], tmp_path)
    again = {v.name: v.outcome for v in census.read(tmp_path)}
    assert again == {"A": "refused", "B": "partly"}
    page = (tmp_path / "families.md").read_text(encoding="utf-8")
    assert "| certified | 0 |" in page
    assert "&lt;here>\\|there" in page


def test_a_tiny_configuration_has_a_layer_of_every_kind():
    model = census.tiny_model("Gemma3ForCausalLM", "gemma3_text")
    assert set(model.config.layer_types) == {"sliding_attention", "full_attention"}
    assert sum(p.numel() for p in model.parameters()) < 200_000
