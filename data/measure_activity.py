"""How sparse are the bundled models, where are their massive activations, which layers are silent? Writes `data/activity.md`.

python data/measure_activity.py                                  scribe, scribe-relu and glyph
python data/measure_activity.py FOLDER --texts stories.txt       any language model: prints, writes nothing
python data/measure_activity.py FOLDER --images pictures.npz     any vision model; the file holds `images` and, if known, `labels`
"""

import argparse
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

import activarium as act
from activarium.data import corpus, scenes  # pyright: ignore[reportAttributeAccessIssue]
from activarium.results import Report

HERE = Path(__file__).parent
SITES = [
    "embed",
    "blocks.*.resid_pre",
    "blocks.*.resid_mid",
    "blocks.*.resid_post",
    "blocks.*.attn.in",
    "blocks.*.attn.z",
    "blocks.*.mlp.*",
]
SENTENCES, SCENES, SEED = 12, 96, 31


def questions(model, inputs, recording, texts: bool) -> Iterator[tuple[str, Callable[[], Report]]]:
    """Each question of the report and what answers it."""
    ask = act.analyses
    yield "Zeros", lambda: ask.lazy_neurons(recording)
    yield "Sparsity without a threshold", lambda: ask.sparsity_indices(recording)
    yield "Sparsity by threshold, and what each costs", lambda: ask.activation_thresholds(recording, model, inputs)
    yield "CETT", lambda: ask.cett_sparsity(recording, model, inputs)
    yield "The k largest neurons alone", lambda: ask.top_k_inference(model, inputs)
    zeros = bool((recording["blocks.0.mlp.post"].rows(range(1)) == 0).any())
    # A smooth activation has no zeros: there the neurons that hold 90 % of a row's energy count as needed.
    yield "Is the sparsity contextual?", lambda: ask.contextual_sparsity(recording, model, active=None if zeros else 0.9)
    yield "Core neurons", lambda: ask.core_neurons(recording)
    yield "Hidden dimensions", lambda: ask.hidden_dimensions(recording)
    yield "Directions in use", lambda: ask.effective_rank(recording)
    yield "Massive activations", lambda: ask.massive_activations(recording)
    if texts:
        yield "Massive activations with and without a first token", lambda: ask.massive_beginnings(model, inputs)
        yield "What the massive activations are for", lambda: ask.massive_interventions(model, inputs)
    yield "Outlier rules side by side", lambda: ask.massive_rules(recording)
    yield "High-norm tokens", lambda: ask.token_norms(recording)
    yield "Outlier channels", lambda: ask.outlier_channels(recording, model)
    yield "Attention sinks", lambda: ask.attention_sinks(model, inputs, subtract=True)
    yield "Voids", lambda: ask.layer_voids(recording)
    yield "Block influence", lambda: ask.block_influence(recording, model, inputs)


def bundled() -> Iterator[tuple[str, object, bool]]:
    """Name, inputs, and whether they are texts."""
    texts = [item.text for family in corpus.FAMILIES for item in corpus.held_out(family, SEED, SENTENCES)]
    images, labels = scenes.batch(scenes.TEST_SEED, 0, SCENES)
    yield "scribe", texts, True
    yield "scribe-relu", texts, True
    yield "glyph", {"images": list(images), "label": labels}, False


def given(folder: str, texts: Path | None, images: Path | None) -> Iterator[tuple[str, object, bool]]:
    """The one model that was asked for."""
    if texts is not None:
        yield folder, [line for line in texts.read_text(encoding="utf-8").splitlines() if line.strip()], True
    elif images is not None:
        with np.load(images) as file:
            found = {"images": list(file["images"])}
            yield folder, found | ({"label": file["labels"]} if "labels" in file.files else {}), False
    else:
        raise SystemExit("Give --texts or --images for a model of your own.")


def answers(name: str, inputs, texts: bool) -> Iterator[str]:
    """The report on one model, line by line."""
    model = act.load(name)
    recording = model.run(inputs, read=[s for s in SITES if present(model, s)])
    count = len(inputs) if texts else len(inputs["images"])
    yield f"## {Path(name).name}\n\n{count} {'texts' if texts else 'images'}, {len(recording['blocks.0.resid_post']):,} rows.\n"
    for question, answer in questions(model, inputs, recording, texts):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say stands in the reports' own words
            try:
                words = answer().words
            except act.errors.ActivariumError as error:
                words = (f"Not answered: {str(error).splitlines()[0]}",)
        yield f"**{question}{'' if question.endswith('?') else '.'}**\n" + "\n".join(f"- {line}" for line in words) + "\n"


def present(model, pattern: str) -> bool:
    """Does the model have any such site?"""
    try:
        model.sites.select(pattern)
    except act.errors.UnknownSite:
        return False
    return True


def main() -> None:
    """The whole report."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", nargs="?")
    options.add_argument("--texts", type=Path)
    options.add_argument("--images", type=Path)
    asked = options.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# What is active in the bundled models\n",
        "Written by `python data/measure_activity.py`, in the words of the analyses themselves.\n",
    ]
    for name, inputs, texts in given(asked.model, asked.texts, asked.images) if asked.model else bundled():
        for line in answers(name, inputs, texts):
            print(line, flush=True)
            lines.append(line)
    if not asked.model:
        (HERE / "activity.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
