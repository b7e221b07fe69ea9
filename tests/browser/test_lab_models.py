"""A notebook on the bundled models in JupyterLab: what the page reads out is what plain transformers computes."""

import re

import numpy as np
import pytest
import torch

from activarium.data import folder, scenes

pytestmark = pytest.mark.browser

TEXT = "When Anna and Oscar went to the park, Oscar gave the book to Anna."
CELLS = [
    "import numpy as np\nimport activarium as act\nfrom activarium.data import scenes\nfrom activarium.results import Overlay",
    f"""scribe = act.load("scribe")
recording = scribe.run([{TEXT!r}], read=["blocks.*.resid_post", "logits"])
logits, ids = recording.logits.tensor, recording.rows[""]["token"]
surprise = np.r_[0, -logits.log_softmax(-1).numpy()[np.arange(len(ids) - 1), ids[1:]]][None]
strip = act.show(Overlay(surprise, ("loss",), tokens=tuple(recording.rows[""]["text"]), unit="nats", title="How surprised scribe is"))
strip""",
    """lens = act.analyses.logit_lens(recording, scribe)
heat = act.show(lens["probability"])
heat""",
    """glyph, scene = act.load("glyph"), scenes.scene(5, 3)
seen = glyph.run([scene.image], read=["blocks.*.resid_post", "logits"])
evidence = act.analyses.logit_lens(seen, glyph, image=scene.image)
overlay = evidence["overlay"]
disc = act.show(overlay.with_(values=overlay.values[-1:], names=overlay.names[-1:], mask=scene.mask))
disc""",
]


@pytest.fixture(scope="module")
def notebook(open_notebook):
    return open_notebook("models.ipynb", CELLS, widgets=3)


@pytest.fixture(scope="module")
def plain():
    """Log-probabilities of scribe on the text, without a line of our own code."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder("scribe"))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder("scribe")).eval()
    ids = torch.tensor(tokenizer(TEXT)["input_ids"])
    with torch.no_grad():
        return ids, model(ids[None]).logits[0].log_softmax(-1)


def test_token_strip_reads_out_the_loss(notebook, plain, screenshots):
    ids, said = plain
    strip = notebook.widget("tokens")
    for position in (4, 11, 14):
        strip.root.locator(".act-token").nth(position).hover()
        strip.settle()
        assert f"position {position}" in strip.read_out()
        assert np.isclose(strip.value(), -float(said[position - 1, ids[position]]), rtol=1e-4, atol=1e-5)
    strip.click()
    assert f"'position': {position}" in notebook.run("print(strip.pinned)")
    strip.picture(screenshots / "models_token_strip.png")


def test_heatmap_reads_out_the_models_own_probability(notebook, plain, screenshots):
    _, said = plain
    heat = notebook.widget("heatmap")
    seen = set()
    for share in (0.3, 0.5, 0.7):
        heat.move_to(share, 0.5)
        heat.press(*["ArrowDown"] * 6)  # the last layer is the model's own answer
        position = int(re.search(r"position (\d+)", heat.read_out()).group(1))
        assert np.isclose(heat.value(), float(said[position].exp().max()), rtol=1e-4, atol=1e-6)
        assert int(notebook.run("print(heat.pointed['position'])")) == position
        seen.add(position)
    assert len(seen) == 3
    heat.picture(screenshots / "models_heatmap.png")


def test_image_overlay_reads_out_the_evidence_of_a_patch(notebook, screenshots):
    """The truth: glyph's own norm and head on that patch's last state, recomputed here with plain modules."""
    import transformers

    scene = scenes.scene(5, 3)
    processor = transformers.AutoImageProcessor.from_pretrained(folder("glyph"))
    model = transformers.AutoModelForImageClassification.from_pretrained(folder("glyph")).eval()
    kept = []
    blocks = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    handle = blocks[-1].register_forward_hook(lambda m, a, o: kept.append(o))
    with torch.no_grad():
        logits = model(processor(images=[scene.image], return_tensors="pt")["pixel_values"]).logits[0]
        rows = model.classifier(model.vit.layernorm(kept[0][0]))
    handle.remove()
    evidence = (rows - rows.mean(-1, keepdim=True))[1:, int(logits.argmax())].reshape(8, 8)
    disc = notebook.widget("image")
    for x, y in ((0.3, 0.3), (0.6, 0.55)):
        disc.move_to(x, y, ".act-panel[data-map] canvas")
        place = {k: int(v) for k, v in re.findall(r"\b([yx]) (\d+)", disc.read_out())}
        assert np.isclose(disc.value(), float(evidence[place["y"], place["x"]]), rtol=1e-3, atol=1e-4)
    disc.picture(screenshots / "models_image_overlay.png")


def test_nothing_was_refused_or_printed(notebook, screenshots):
    notebook.picture(screenshots / "models_notebook.png")
    assert notebook.troubles == []
    assert notebook.printed_troubles() == []
