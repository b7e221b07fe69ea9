"""The folder: whole or not there, every damaged file named, nothing outside of it."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from activarium.dashboards import build, folder, making, open_pages
from activarium.errors import CorruptStore, StoreError

from .made import child, files, recording, sae


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return build(sae(features=300), recording(), tmp_path_factory.mktemp("f") / "a.features", progress=False).path


@pytest.fixture
def copy(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "copy.features"))


@pytest.mark.parametrize(
    "name", ["pages/00001.safetensors", "columns.safetensors", "text.safetensors", "strings.json", "heads.safetensors"]
)
def test_a_flipped_bit_is_named_when_the_file_is_used(copy, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    pages = open_pages(copy)
    assert "histogram" in pages.page(0) if "pages" in name else True, "other pages are as they were"
    with pytest.raises(CorruptStore, match=name.replace(".", r"\.")):
        pages.columns["fires"], pages.find("w5"), pages.page(299)


def test_a_short_or_missing_file_is_named_when_the_folder_is_opened(copy):
    page = copy / "pages" / "00000.safetensors"
    page.write_bytes(page.read_bytes()[:-1])
    with pytest.raises(CorruptStore, match=r"00000\.safetensors has .* bytes; the manifest lists"):
        open_pages(copy)
    page.unlink()
    with pytest.raises(CorruptStore, match=r"00000\.safetensors is missing"):
        open_pages(copy)


def test_a_changed_manifest_another_version_and_another_format(copy):
    place = copy / "manifest.json"
    text = place.read_text()
    place.write_text(text.replace('"rows": 3000', '"rows": 3001'))
    with pytest.raises(CorruptStore, match="its seal does not fit"):
        open_pages(copy)
    place.write_text(text.replace('"version": 1', '"version": 2'))
    with pytest.raises(StoreError, match="version 2; this activarium reads version 1"):
        open_pages(copy)
    place.write_text(text.replace("activarium features", "something"))
    with pytest.raises(StoreError, match="holds something else"):
        open_pages(copy)
    place.write_text("{")
    with pytest.raises(CorruptStore, match="not readable JSON"):
        open_pages(copy)
    with pytest.raises(StoreError, match=r"no manifest\.json\. Pages beside it: copy\.features"):
        open_pages(copy.parent / "none.features")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/../../b", "c:\\x", ""])
def test_no_path_leads_out_of_the_folder(copy, name):
    body = json.loads((copy / "manifest.json").read_text())
    body.pop("seal")
    body["files"][name] = {"bytes": 1, "blake2b": "0" * 64}
    body["seal"] = folder.digest(folder._dump(body))
    (copy / "manifest.json").write_bytes(folder._dump(body))
    with pytest.raises(CorruptStore, match="outside of it"):
        open_pages(copy)


def test_a_folder_that_exists_is_refused_or_replaced(tmp_path):
    first = files(build(sae(), recording(), tmp_path / "a.features", progress=False).path)
    with pytest.raises(StoreError, match="exists already"):
        build(sae(), recording(), tmp_path / "a.features", progress=False)
    build(sae(), recording(), tmp_path / "a.features", progress=False, overwrite=True)
    assert files(tmp_path / "a.features") == first and [p.name for p in tmp_path.iterdir()] == ["a.features"]


def test_a_failure_at_the_end_keeps_what_was_there(tmp_path, monkeypatch):
    build(sae(), recording(), tmp_path / "a.features", progress=False)
    before = files(tmp_path / "a.features")

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "groups", fail)
    with pytest.raises(KeyboardInterrupt):
        build(sae(), recording(), tmp_path / "a.features", progress=False, overwrite=True, seed=3)
    assert files(tmp_path / "a.features") == before and [p.name for p in tmp_path.iterdir()] == ["a.features"]


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_that_opens(tmp_path):
    script = (
        "import time; plain = making.Draft.words\n"
        "def slow(self, *a):\n    plain(self, *a); print('half', flush=True); time.sleep(60)\n"
        "making.Draft.words = slow\nbuild(sae(), recording(), sys.argv[1], progress=False)\n"
    )
    path = tmp_path / "a.features"
    process = subprocess.Popen(**child(script, path), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert [p.name for p in tmp_path.iterdir()] == ["a.features.part"] and list((tmp_path / "a.features.part").iterdir())
    for there in (path, tmp_path / "a.features.part"):
        with pytest.raises(StoreError):
            open_pages(there)
    build(sae(), recording(), path, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["a.features"]


@pytest.mark.slow
def test_many_features_open_in_a_moment(tmp_path):
    import numpy as np

    draft = folder.Draft(tmp_path / "a.features", False)
    for name in ("columns.safetensors",):
        draft.arrays(name, {"fires": np.arange(100_000.0), "max": np.ones(100_000)})
    for group in range(391):
        draft.arrays(f"pages/{group:05d}.safetensors", {"feature": np.arange(256)})
    counts = {"features": 100_000, "built": 100_000, "rows": 1}
    draft.finish({"title": "many", "columns": ["fires", "max"], "counts": counts})
    started = time.perf_counter()
    assert open_pages(tmp_path / "a.features").columns["fires"][-1] == 99_999
    assert time.perf_counter() - started < 5  # 0.02 s on an idle machine
