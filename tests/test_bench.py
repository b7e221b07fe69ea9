"""The stopwatch itself: turns are fair, ratios are of medians, a row says what it measured; peers read the same numbers."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from activarium.bench import Row, interleaved, ratio
from activarium.bench.__main__ import PARTS, main, parts
from activarium.bench._arrow import OneSite, draws, one_site
from activarium.bench._dashboards import dashboards
from activarium.bench._memory import peaks
from activarium.bench._patterns import REFS, patterns
from activarium.bench._peers import MAKERS, gap, readers
from activarium.bench._rows import in_memory, to_disk
from activarium.bench._shapes import SMALLER, row_wise_sites, tokens, wrapped
from activarium.bench._sparse import SMALL, sparse_decoding
from activarium.bench._survey import surveys
from activarium.bench._timing import absent, beyond, disk_speed, markdown, medians
from activarium.bench._training import _planted, training

TOOLKIT = str(Path(__file__).parents[1] / "toolkit")


def test_calls_take_turns_and_every_second_round_runs_backwards() -> None:
    order: list[str] = []
    times = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert [len(v) for v in times.values()] == [3, 3]


def test_ratio_of_medians_by_hand() -> None:
    times = {"read": [(2.0, 1.0), (3.0, 1.1), (40.0, 1.2)], "plain": [(1.0, 1.0), (2.0, 1.0), (2.0, 1.0)]}
    row = ratio("reading", times, "read", "plain", "≤ 1.03")
    assert row.value == 1.5
    assert row.processor == pytest.approx(1.1)
    assert row.spread == (1.5, 20.0)
    assert medians(times)["read"] == (3.0, 1.1)
    assert "1.500 ×" in str(row)
    assert "goal ≤ 1.03" in str(row)


def test_a_fixed_cost_is_a_difference_in_milliseconds() -> None:
    row = beyond("a run", (0.0009, 0.0008), (0.0006, 0.0006), "≤ 0.3")
    assert (row.value, row.processor) == (pytest.approx(0.3), pytest.approx(0.2))
    assert Row("x", 1.0, "ms").note == ""


def test_disk_speed_leaves_nothing_behind(tmp_path: Path) -> None:
    assert disk_speed(tmp_path, 8 << 20) > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not REFS.exists(), reason="only Linux can forget an earlier peak of memory")
def test_reading_a_pattern_by_tiles_takes_the_memory_of_a_tile() -> None:
    (row,) = patterns(3072)
    assert row.value < 0.25
    assert "3072 tokens" in row.what
    assert "MiB tiles" in row.note


def test_what_could_not_be_measured_says_why() -> None:
    row = absent("random batches", "not installed: pip install 'nnsight'", "≥ 5")
    assert row.value is None and "—" in str(row) and "not installed: pip install 'nnsight'" in str(row)


def test_the_table_as_markdown() -> None:
    rows = [Row("reading | all", 1.2345, "×", "≤ 1.03", (1.0, 1.5), note="quiet"), absent("peer", "not installed")]
    assert markdown(rows, {"cores": 2, "torch": "2.13"}).splitlines() == [
        "cores 2 · torch 2.13",
        "",
        "| what | measured | goal | |",
        "|---|---|---|---|",
        "| reading \\| all | 1.23 × (1 to 1.5) | ≤ 1.03 | quiet |",
        "| peer | — |  | not installed |",
    ]


def test_peak_memory_sees_what_is_freed_again() -> None:
    # In a process of its own, as the benchmark is: what ran before in this one decides where its allocator puts large tensors.
    code = """
import torch
from activarium.bench._memory import peak

def takes(size):
    return peak(lambda: [torch.ones(size << 18).sum() for _ in range(2)])

takes(8)
print(takes(96))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": TOOLKIT}
    )
    if done.stdout.strip() == "None":
        pytest.skip("this system does not tell its high-water mark")
    assert 90 < float(done.stdout) < 140  # one tensor of 96 MiB at a time


# --- the rows themselves, on a small shape

BATCH = (2, 16)


