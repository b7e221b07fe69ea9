"""Training: planted atoms are found (and not where there are none), store = memory = resumed, revival, slopes, refusals."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import activarium as act
from activarium.activations import Activations
from activarium.dictionaries import Recipe, train
from activarium.dictionaries.competing import largest
from activarium.dictionaries.learner import Learner
from activarium.dictionaries.objectives import objective
from activarium.dictionaries.recipe import SIGNED
from activarium.dictionaries.rows import RowSource
from activarium.errors import InputError, NotFinite
from activarium.recording import Recording

SITE, OUT = "blocks.0.resid_post", "blocks.0.mlp.out"
ATOMS, WIDTH = 128, 64
NONE, ZERO = torch.zeros(0, dtype=torch.int64), torch.tensor(0.0)  # no dead features, no threshold yet


def recording(rows, kinds=None, targets=None):
    return act.testing.recording_of({SITE: rows} | ({OUT: targets} if targets is not None else {}), kinds=kinds)


def planted(count=60_000, seed=987):
    return act.testing.planted_rows(count, width=WIDTH, atoms=ATOMS, seed=seed)


def likeness(atoms, found, signed=False):
    """Mean over atoms of the largest cosine with a direction that was learnt; codes with signs may have either direction."""
    cosines = atoms @ torch.nn.functional.normalize(found, dim=1).T
    return float((cosines.abs() if signed else cosines).max(1).values.mean())


RECIPES = {
    "topk": {"k": 5},
    "batchtopk": {"k": 5},
    "matryoshka": {"k": 5, "groups": (64, 128)},
    "standard": {"sparsity": 1.5},
    "gated": {"sparsity": 3.0},
    "jumprelu": {"sparsity": 0.7},
    "abstopk": {"k": 5},
}


@pytest.fixture(scope="module")
def data():
    return planted()


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECIPES)
def test_planted_atoms_are_found_and_none_where_columns_are_shuffled(kind, data):
    atoms, rows, _ = data
    generator = torch.Generator().manual_seed(1)
    shuffled = torch.stack([column[torch.randperm(len(rows), generator=generator)] for column in rows.T], 1)
    recipe = Recipe(ATOMS, kind, learning_rate=2e-3, dead_after=20_000, **RECIPES[kind])
    assert likeness(atoms, learner(recipe, rows).sae.directions.detach()) < 0.45  # where it begins
    made = train(recording(rows), SITE, recipe, batch=1024, steps=1500, progress=False)
    control = train(recording(shuffled), SITE, recipe, batch=1024, steps=600, progress=False)
    assert likeness(atoms, made.sae.directions, kind in SIGNED) > 0.9
    assert likeness(atoms, control.sae.directions, kind in SIGNED) < 0.5
    codes = made.sae.encode(rows[:2000])
    unexplained = (rows[:2000] - made.sae(rows[:2000])).square().sum() / (rows[:2000] - rows[:2000].mean(0)).square().sum()
    assert float(unexplained) < 0.35
    assert 1 < float((codes != 0).sum(1).float().mean()) < 16


@pytest.mark.slow
def test_a_transcoder_learns_the_map_and_its_skip(data):
    _, rows, sizes = data
    generator = torch.Generator().manual_seed(7)
    writes, line = torch.randn(ATOMS, 20, generator=generator), 0.3 * torch.randn(WIDTH, 20, generator=generator)
    targets = sizes @ writes + rows @ line + 2.0
    recipe = Recipe(ATOMS, "topk", k=5, skip=True, learning_rate=2e-3)
    made = train(recording(rows, targets=targets), SITE, recipe, target=OUT, batch=1024, steps=1500, progress=False)
    found = made.sae(rows[:2000])
    share = (found - targets[:2000]).square().sum() / (targets[:2000] - targets.mean(0)).square().sum()
    assert float(share) < 0.2
    assert (made.sae.origin.site, made.sae.origin.target) == (SITE, OUT)
    assert bool(made.sae.W_skip.any())


@pytest.fixture(scope="module")
def small():
    return planted(3000, seed=983)[1]


MANY = [
    Recipe(48, "topk", k=4),
    Recipe(48, "batchtopk", k=4),
    Recipe(48, "standard"),
    Recipe(48, "gated"),
    Recipe(48, "jumprelu"),
    Recipe(48, "matryoshka", k=4),
    Recipe(48, "abstopk", k=4),
    Recipe(48, "absbatchtopk", k=4, groups=(16, 48), centre="median", normalised=True),
]


def weights(made):
    return {n: p.clone() for n, p in made.sae.named_parameters()}


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_side_by_side_is_one_by_one(small):
    together = train(recording(small), SITE, MANY, batch=256, steps=20, progress=False)
    for recipe, made in zip(MANY, together, strict=True):
        same(weights(made), weights(train(recording(small), SITE, recipe, batch=256, steps=20, progress=False)))


def test_a_paused_training_goes_on_to_the_same_bits(small, tmp_path, monkeypatch):
    whole = train(recording(small), SITE, MANY, batch=256, steps=30, progress=False)
    real, taken = Learner.learn, []

    def stumbling(self, x, y):
        taken.append(1)
        if len(taken) > 17 * len(MANY):  # the 18th step fails
            raise KeyboardInterrupt
        real(self, x, y)

    monkeypatch.setattr(Learner, "learn", stumbling)
    with pytest.raises(KeyboardInterrupt):
        train(recording(small), SITE, MANY, batch=256, steps=30, progress=False, pause=tmp_path / "p", every=5)
    monkeypatch.setattr(Learner, "learn", real)
    again = train(recording(small), SITE, MANY, batch=256, steps=30, progress=False, pause=tmp_path / "p", every=5)
    for one, other in zip(whole, again, strict=True):
        same(weights(one), weights(other))
        assert one.report["dead"].x.tolist() == other.report["dead"].x.tolist()
    with pytest.raises(InputError, match="a paused training with other rows, recipes or settings"):
        train(recording(small), SITE, MANY, batch=256, steps=31, progress=False, pause=tmp_path / "p")


@pytest.mark.parametrize("name", ["scribe", "glyph"])
def test_from_a_store_and_from_memory_the_same_weights(name, tmp_path):
    from activarium.data import corpus, scenes  # pyright: ignore[reportAttributeAccessIssue]

    model = act.load(name)
    texts = [item.text for item in corpus.held_out("ioi", 3, 40)]
    inputs = texts if name == "scribe" else [scenes.scene(scenes.TEST_SEED, i).image for i in range(8)]
    store = act.capture(model, inputs, [SITE], to=tmp_path / "s.acts", progress=False)
    held = Recording(
        {SITE: Activations(store[SITE].tensor.clone(), "row d_model", site=SITE, index=store[SITE].index)},
        store.rows,
        dict(store.provenance),
    )
    recipe = Recipe(64, k=4)
    stored, memory = (train(r, SITE, recipe, batch=64, steps=12, progress=False) for r in (store, held))
    same(weights(stored), weights(memory))
    assert stored.sae.origin.model == name
    assert stored.sae.origin.weight_hash == model.identity["weight_hash"]
    kinds = set(store[SITE].index["kind"].astype(str).tolist())
    assert kinds & {"bos", "cls"}
    assert "bos" in stored.sae.origin.exclude


def test_first_and_class_rows_are_left_out():
    rows = torch.zeros(600, 8)
    rows[::3] = 1000.0
    source = RowSource(recording(rows, ["bos", "token", "token"] * 200)[SITE])
    assert (len(source), source.dropped) == (400, {"bos": 200})
    seen = torch.cat([x for x, _ in zip((b[0] for b in source.batches(100, 0)), range(8), strict=False)])
    assert float(seen.max()) == 0.0


def test_an_epoch_reads_every_row_once_and_mixes_them():
    rows = torch.arange(2048.0)[:, None].repeat(1, 2)
    source = RowSource(recording(rows)[SITE])
    batches = [next_[0][:, 0] for next_, _ in zip(source.batches(128, 5), range(16), strict=False)]
    assert torch.cat(batches).sort().values.tolist() == list(range(2048))
    assert all(float(b.max() - b.min()) > 1000 for b in batches)
    later = next(source.batches(128, 5, first=9))[0][:, 0]
    assert torch.equal(later, batches[9])
    second = torch.cat([n[0][:, 0] for n, _ in zip(source.batches(128, 5, first=16), range(16), strict=False)])
    assert not torch.equal(second, torch.cat(batches))


def learner(recipe, rows, transcoder=False):
    return Learner(recipe, RowSource(recording(rows)[SITE]).statistics(0), transcoder, 100)


def test_the_second_path_of_a_gated_dictionary_does_not_teach_its_directions(small):
    held = learner(Recipe(48, "gated", sparsity=0.0), small)
    x = held.scale * small[:64]
    with torch.no_grad():
        held.sae.b_gate += 0.3
    step = objective(held.recipe, held.sae, x, x, held.dead, ZERO)
    step.loss.backward()
    sae = held.sae
    raw = (x - sae.b_dec.detach()) @ sae.W_enc.detach()
    codes = (raw + sae.b_gate > 0) * (sae.r_mag.exp() * raw + sae.b_mag).relu()
    error = x - sae.b_dec - codes @ sae.W_dec
    wanted = torch.autograd.grad(error.square().sum() / len(x), sae.W_dec)[0]
    assert torch.allclose(sae.W_dec.grad, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "matryoshka", "standard", "abstopk", "absbatchtopk"])
def test_slopes_of_a_step_are_those_of_dense_arithmetic(kind, small):
    recipe = Recipe(
        48,
        kind,
        **({"sparsity": 0.4} if kind == "standard" else {"k": 4}),
        **({"groups": (16, 48)} if kind in ("matryoshka", "absbatchtopk") else {}),
    )
    held = learner(recipe, small)
    sae, x = held.sae.double(), (held.scale * small[:32]).double()
    if kind == "standard":
        with torch.no_grad():
            sae.b_enc -= 0.22  # few codes: the sparse way
    step = objective(recipe, sae, x, x, NONE, ZERO)
    step.loss.backward()
    found = {n: p.grad.clone() for n, p in sae.named_parameters()}
    sae.zero_grad()
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    if kind == "standard":
        assert 0 < step.active <= 0.05 * pre.numel()
        codes = pre.relu()
        loss = ((x - sae.b_dec - codes @ sae.W_dec).square().sum() + 0.4 * (codes * sae.W_dec.norm(dim=1)).sum()) / len(x)
    else:
        signed = kind.startswith("abs")
        flat = pre.detach().abs() if signed else pre.detach()
        bar = (
            flat.topk(4, dim=1).values[:, -1:]
            if kind.endswith("topk") and "batch" not in kind
            else flat.flatten().topk(4 * len(x)).values[-1]
        )
        codes = torch.where(flat >= bar, pre if signed else pre.relu(), 0)
        assert bool((codes < 0).any()) == signed
        sizes = (16, 48) if recipe.groups else (48,)
        loss = sum((x - sae.b_dec - codes[:, :m] @ sae.W_dec[:m]).square().sum() for m in sizes) / len(x) / len(sizes)
    loss.backward()
    assert float(step.loss.detach()) == pytest.approx(float(loss.detach()))
    for name, p in sae.named_parameters():
        assert torch.allclose(found[name], p.grad, atol=1e-10), name


def test_the_largest_codes_of_a_batch_whatever_the_last_threshold_was(small):
    held = learner(Recipe(48, "batchtopk", k=4), small)
    x = held.scale * small[:128]
    steps = [objective(held.recipe, held.sae, x, x, NONE, torch.tensor(t)) for t in (0.0, 0.5, 1e9)]
    assert len({int(s.active) for s in steps}) == 1
    assert steps[0].active == 4 * 128
    assert len({float(s.loss.detach()) for s in steps}) == 1


def test_signed_codes_of_a_batch_by_hand():
    """Two rows of three, k = 1: of six pre-activations the two of the largest size stay, with their signs."""
    recipe = Recipe(3, "absbatchtopk", k=1, centre="zero")
    held = learner(recipe, torch.eye(3).repeat(2, 1))
    with torch.no_grad():
        held.sae.encoder.copy_(torch.eye(3))
        held.sae.W_dec.copy_(torch.eye(3))
    x = torch.tensor([[1.0, -5.0, 2.0], [3.0, 0.5, -2.5]])
    step = objective(recipe, held.sae, x, x, NONE, ZERO)
    assert step.threshold is not None
    assert (int(step.active), float(step.threshold), step.fired.tolist()) == (2, 3.0, [True, True, False])
    assert float(step.error) == 1 + 4 + 0.25 + 6.25
    assert float(step.loss.detach()) == float(step.error) / 2
    relative = objective(Recipe(3, "absbatchtopk", k=1, normalised=True), held.sae, x, x, NONE, ZERO)
    assert float(relative.loss.detach()) == pytest.approx(float(step.error / (x - x.mean(0)).square().sum()))


@pytest.mark.slow
def test_signed_features_are_found_and_keep_their_signs_above_one_threshold(data):
    atoms, _, sizes = data
    generator = torch.Generator().manual_seed(3)
    signs = torch.randint(0, 2, sizes.shape, generator=generator) * 2.0 - 1
    rows = (signs * sizes) @ atoms + 0.01 * torch.randn(len(sizes), WIDTH, generator=generator)
    shuffled = torch.stack([column[torch.randperm(len(rows), generator=generator)] for column in rows.T], 1)
    recipe = Recipe(ATOMS, "absbatchtopk", k=5, centre="median", auxiliary=0.1, dead_after=20_000, learning_rate=2e-3)
    made, control = (train(recording(r), SITE, recipe, batch=1024, steps=s, progress=False) for r, s in ((rows, 1500), (shuffled, 300)))

    assert likeness(atoms, made.sae.directions, signed=True) > 0.9
    assert likeness(atoms, control.sae.directions, signed=True) < 0.5
    codes = made.sae.encode(rows[:4000])
    assert made.sae.design.kind == "absjump"
    assert float((codes != 0).sum(1).float().mean()) == pytest.approx(5, abs=0.7)
    assert 0.4 < float((codes < 0).sum() / (codes != 0).sum()) < 0.6
    best = (made.sae.directions @ atoms.T).abs().argmax(1)
    facing = (made.sae.directions * atoms[best]).sum(1).sign()
    truth = (signs * sizes)[:4000, best] * facing
    both = (codes != 0) & (truth != 0)
    assert float((codes.sign() == truth.sign())[both].float().mean()) > 0.98
    alone = torch.cat([made.sae.encode(r[None]) for r in rows[:50]])
    assert torch.equal(alone != 0, codes[:50] != 0)


def test_where_b_dec_begins():
    rows = torch.tensor([[0.0, 1.0], [1.0, 1.0], [8.0, 1.0]])
    statistics = RowSource(recording(rows)[SITE]).statistics(0, keep=True)
    begins = {c: Learner(Recipe(4, k=1, centre=c), statistics, False, 10).sae.b_dec for c in ("mean", "median", "zero")}
    scale = 2**0.5 / float(rows.norm(dim=1).mean())
    for name, wanted in {"mean": [3.0, 1.0], "median": [1.0, 1.0], "zero": [0.0, 0.0]}.items():
        assert torch.allclose(begins[name], scale * torch.tensor(wanted)), name


@pytest.mark.parametrize(("width", "k"), [(4096, 32), (1024, 16), (1024, 17), (1000, 5), (64, 64)])
def test_the_largest_are_found_by_groups_bit_for_bit(width, k):
    values = torch.randn(300, width, generator=torch.Generator().manual_seed(width + k))
    values[0, :] = 0.5  # all equal
    values[1, : width // 2] = 3.0
    values[2].sort()
    values[3] = torch.arange(width).float().roll(width // 3)
    wanted, found = values.topk(k, dim=1).values, values.gather(1, largest(values, k))
    assert torch.equal(found.sort(descending=True).values, wanted)
    places = torch.cat([row.unique() for row in largest(values, k)])
    assert len(places) == 300 * k  # none twice


class Waiting(TorchDispatchMode):
    """Notes what an accelerator would have to be waited for."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.bincount):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "recipe", [Recipe(48, k=4), Recipe(48, "abstopk", k=4), Recipe(48, "gated"), Recipe(48, "jumprelu", lift=0.1)], ids=lambda r: r.kind
)
def test_no_step_waits_for_its_device(recipe, small):
    held = learner(recipe, small)
    held.look, held.step = 50, 1  # as on an accelerator, between two looks
    held.dead = torch.tensor([3, 5])
    with Waiting() as noted:
        for _ in range(3):
            held.learn(small[:64], small[:64])
    assert noted.seen == []
    with noted:
        held.note()
    assert noted.seen  # the note itself is one that waits: the mode does see them


