"""The terminal's door: what it prints, and that our errors come without a traceback and with exit code 2."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import activarium as act
from activarium import cli, gallery
from activarium.errors import CertificateError, InputError


def run(*words: Any) -> Result:
    return CliRunner().invoke(cli.app, [str(w) for w in words])


def test_list_names_everything_with_its_question() -> None:
    done = run("list")
    assert done.exit_code == 0
    for word in ("Analyses", "Widgets", "Bundled models", "lazy_neurons", "logit_lens", "Heatmap", "TokenStrip"):
        assert word in done.output


def test_describe_prints_the_docstring() -> None:
    done = run("describe", "logit_lens")
    assert done.exit_code == 0
    assert done.output.startswith("act.analyses.logit_lens(")
    assert "Source:" in done.output


def test_an_unknown_name_is_a_lesson_not_a_traceback() -> None:
    done = run("describe", "logit_lense")
    assert done.exit_code == 2
    assert "UnknownName: No analysis, widget or model called 'logit_lense'. Did you mean 'logit_lens'" in done.stderr
    assert "Traceback" not in done.output


def test_the_errors_of_others_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "everything", lambda: 1 / 0)
    assert isinstance(run("list").exception, ZeroDivisionError)


def test_doctor_prints_the_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SimpleNamespace(certificate="pattern @ v == z: passed")
    monkeypatch.setitem(vars(act), "load", lambda name: model)
    done = run("doctor", "scribe")
    assert (done.exit_code, done.output.strip()) == (0, "pattern @ v == z: passed")


def test_doctor_all_writes_the_table_and_fails_on_a_dispute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from activarium.testing import census

    one = census.Verdict("LlamaForCausalLM", "causal language model", "certified", checks=241, oracle={"states": "agree: 3"})
    two = census.Verdict("MambaForCausalLM", "causal language model", "partly", missing={"blocks.*.attn.q": "no interface"})
    monkeypatch.setattr(census, "walk", lambda only, workers: iter([one, two]))
    done = run("doctor", "--all", "--only", one.name, "--only", two.name, "--to", tmp_path)
    assert done.exit_code == 0
    assert "LlamaForCausalLM: certified (241 checks)" in done.stdout
    assert "  blocks.*.attn.q: no interface" in done.stdout
    assert "1 certified, 1 partly, 0 refused" in done.stdout
    assert "`MambaForCausalLM`" in (tmp_path / "families.md").read_text(encoding="utf-8")
    wrong = census.Verdict("A", "text encoder", "disputed", oracle={"states": "differ: state 1"})
    monkeypatch.setattr(census, "walk", lambda only, workers: iter([wrong]))
    assert run("doctor", "--all").exit_code == 1


def test_doctor_needs_a_model_or_all(tmp_path: Path) -> None:
    assert "Name a model to examine, or give --all for every class" in run("doctor").stderr
    assert (
        f"There is no folder {tmp_path / 'no'} to write families.md into; make it first."
        in run("doctor", "--all", "--to", tmp_path / "no").stderr
    )


@pytest.mark.slow
def test_doctor_all_examines_a_class_in_its_own_process() -> None:
    done = run("doctor", "--all", "--only", "LlamaForCausalLM")
    assert done.exit_code == 0
    assert "LlamaForCausalLM: certified (" in done.stdout
    assert "'states': 'agree: 3'" in done.stdout


def test_doctor_fails_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        raise CertificateError("blocks.1.attn.z is off by 0.5")

    monkeypatch.setitem(vars(act), "load", load)
    done = run("doctor", "scribe")
    assert done.exit_code == 1
    assert "scribe fails its certificate.\nblocks.1.attn.z is off by 0.5" in done.stderr


def test_capture_hands_on_what_it_was_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: dict[str, Any] = {}

    def capture(model: str, data: list, **options: Any) -> str:
        calls.update(model=model, data=data, **options)
        return "12 rows"

    monkeypatch.setitem(vars(act), "load", lambda name: f"model {name}")
    monkeypatch.setitem(vars(act), "capture", capture)
    (tmp_path / "texts.txt").write_text("the cat sat\n\nwho ?\n")
    done = run(
        "capture", "scribe", "--data", tmp_path / "texts.txt", "--sites", "blocks.*.mlp.post", "--to", "a.acts", "--dtype", "bfloat16"
    )
    assert done.exit_code == 0, done.output
    assert calls == {
        "model": "model scribe",
        "data": ["the cat sat", "who ?"],
        "sites": ["blocks.*.mlp.post"],
        "to": Path("a.acts"),
        "dtype": "bfloat16",
    }
    calls.clear()
    run("capture", "scribe", "--data", tmp_path / "texts.txt", "--sites", "logits", "--to", "a.acts", "--append", "--on", "10.0.0.5:6379")
    assert calls["append"] is True and calls["on"] == "10.0.0.5:6379" and "dtype" not in calls


def test_capture_says_which_option_is_missing() -> None:
    done = run("capture", "scribe")
    assert done.exit_code == 2
    assert "--data" in done.stderr


def test_inputs_from_every_kind_of_file(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "a.json").write_text(json.dumps([[1, 2], [3]]))
    assert cli.read_inputs(tmp_path / "a.json") == [[1, 2], [3]]
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, level in (("b.png", 200), ("a.png", 10)):
        Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    assert [p.getpixel((0, 0)) for p in cli.read_inputs(folder)] == [(10, 10, 10), (200, 200, 200)]
    assert len(cli.read_inputs(folder / "a.png")) == 1


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "word.json").write_text('"hello"')
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "none").mkdir()
    for name, words in {
        "missing.txt": r"There is no file .*missing\.txt\. Give a text file",
        "bad.json": "cannot be read as text: .* Save it as UTF-8",
        "word.json": "holds str; wanted a list",
        "empty.txt": "holds no examples",
        "latin.txt": "cannot be read as text",
        "broken.png": "cannot be read as an image",
        "none": "holds no images",
    }.items():
        with pytest.raises(InputError, match=words):
            cli.read_inputs(tmp_path / name)


def test_the_gallery_is_written_between_its_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{gallery.START}\nold\n{gallery.END}\nafter\n")
    assert run("gallery", "--readme", readme, "--check").exit_code == 1
    assert run("gallery", "--readme", readme).exit_code == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "\nold\n" not in text
    assert "| [`lazy_neurons`](notebooks/analyses/sparsity/lazy_neurons.ipynb) |" in text or "| `lazy_neurons` |" in text
    assert run("gallery", "--readme", readme, "--check").exit_code == 0
    assert "already up to date" in run("gallery", "--readme", readme).output


def test_a_readme_without_markers_is_left_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("nothing here")
    done = run("gallery", "--readme", readme)
    assert done.exit_code == 2
    assert "lacks the two marker lines of the gallery" in done.stderr
    assert readme.read_text() == "nothing here"


def test_an_atlas_is_told_and_written(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("Anna gave Tom the book .\nTom went to the park .\n")
    done = run("atlas", "scribe", "--data", tmp_path / "texts.txt", "--to", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    assert "the heaviest outlier is at" in done.output
    assert "Root mean square" in (tmp_path / "page.html").read_text(encoding="utf-8")
