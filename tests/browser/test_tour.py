"""The page that `make demo` writes, opened with the network off: its read-outs are the model's own numbers."""

import re

import numpy as np
import pytest
import torch

from activarium.data import folder
from activarium.demo import main

from lab import WidgetOnPage, wait_until  # isort: skip

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    return main(str(tmp_path_factory.mktemp("out")))


def test_the_tour_is_alive_without_a_network(offline, tour, screenshots):
    opened, troubles = offline
    opened.goto(tour.as_uri())
    wait_until(opened, "document.querySelectorAll('.act').length >= 3 && !document.querySelector('.act:not([data-ready])')")
    for kind in ("tokens", "heatmap", "image", "circuit"):
        assert opened.locator(f".act-{kind}").count() >= 1

    strip = WidgetOnPage(opened, opened.locator(".act-tokens").first)
    words = strip.root.locator(".act-token").all_text_contents()
    ids, losses = plain_losses([w.strip() for w in words])
    assert len(ids) == len(words)
    for position in (2, 5, len(words) - 2):
        strip.root.locator(".act-token").nth(position).hover()
        strip.settle()
        assert f"position {position}" in strip.read_out()
        assert np.isclose(strip.value(), losses[position - 1], rtol=1e-3, atol=1e-4)

    said = re.search(r"(\d+) of \d+ edges, all others as in the corrupted sentence", opened.locator("main").text_content())
    drawn = re.match(r"(\d+) of \d+ edges", opened.locator(".act-circuit output", has_text=" edges, ").text_content())
    assert said and drawn and int(said[1]) <= int(drawn[1]) < 2 * int(said[1]), "the circuit in words, and with the steps inside heads"
    opened.screenshot(path=screenshots / "tour.png", full_page=True)
    assert troubles == []


def plain_losses(words):
    """Loss of each token after the first, by transformers alone."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder("scribe"))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder("scribe")).eval()
    ids = torch.tensor(tokenizer.convert_tokens_to_ids(words))
    with torch.no_grad():
        logits = model(ids[None]).logits[0]
    return ids, torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none").tolist()
