"""How `v1.acts` and `v1.json` were made, once. Format 1 is frozen: never run this again for version 1."""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[3]))
from tests.store.fake_model import FakeModel, texts

from activarium.store import StoreWriter, open_store
from activarium.workflows.capture import plan

HERE = Path(__file__).parent
SITES = ["blocks.*.resid_pre", "blocks.0.attn.pattern", "encoder.out", "pooled"]


def main() -> None:
    model = FakeModel(dtype=torch.bfloat16)
    inputs = model.inputs(texts(6, seed=7, longest=7))
    made = plan(model, inputs, SITES, HERE / "v1.acts", batch_tokens=16)
    places = [sum(len(b.members) for b in made.batches[:i]) for i in range(len(made.batches))]
    for count in (2, len(made.batches)):  # two sessions: the second drops what the first one committed
        writer = StoreWriter(HERE / "v1.acts", made.draft(model.identity, {"hash": inputs.hash}), shard_bytes=1600)
        for at, batch in list(zip(places, made.batches, strict=True))[:count]:
            writer.add(model.run(inputs.select(batch.members), list(made.reads)), list(batch.members), at)
        writer.commit()
        writer.abort()
    store = open_store(HERE / "v1.acts")
    names = [*store, "blocks.1.resid_pre"]
    sites = {
        n: {"axes": " ".join(store[n].axes), "dtype": str(store[n].dtype), "shape": store[n].shape, "hex": raw(store[n].tensor)}
        for n in names
    }
    pattern = [[round(v, 4) for v in p.flatten().tolist()] for p in store["blocks.0.attn.pattern"].batches()]
    rows = {s: {c: r[c].tolist() for c in r.columns} for s, r in store.rows.items()}
    (HERE / "v1.json").write_text(json.dumps({"sites": sites, "rows": rows, "pattern": pattern}))


def raw(values: torch.Tensor) -> str:
    return values.contiguous().view(torch.uint8).numpy().tobytes().hex()


if __name__ == "__main__":
    main()