@cache
def small() -> tuple[torch.nn.Module, object]:
    return wrapped(SMALLER)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without peers."""
    for name in [*sys.modules, "transformer_lens", "sae_lens", "nnsight"]:
        if name.split(".")[0] in ("transformer_lens", "sae_lens", "nnsight"):
            monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.slow
def test_without_peers_every_row_is_there_and_says_so(alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        *in_memory(SMALLER, BATCH, 1, "small", "≤ 1.03"),
        *peaks(SMALLER, BATCH, "small"),
        *to_disk(SMALLER, BATCH, 2, 1, "small"),
        *one_site(SMALLER, BATCH, 2, 1, "small"),
    ]
    lacking = [r for r in rows if r.value is None]
    assert [r.note.split(":")[0] for r in lacking if "tell" not in r.note] == ["not installed"] * (2 * 3 + 3 + 3 + 3)
    for who in MAKERS:
        assert sum(who in r.what for r in lacking) == 4
    measured = [r for r in rows if r.value is not None]
    assert len(measured) >= 5 and all(r.value > 0 and r.unit in ("×", "MiB") for r in measured)
    assert not list((tmp_path / "out").iterdir())


def test_a_survey_is_timed_against_the_forward_alone() -> None:
    rows = surveys(SMALLER, BATCH, 2, 1, "small")
    assert [r.unit for r in rows] == ["×"] * 3 and all(r.value > 0 for r in rows if r.value is not None)
    assert "all summaries" in rows[2].what


@pytest.mark.slow
def test_sparse_decoding_is_checked_against_the_masked_model_before_it_is_timed() -> None:
    rows = sparse_decoding(SMALL, 3, 1)
    decoding, down = rows[:6], rows[6:]
    assert [row.what.split(",")[0] for row in decoding] == ["decoding"] * 6
    assert all(
        name in row.note for row in decoding for name in ("tokens/s", "batch 1", "indices known", "largest difference to masked dense")
    )
    assert [row.what.rpartition(" / ")[2] for row in down] == ["gathered", "embedding_bag", "index_select"] * 3
    assert all(row.seconds["dense"] > 0 for row in rows)


def test_only_some_parts_and_the_table_of_what_was_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("activarium.bench.__main__.parts", lambda *_: {n: lambda n=n: [Row(f"row of {n}", 1.5, "×")] for n in PARTS})
    out = tmp_path / "bench.json"
    main(["--only", "disk", "--out", str(out)])
    main(["--only", "run", "memory", "--out", str(out)])
    assert [r["part"] for r in json.loads(out.read_text())["rows"]] == ["disk", "run", "memory"]
    main(["--only", "disk", "--out", str(out)])  # taken again, not twice
    capsys.readouterr()
    main(["--readme", "--out", str(out)])
    table = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in table[4:]] == ["row of run", "row of memory", "row of disk"]
    assert "cores" in table[0] and "torch" in table[0]
    with pytest.raises(SystemExit, match="no figures in .* yet"):
        main(["--readme", "--out", str(tmp_path / "none.json")])
    with pytest.raises(SystemExit):
        main(["--only", "nothing"])


def test_every_part_has_its_name() -> None:
    assert tuple(parts(True, 1, 1)) == PARTS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:nnsight.*")
@pytest.mark.parametrize("who", MAKERS)
def test_peers_read_the_same_numbers(who: str) -> None:
    hf_model, model = small()
    read = readers(hf_model, SMALLER, (who,))[who]
    if isinstance(read, str):
        pytest.skip(read)
    ids = tokens(SMALLER, BATCH)
    ours = model.run({"input_ids": ids}, read=[*row_wise_sites(model), "logits"])  # type: ignore[attr-defined]
    for what, least in (("resid_post", 2), ("sites", 12)):
        found = read(ids, what)
        assert gap(ours, found) < 1e-5
        named = [n for n in found if gap(ours, {n: found[n] * 2}) > 0.1]  # those that are compared at all
        assert len(named) >= least


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:sae_lens.*")
def test_the_arrow_cache_holds_the_same_rows(tmp_path: Path) -> None:
    pytest.importorskip("sae_lens", reason="the extra [lens] is not installed")
    hf_model, model = small()
    ids = torch.cat([tokens(SMALLER, BATCH, seed) for seed in range(8)])
    case = OneSite(hf_model, model, SMALLER, ids, BATCH[0], "blocks.1.resid_post", tmp_path)
    case.capture()
    case.sae_lens()()
    calls = draws(case)
    ours, mapped, arrow = (calls[k]() for k in ("store", "mapped array", "Arrow rows"))  # each draws its own rows
    for rows in (ours, mapped, arrow, calls["sae-lens batches"](), calls["mixed blocks"]()):
        assert tuple(rows.shape[-2:]) == (case.rows, 64) and rows.dtype == torch.float32
    from datasets import load_from_disk

    import activarium as act

    table = load_from_disk(str(tmp_path / "arrow")).with_format("torch")
    stored = act.open(tmp_path / "bench.acts")[case.site].tensor
    assert torch.allclose(table[:][case.hook].flatten(0, 1), stored, atol=1e-5)


@pytest.mark.slow
def test_training_is_timed_beside_sae_lens_on_the_same_rows() -> None:
    pytest.importorskip("sae_lens", reason="the extra [lens] is not installed")
    before = torch.get_num_threads()
    found = training(small=True, rounds=1)
    beside = [row for row in found if row.what.startswith("sae-lens' trainer / ours")]
    assert len(beside) in (3, 6)
    for row in beside:
        assert row.value > 0 and row.processor > 0
        assert "rows/s against" in row.note and "of the variance is unexplained" in row.note
    assert "1 thread" in beside[0].what
    assert torch.get_num_threads() == before
    words = [row.what for row in found[len(beside) :]]
    for part in (
        "peak memory of training topk, activarium",
        "peak memory of training topk, sae-lens",
        "from a store",
        "reading it from a store",
        "on a GPU",
    ):
        assert any(part in w for w in words), part
    gpu = next(row for row in found if "on a GPU" in row.what)
    assert torch.cuda.is_available() or (gpu.value, gpu.note) == (None, "no GPU here")
    rows = _planted(2000, 32, 64)
    assert torch.equal(rows, _planted(2000, 32, 64))
    assert rows.norm(dim=1).min() > 0


@pytest.mark.slow
def test_dashboards_are_timed_apart_from_the_encoder() -> None:
    encoding, pages, opened, disk, *memory = dashboards(small=True)
    assert [r.unit for r in (encoding, pages, opened, disk)] == ["ms", "ms", "ms", "MiB"]
    assert all(r.value and r.value > 0 for r in (encoding, pages, opened, disk))
    assert "256 features, 20,000 rows, k 8" in pages.what and "codes in a row" in pages.note
    assert len(memory) == 1 and memory[0].unit in ("MiB", "")
