"""Activations and Recordings: named axes, parts that are read when asked for, stacks, ragged sites, patterns of names."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from activarium._parts import Computed
from activarium.activations import AXES, Activations
from activarium.errors import AxisError, CapacityError, InputError, UnknownName, UnknownSite
from activarium.recording import Recording, is_pattern, matching
from activarium.rows import Rows


def table(*lengths: int) -> Rows:
    example = np.repeat(np.arange(len(lengths)), lengths)
    position = np.concatenate([np.arange(n) for n in lengths])
    text = np.array([f"w{p}" for p in position], dtype=object)
    return Rows({"example": example, "position": position, "text": text})


def counted(shape: tuple[int, ...], start: int = 0) -> torch.Tensor:
    return torch.arange(start, start + int(np.prod(shape)), dtype=torch.float32).reshape(shape)


def sharded() -> tuple[Activations, list[int]]:
    """Five rows in two parts, and a list that notes which part was read."""
    whole, read = counted((5, 2)), []

    def part(number: int, rows: slice) -> Computed:
        return Computed(whole[rows].shape, whole.dtype, lambda: read.append(number) or whole[rows])

    return Activations([part(0, slice(0, 3)), part(1, slice(3, 5))], "row d_model", site="blocks.0.mlp.out", index=table(3, 2)), read


def recording() -> Recording:
    sites = {
        f"blocks.{i}.mlp.post": Activations(counted((5, 2), 10 * i), "row d_mlp", site=f"blocks.{i}.mlp.post", index=table(3, 2))
        for i in (0, 2, 10)
    }
    sites["logits"] = Activations(counted((5, 4)), "row vocab", site="logits", index=table(3, 2))
    return Recording(sites, {"": table(3, 2)}, aliases={"blocks.0.mlp.hook_post": "blocks.0.mlp.post"})


def test_one_tensor_is_not_copied() -> None:
    values = counted((5, 2))
    assert Activations(values, "row d_model").need("row d_model").data_ptr() == values.data_ptr()


def test_parts_are_one_tensor_when_asked_for() -> None:
    activations, read = sharded()
    assert activations.shape == (5, 2)
    assert len(activations) == 5
    assert activations.nbytes == 40
    assert read == []
    assert torch.equal(activations.tensor, counted((5, 2)))
    assert [b.shape[0] for b in activations.batches()] == [3, 2]


def test_rows_read_only_the_parts_that_hold_them() -> None:
    activations, read = sharded()
    assert activations.rows([4, 3]).tolist() == [[8, 9], [6, 7]]
    assert read == [1]
    assert activations.rows([]).shape == (0, 2)
    with pytest.raises(InputError, match="has rows 0 to 4; asked for -1 to 2"):
        activations.rows([-1, 2])


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(1, 6), min_size=1, max_size=5), data=st.data())
def test_rows_do_not_depend_on_the_cuts(cuts: list[int], data: st.DataObject) -> None:
    whole = counted((sum(cuts), 3))
    wanted = data.draw(st.lists(st.integers(0, sum(cuts) - 1), max_size=8))
    activations = Activations(list(whole.split(cuts)), "row d_model")
    assert torch.equal(activations.rows(wanted), whole[wanted] if wanted else whole[:0])
    assert torch.equal(activations.tensor, whole)


def test_an_example_has_its_rows_and_its_table() -> None:
    second = sharded()[0].example(1)
    assert second.tensor.tolist() == [[6, 7], [8, 9]]
    assert second.index.examples == [1]
    with pytest.raises(InputError, match="There is no example 2"):
        sharded()[0].example(2)
    with pytest.raises(InputError, match="have no row index, so there is no example 0"):
        Activations(counted((5, 2)), "row d_model").example(0)


def test_patterns_are_ragged_until_padded() -> None:
    parts = [torch.ones(2, 3, 3), 2 * torch.ones(2, 2, 2)]
    pattern = Activations(parts, "head query key", site="blocks.0.attn.pattern", index=table(3, 2))
    assert pattern.ragged
    assert pattern.shape == (2, 2, 3, 3)
    assert pattern.example(1).labels == {"query": ["w0", "w1"], "key": ["w0", "w1"]}
    values, mask = pattern.padded()
    assert values.shape == (2, 2, 3, 3)
    assert values[1, 0].tolist() == [[2, 2, 0], [2, 2, 0], [0, 0, 0]]
    assert torch.equal(mask, values != 0)
    with pytest.raises(AxisError, match=r"Ask for one example with \.example\(e\), or for \.padded\(\)"):
        pattern.need("head query key")
    with pytest.raises(AxisError, match="only per-example sites"):
        sharded()[0].padded()
    assert pattern.mean("head").example(0).tensor.tolist() == torch.ones(3, 3).tolist()


def test_mean_over_rows_is_exact_in_float64() -> None:
    values = torch.tensor([[1e8], [1.0], [-1e8], [1.0]])
    mean = Activations(values, "row d_model").mean("row")
    assert mean.axes == ("d_model",)
    assert mean.tensor.dtype == torch.float64
    assert mean.tensor.item() == 0.5
    with pytest.raises(AxisError, match="There is no axis 'head' to average"):
        sharded()[0].mean("head")


def test_other_axes_are_refused_with_the_next_step() -> None:
    pattern = Activations(torch.zeros(12, 9, 9), "head query key", site="pattern")
    with pytest.raises(
        AxisError,
        match=r"This needs axes 'query key'; pattern has 'head query key' with shape \(12, 9, 9\)\.\s+Average the extra axis first: \.mean\('head'\)",
    ):
        pattern.need("query key")
    with pytest.raises(AxisError, match=r"Ask the recording for a stack of sites"):
        pattern.need("layer head query key")
    with pytest.raises(UnknownName, match="No axis called 'rows'. Did you mean 'row'"):
        Activations(torch.zeros(2, 2), "rows d_model")
    with pytest.raises(AxisError, match=r"Values of shape \(2, 2\) have 2 axes; 'row' name 1"):
        Activations(torch.zeros(2, 2), "row")


def test_a_budget_is_kept() -> None:
    activations, read = sharded()
    with pytest.raises(CapacityError, match="takes 40 bytes, more than the budget of 39. Go through .batches"):
        activations.need("row d_model", budget=39)
    assert read == []


def test_bfloat16_reaches_numpy_exactly() -> None:
    values = torch.tensor([[1.0, 0.3359375]], dtype=torch.bfloat16)
    assert Activations(values, "row d_model").numpy().tolist() == [[1.0, 0.3359375]]


def test_a_recording_is_a_mapping_of_sites() -> None:
    rec = recording()
    assert list(rec) == ["blocks.0.mlp.post", "blocks.2.mlp.post", "blocks.10.mlp.post", "logits"]
    assert rec["blocks.0.mlp.hook_post"] is rec["blocks.0.mlp.post"]
    assert "blocks.0.mlp.hook_post" in rec
    assert "blocks.1.mlp.post" not in rec
    assert rec.logits.shape == (5, 4)
    assert len(rec.table()) == 5
    with pytest.raises(UnknownSite, match="No site in this recording called 'blocks.0.mlp.pots'. Did you mean 'blocks.0.mlp.post'"):
        rec["blocks.0.mlp.pots"]
    with pytest.raises(UnknownSite, match=r"No site called 'blocks\.\*\.attn\.z'"):
        rec["blocks.*.attn.z"]
    with pytest.raises(UnknownName, match="No row space called 'vision'"):
        rec.table("vision")
    with pytest.raises(InputError, match="nothing to differentiate. Run with metrics=… and grad=True"):
        rec.backward()


def test_a_stack_has_layers_in_the_order_of_their_numbers() -> None:
    stack = recording()["blocks.*.mlp.post"]
    assert stack.axes == ("layer", "row", "d_mlp")
    assert stack.labels["layer"] == ["blocks.0.mlp.post", "blocks.2.mlp.post", "blocks.10.mlp.post"]
    assert stack.tensor[:, 0, 0].tolist() == [0, 20, 100]
    assert list(stack.layers()) == stack.labels["layer"]
    assert stack.example(1).shape == (3, 2, 2)
    assert stack.rows([4]).shape == (3, 1, 2)


def test_sites_of_other_shapes_cannot_be_stacked() -> None:
    a, b = Activations(torch.zeros(2, 3), "row d_model", site="a"), Activations(torch.zeros(2, 4), "row d_model", site="b")
    with pytest.raises(AxisError, match=r"a has shape \(2, 3\), b has \(2, 4\): they cannot be stacked"):
        Activations.stack([a, b], ["a", "b"], "*")


def test_patterns_of_names_by_hand() -> None:
    names = [f"blocks.{i}.resid_post" for i in (10, 2, 0, 1)] + ["encoder.blocks.0.resid_post", "embed"]
    assert matching("blocks.*.resid_post", names) == [f"blocks.{i}.resid_post" for i in (0, 1, 2, 10)]
    assert matching("blocks.{0,2}.resid_post", names) == ["blocks.0.resid_post", "blocks.2.resid_post"]
    assert matching("blocks.{1..10}.resid_post", names) == [f"blocks.{i}.resid_post" for i in (1, 2, 10)]
    assert matching("*.blocks.*.resid_post", names) == ["encoder.blocks.0.resid_post"]
    assert matching("blocks.0.resid_*", names) == ["blocks.0.resid_post"]
    assert matching("blocksX0Xresid_post", names) == []
    assert is_pattern("blocks.*.z")
    assert not is_pattern("module:vit.{odd}")


def test_they_print_themselves() -> None:
    assert repr(sharded()[0]) == "Activations('blocks.0.mlp.out', 'row d_model', shape (5, 2), float32)"
    assert "Recording(4 sites, 5 rows)" in repr(recording())


def test_the_vocabulary_of_axes() -> None:
    words = "batch layer head position row example query key d_model d_head d_mlp vocab feature class height width expert slot pair step"
    assert set(words.split()) <= AXES