def test_a_device_that_is_not_here_is_refused(small):
    for device in ("tpu", "cuda:99"):
        with pytest.raises(InputError, match=f"There is no device '{device}' here to train on; there is cpu"):
            train(recording(small), SITE, Recipe(48, k=4), batch=256, steps=2, device=device, progress=False)


def test_centring_leaves_no_feature_dead_at_the_start():
    """2 % of the numbers are outliers: rows whose mean is twenty times their spread (§12 of arXiv:2605.31518's setting)."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(8192, 256, generator=generator)
    mean = torch.zeros(256)
    mean[:5] = 1.0
    rows = rows + 20 * 16 * mean / mean.norm()
    source = RowSource(recording(rows)[SITE])
    assert source.statistics(0).severity == pytest.approx(20, rel=0.05)
    held = learner(Recipe(2048, k=32), rows)

    def never(shift):
        pre = (held.scale * rows - shift) @ held.sae.W_enc.detach()
        return 1 - len(pre.topk(32, dim=1).indices.unique()) / 2048

    assert never(held.sae.b_dec.detach()) == 0.0
    assert never(torch.zeros(256)) > 0.9


def test_dead_features_come_back():
    rows = planted(8000, seed=985)[1]
    held = [learner(Recipe(64, k=4, auxiliary=a, dead_after=2000, learning_rate=2e-3), rows) for a in (1 / 32, 0.0)]
    for one in held:
        with torch.no_grad():
            one.sae.b_enc[:32] = -3.0  # seldom reached, and then not among the four largest
        for (x, y), _ in zip(RowSource(recording(rows)[SITE]).batches(500, 0), range(150), strict=False):
            one.steps = 1000  # the learning rate does not fall yet
            one.learn(x, y)
    revived, left = (int(one.silenced.sum()) for one in held)
    assert left > 16
    assert revived < left / 3, (revived, left)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch": 5000}, r"has 3,000 rows; one batch takes 5,000\. Capture more, or take batch=750"),
        ({"site": "blocks.*.resid_post"}, "names several layers; a dictionary is trained on one site"),
        ({"recipe": Recipe(48, k=4, skip=True)}, "skip=True is for transcoders: give target="),
    ],
)
def test_what_cannot_be_trained_is_refused(change, words, small):
    call = {"site": SITE, "recipe": Recipe(48, k=4), "batch": 256, "steps": 2, "progress": False} | change
    with pytest.raises(InputError, match=words):
        train(recording(small), **call)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "l1"}, "No way of training called 'l1'. Known: standard"),
        ({}, "topk keeps k=None of 48"),
        ({"kind": "standard", "k": 3}, "is made sparse by sparsity=, not by k=3"),
        ({"k": 3, "sparsity": 1.0}, "keeps k codes; sparsity=1.0 is for"),
        (
            {"kind": "matryoshka", "k": 3, "groups": (32, 16)},
            r"rising sizes of nested prefixes for matryoshka and absbatchtopk, the last one 48",
        ),
        ({"k": 3, "groups": (16, 48)}, "the last one 48; this is topk"),
        ({"k": 3, "centre": "mode"}, "no centre is called 'mode'"),
        ({"kind": "gated", "normalised": True}, "normalised=True would change what sparsity= means for gated"),
        ({"k": 49}, "keeps k=49 of 48"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(values, words):
    with pytest.raises(InputError, match=words):
        Recipe(48, **values)


def test_rows_that_are_not_finite_are_named(small):
    bad = small.clone()
    bad[1234, 3] = float("inf")
    with pytest.raises(NotFinite, match=r"Row 1,234 of blocks\.0\.resid_post holds NaN or infinity"):
        train(recording(bad), SITE, Recipe(48, k=4), batch=256, steps=20, progress=False)


def test_a_training_that_diverges_says_so(small):
    held = learner(Recipe(48, "standard"), small)
    with torch.no_grad():
        held.sae.W_dec.fill_(1e30)
    with pytest.raises(NotFinite, match="it diverged. Take a smaller learning_rate="):
        held.learn(small[:64], small[:64])


def test_half_precision_rows_are_trained_in_float32(small):
    made = train(recording(600 * small.half()), SITE, Recipe(48, k=4), batch=256, steps=5, progress=False)  # squares would overflow float16
    assert made.sae.dtype == torch.float32
    assert all(bool(p.isfinite().all()) for p in made.sae.parameters())


def test_the_report_says_how_it_went(small):
    made = train(recording(small), SITE, Recipe(48, k=4, learning_rate=3e-3), batch=256, steps=150, progress=False)
    curve = made.report["unexplained variance"]
    assert curve.x.tolist() == [50, 100, 150]
    assert curve.curves["unexplained variance"][-1] < curve.curves["unexplained variance"][0]
    assert made.report["active"].curves["active"][-1] == pytest.approx(4, abs=0.5)
    assert "of the variance unexplained with" in made.report.words[0]
    assert SimpleNamespace(**made.report.diagnostics).kind == "topk"
