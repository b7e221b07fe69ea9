"""How well do the bundled dictionaries stand for their sites, and what do their features mean? Writes `data/features.md`.

python data/measure_features.py
"""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import activarium as act
from activarium.data import corpus, scenes  # pyright: ignore[reportAttributeAccessIssue]
from activarium.dictionaries import Origin, SupervisedDictionary, controls
from activarium.results import Ranking, Result

HERE = Path(__file__).parent
SENTENCES, REVIEWS, PROMPTS, SCENES, SEED = 40, 300, 100, 400, 63
Question = tuple[str, Callable[[], Result]]


def of_scribe() -> Iterator[Question]:
    """What is asked of the dictionaries of a language model."""
    ask, model = act.analyses, act.load("scribe")
    resid, mlp = act.dictionaries.load("scribe-resid"), act.dictionaries.load("scribe-mlp")
    texts = [item.text for family in corpus.FAMILIES for item in corpus.held_out(family, SEED, SENTENCES)]
    recording = model.run(texts, read=[resid.origin.site, mlp.origin.site])
    yield "Quality", lambda: ask.dictionary_quality({"scribe-resid": resid, "scribe-mlp": mlp}, recording, model, texts)
    yield "What scribe-resid leaves out", lambda: ask.dark_matter(resid, recording, model, texts[::5])
    yield "What scribe-mlp leaves out", lambda: ask.dark_matter(mlp, recording, model, texts[::5])
    yield "How features of scribe-resid lie to one another", lambda: ask.feature_neighbours(resid, recording)
    yield "Function tokens", lambda: ask.function_tokens(resid, recording)
    reviews = corpus.held_out("sentiment", SEED, REVIEWS)
    judged = model.run([e.prompt for e in reviews], read=[resid.origin.site, "blocks.*.attn.z", "blocks.3.resid_post"])
    verdicts = [e.answer for e in reviews]
    yield "Is the verdict of a review in a few features?", lambda: ask.sparse_probing(resid, judged, verdicts)
    yield "… or in a few heads?", lambda: ask.sparse_attention_vectors(judged, verdicts)
    yield from _of_names(model, resid)


def _of_names(model, resid) -> Iterator[Question]:
    """Three axes on indirect objects, at the row whose next token is the receiver."""
    ask, site = act.analyses, resid.origin.site
    learnt = corpus.held_out("ioi", 1, 8 * PROMPTS)
    rows = _ends(model.run([e.prompt for e in learnt], read=site), site)
    spread = model.run(corpus.training_text(9, 200), read=site)[site]
    compared = {
        "supervised": SupervisedDictionary.of_rows(rows, _names(learnt), "mse", origin=Origin(site=site)),
        "scribe-resid": resid,
        "32 components": controls.principal(spread, 32),
        "random directions": controls.random(resid),
    }
    examples = corpus.held_out("ioi", 2, PROMPTS)
    changed = [corpus.corrupt(e, "s2_to_io", i) for i, e in enumerate(examples)]
    prompts, others = ([e.prompt for e in some] for some in (examples, changed))
    answers, foils = ([e.answer for e in some] for some in (examples, changed))
    pairs = act.pairs(model, prompts, others, answers=answers, foils=foils)
    known, wanted = _names(examples), _names(changed)
    yield "Approximation of names", lambda: ask.dictionary_approximation(model, pairs, compared, -1, attributes=known)
    yield "Control of names", lambda: ask.dictionary_control(model, pairs, compared, known, wanted, -1)
    yield (
        "Interpretability of names",
        lambda: ask.dictionary_interpretability(compared, model.run([e.prompt for e in learnt], read=site), _names(learnt))["summary"],
    )


def _names(examples) -> dict[str, list]:
    return {name: [e.details[word] for e in examples] for name, word in {"io": "io", "s": "subject", "order": "order"}.items()}


def _ends(recording, site: str) -> torch.Tensor:
    table = recording.rows[""]
    return recording[site].tensor[[table.span(e).stop - 1 for e in table.examples]]


def of_glyph() -> Iterator[Question]:
    """What is asked of the dictionary of a vision model."""
    ask, model, patches = act.analyses, act.load("glyph"), act.dictionaries.load("glyph-resid")
    site = patches.origin.site
    images, labels = scenes.batch(scenes.TEST_SEED, 1000, SCENES)
    inputs, names = {"images": list(images), "label": labels.tolist()}, [scenes.CLASSES[i] for i in labels]
    recording = model.run(inputs, read=[site, "logits", "blocks.*.attn.z", "blocks.3.resid_post"])
    yield "Quality", lambda: ask.dictionary_quality({"glyph-resid": patches}, recording, model, inputs)
    yield "What glyph-resid leaves out", lambda: ask.dark_matter(patches, recording)
    yield "How features of glyph-resid lie to one another", lambda: ask.feature_neighbours(patches, recording)
    yield "Are shapes in a few features?", lambda: ask.sparse_probing(patches, recording, names)
    yield "… or in a few heads?", lambda: ask.sparse_attention_vectors(recording, names, rows="cls")
    strange = [scenes.scene(scenes.TEST_SEED, 3000 + i, omit_object=True) for i in range(SCENES // 4)]
    both = model.run([*images, *(s.image for s in strange)], read=[site, "logits"])
    outside = [False] * len(images) + [True] * len(strange)
    yield (
        "Are scenes without a shape told from others?",
        lambda: ask.novelty_scores(patches, both, [*names, *["none"] * len(strange)], outside),
    )
    drawn = [(s, c) for s in ("circle", "ring", "square", "star") for c in ("red", "blue", "white")]
    kinds = [(s, c, i) for k, (s, c) in enumerate(drawn) for i in range(24 * k, 24 * k + 24)]
    made = model.run([scenes.scene(scenes.TEST_SEED, i, shape=s, colour=c).image for s, c, i in kinds], read=site)
    ontology = {f"{s} {c}": (s, c) for s, c in drawn}
    yield "Do codes lie by shape?", lambda: ask.label_ontology(patches, made, [f"{s} {c}" for s, c, _ in kinds], ontology)


def said(answer: Result) -> list[str]:
    """What a result says: its words, or the lines of a ranking."""
    if hasattr(answer, "words"):
        return list(answer.words)  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(answer, Ranking)
    columns = {answer.unit or "value": answer.values} | dict(answer.columns)
    return [
        f"{name}: " + "; ".join(f"{c} {v[i]:.3g}" for c, v in columns.items() if v.dtype.kind == "f" and v[i] == v[i])
        for i, name in enumerate(answer.names)
    ]


def main() -> None:
    """The whole report."""
    torch.set_num_threads(1)
    lines = [
        "# What the bundled dictionaries hold\n",
        "Written by `python data/measure_features.py`, in the words of the analyses themselves, on sentences and scenes that neither the",
        "models nor the dictionaries were trained on.\n",
    ]
    for name, asked in {"scribe": of_scribe, "glyph": of_glyph}.items():
        lines.append(f"## {name}\n")
        for question, answer in asked():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what they say stands in the reports' own words
                words = said(answer())
            lines.append(f"**{question}{'' if question.endswith('?') else '.'}**\n" + "\n".join(f"- {line}" for line in words) + "\n")
            print(lines[-1], flush=True)
    (HERE / "features.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
