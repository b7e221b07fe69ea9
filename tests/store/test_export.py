"""Exports: other libraries read back every number to the bit, and the row tables."""

import json
import sys

import numpy as np
import pytest
import torch

from activarium.errors import InputError, MissingExtra, StoreError
from activarium.workflows.capture import capture

from .conftest import EVERYTHING
from .fake_model import FakeModel, texts

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BITS = {torch.bfloat16: torch.uint16}


@pytest.fixture(params=DTYPES, ids=str)
def made(request, tmp_path):
    return capture(
        FakeModel(dtype=request.param), texts(20), EVERYTHING, tmp_path / "s.acts", batch_tokens=64, shard_bytes=9000, progress=False
    )


def bits(values):
    return values.contiguous().view(torch.uint8)


def test_zarr(made, tmp_path):
    zarr = pytest.importorskip("zarr", reason="zarr is not installed: pip install zarr")
    group = zarr.open_group(str(made.export("zarr", tmp_path / "s.zarr")), mode="r")
    for name in made:
        array = group[f"sites/{name}"]
        found = torch.from_numpy(array[:])
        assert found.dtype == BITS.get(made[name].dtype, made[name].dtype)
        assert array.attrs["dtype"] == str(made[name].dtype).removeprefix("torch.")
        assert array.attrs["axes"] == " ".join(made[name].axes)
        assert torch.equal(bits(found.view(made[name].dtype)), bits(made[name].tensor))
    for space, rows in made.rows.items():
        for column in rows.columns:
            assert group[f"rows/{space or 'main'}/{column}"][:].tolist() == rows[column].tolist()
    assert group.attrs["aliases"] == {"blocks.1.resid_pre": "blocks.0.resid_post"}
    assert group.attrs["provenance"]["id"] == made.provenance["id"]


def test_datasets(made, tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install datasets")
    datasets.disable_progress_bars()
    made.export("datasets", tmp_path / "s")
    found = datasets.load_from_disk(str(tmp_path / "s"))
    about = json.loads((tmp_path / "s" / "activarium.json").read_text())
    for space, rows in made.rows.items():
        table = found[space or "main"]
        for column in rows.columns:
            assert list(table[column]) == rows[column].tolist()
        for name in (n for n in made if made._space(n) == space):
            assert about["sites"][name] == {"axes": " ".join(made[name].axes), "rows": space, "dtype": str(made[name].dtype)[6:]}
            column = table.data.column(name).combine_chunks()
            while hasattr(column, "flatten") and column.type.__class__.__name__ == "FixedSizeListType":
                column = column.flatten()
            numbers = torch.from_numpy(np.array(column)).view(made[name].dtype).view(made[name].shape)
            assert torch.equal(bits(numbers), bits(made[name].tensor))


def test_a_selection_is_exported_alone(made, tmp_path):
    zarr = pytest.importorskip("zarr", reason="zarr is not installed: pip install zarr")
    chosen = made.select({"example": {2, 5}})
    group = zarr.open_group(str(chosen.export("zarr", tmp_path / "two.zarr")), mode="r")
    assert set(group["rows/main/example"][:].tolist()) == {2, 5}
    assert group["sites/pooled"].shape == (2, 8)


def test_words_of_refusals(made, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"export writes 'zarr' or 'datasets', not 'hdf5'"):
        made.export("hdf5", tmp_path / "x")
    with pytest.raises(StoreError, match=r"s.acts exists already. Choose another folder, or remove it"):
        made.export("zarr", made.path)
    for package in ("zarr", "datasets"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtra, match=rf"needs the package {package}, which is not installed. pip install {package}"):
            made.export(package, tmp_path / "y")
    assert not (tmp_path / "y").exists()
