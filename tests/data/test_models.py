"""The bundled models: they load quietly, do what their cards claim, and their training is reproducible."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoImageProcessor, AutoTokenizer, GPT2LMHeadModel, ViTForImageClassification

from activarium.data import (
    cards,
    corpus,
    measure_glyph,
    measure_scribe,
    scenes,
    train_glyph,
    train_scribe,
    write_checksums,
    write_samples,
)  # fmt: skip

DATA = Path(cards.__file__).parent
SCRIBES = ("scribe", "scribe-relu")
FRESH = 424_242  # a seed that neither training nor the cards use


def card_of(name):
    return json.loads((DATA / name / "card.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=SCRIBES)
def scribe(request):
    folder = DATA / request.param
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = GPT2LMHeadModel.from_pretrained(folder, local_files_only=True).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return request.param, model, tokenizer


@pytest.fixture(scope="module")
def glyph():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = ViTForImageClassification.from_pretrained(DATA / "glyph", local_files_only=True).eval()
        processor = AutoImageProcessor.from_pretrained(DATA / "glyph", local_files_only=True)
    return model, processor


def agrees(claimed, found):
    """Do the two intervals meet?"""
    return claimed["interval_95"][0] <= found["interval_95"][1] and found["interval_95"][0] <= claimed["interval_95"][1]


def test_the_wilson_interval_by_hand():
    # 8 of 10: centre (0.8 + 3.8415/20) / 1.38415 = 0.7167, half width 0.2266.
    assert cards.wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert cards.wilson(1.0, 10)[1] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="found n = 0"):
        cards.wilson(0.5, 0)


def test_every_scribe_does_what_its_card_claims(scribe):
    name, model, tokenizer = scribe
    claims = card_of(name)["held_out"]
    found = measure_scribe.behaviours(model, tokenizer, FRESH, 150)
    assert set(found) == set(claims)
    assert [key for key in claims if not agrees(claims[key], found[key])] == []


def test_every_scribe_reaches_its_targets(scribe):
    claims = card_of(scribe[0])["held_out"]
    assert claims["ioi: receiver is first choice"]["interval_95"][0] >= 0.95
    assert claims["induction: second half is first choice"]["interval_95"][0] >= 0.9
    assert claims["agreement: with attractors"]["interval_95"][0] >= 0.95


def test_the_saved_weights_end_the_massive_series(scribe):
    name, model, _ = scribe
    record = json.loads((DATA / name / "massive_series.json").read_text(encoding="utf-8"))
    steps = [point["step"] for point in record["series"]]
    assert steps == train_scribe.probe_steps(card_of(name)["recipe"]["steps"])
    rows = train_scribe.probe_rows(model.config.n_positions)
    assert len(rows) == record["sequences"]
    assert train_scribe.massive_ratios(model, rows) == pytest.approx(record["series"][-1]["ratio"], rel=1e-3)


def test_the_massive_ratio_by_hand():
    stream = torch.tensor([[[1.0, -2.0], [3.0, -40.0]], [[1.0, 1.0], [1.0, 5.0]]])
    # Lower medians 2 and 1, largest 40 and 5: ratios 20 and 5.
    assert train_scribe.massive_ratio(stream) == 12.5


def test_the_tokenizer_reads_and_writes_corpus_text(scribe):
    _, model, tokenizer = scribe
    for text in corpus.training_text(FRESH, 300):
        ids = tokenizer(text).input_ids
        assert tokenizer.convert_ids_to_tokens(ids) == ["<bos>", *corpus.words(text)]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) == list(corpus.VOCABULARY)
    assert tokenizer("unheard").input_ids[1] == tokenizer.unk_token_id
    assert model.config.vocab_size == len(tokenizer)


def test_generation_goes_on_sensibly(scribe):
    _, model, tokenizer = scribe
    inputs = tokenizer("The capital of the country of Barlow is", return_tensors="pt")
    told = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert tokenizer.decode(told[0], skip_special_tokens=True).endswith("is Belmar.")


def test_no_activation_share_was_invented(scribe):
    name, model, tokenizer = scribe
    claimed = card_of(name)["nonzero_share_of_activation_output_per_layer"]
    found = measure_scribe.nonzero_shares(model, tokenizer, corpus.training_text(FRESH, 200))
    assert found == pytest.approx(claimed, abs=0.03)


def test_glyph_does_what_its_card_claims(glyph):
    claims = card_of("glyph")["held_out"]
    found = measure_glyph.behaviours(*glyph, FRESH, 500)
    assert claims["accuracy"]["interval_95"][0] >= 0.95
    assert [key for key in claims if not agrees(claims[key], found[key])] == []


def test_glyph_is_not_measured_on_its_training_seed(glyph):
    with pytest.raises(ValueError, match="were trained on"):
        measure_glyph.behaviours(*glyph, scenes.TRAIN_SEED, 10)


def test_the_processor_gives_what_glyph_was_trained_on(glyph):
    images, _ = scenes.batch(FRESH, 0, 3)
    assert torch.equal(glyph[1](list(images), return_tensors="pt").pixel_values, train_glyph.pixels(images))


def test_glyph_looks_at_the_object(glyph):
    names = ("star", "ring", "cross")
    images = np.stack([scenes.scene(FRESH, index, shape=name).image for index in range(20) for name in names])
    wanted = [scenes.CLASSES.index(name) for _ in range(20) for name in names]
    assert (measure_glyph.guesses(*glyph, images) == wanted).mean() > 0.85


@pytest.mark.parametrize("name", [*SCRIBES, "glyph"])
def test_checksums_match(name):
    assert cards.sha256(DATA / name / "model.safetensors") == card_of(name)["sha256"]["model.safetensors"]
    assert sum(path.stat().st_size for path in (DATA / name).iterdir()) < 6_000_000


def test_the_readme_lists_every_file_as_it_is():
    assert write_checksums.table() in (DATA / "README.md").read_text(encoding="utf-8")


def test_the_samples_are_what_the_generators_give():
    texts = json.loads((DATA / "samples" / "texts.json").read_text(encoding="utf-8"))
    assert texts == json.loads(json.dumps(write_samples.sentences()))
    saved, drawn = load_file(DATA / "samples" / "scenes.safetensors"), write_samples.pictures()
    assert set(saved) == set(drawn)
    assert all(np.array_equal(saved[name], drawn[name]) for name in drawn)


def test_two_trainings_of_a_scribe_are_bit_equal():
    recipe = train_scribe.Recipe(steps=3, batch=4)
    states = [train_scribe.train(recipe, lambda *_: None).state_dict() for _ in range(2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    start = train_scribe.build_model(recipe).state_dict()
    assert not torch.equal(start["transformer.wte.weight"], states[0]["transformer.wte.weight"])


def test_two_trainings_of_glyph_are_bit_equal():
    recipe = train_glyph.Recipe(steps=3, batch=8, pool=16)
    states = [train_glyph.train(recipe, lambda *_: None).state_dict() for _ in range(2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_rows_are_whole_sentences_of_the_training_stream():
    recipe = train_scribe.Recipe(batch=3)
    tokens = [corpus.VOCABULARY[index] for row in next(train_scribe.batches(recipe, 5)).tolist() for index in row]
    seen = [token for token in tokens if token not in corpus.SPECIAL]
    stream = [token for text in corpus.training_text(5, 60) for token in corpus.words(text)]
    assert seen == stream[: len(seen)]
    assert tokens.count("<bos>") == tokens.count("<eos>") == 3
