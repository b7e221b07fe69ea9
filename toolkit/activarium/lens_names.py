"""TransformerLens' names for sites, and ours: `blocks.8.hook_resid_pre` is `blocks.8.resid_pre`."""

from __future__ import annotations

LENS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn.out",
    "hook_mlp_out": "mlp.out",
    "hook_mlp_in": "resid_mid",
    "attn.hook_q": "attn.q",
    "attn.hook_k": "attn.k",
    "attn.hook_v": "attn.v",
    "attn.hook_z": "attn.z",
    "attn.hook_rot_q": "attn.q_rot",
    "attn.hook_rot_k": "attn.k_rot",
    "attn.hook_attn_scores": "attn.scores",
    "attn.hook_pattern": "attn.pattern",
    "attn.hook_result": "attn.head_out",
    "mlp.hook_pre": "mlp.pre",
    "mlp.hook_pre_linear": "mlp.up",
    "mlp.hook_post": "mlp.post",
    "hook_embed": "token_embed",
    # How a TransformerBridge calls them. Its mlp.in.hook_out is no alias: which branch it is depends on the model.
    "hook_in": "resid_pre",
    "hook_out": "resid_post",
    "attn.hook_in": "attn.in",
    "attn.q.hook_out": "attn.q",
    "attn.k.hook_out": "attn.k",
    "attn.v.hook_out": "attn.v",
    "attn.o.hook_in": "attn.z",
    "attn.o.hook_out": "attn.proj",
    "attn.hook_out": "attn.proj",
    "mlp.hook_in": "mlp.in",
    "mlp.out.hook_in": "mlp.post",
    "mlp.out.hook_out": "mlp.proj",
    "mlp.hook_out": "mlp.proj",
    "embed.hook_out": "token_embed",
    "unembed.hook_in": "final_norm",
    "unembed.hook_out": "logits",
}
OUTSIDE = ("hook_embed", "embed.hook_out", "unembed.hook_in", "unembed.hook_out")  # not in a block


# What its norms give, before gain and bias where those are folded into the next weights.
NORMED = {"ln1.hook_normalized": "attn.in", "ln2.hook_normalized": "mlp.in"}


def lens_alias(name: str) -> str | None:
    """Our name for a TransformerLens name such as `blocks.8.hook_resid_pre`, or None. They are read-only aliases."""
    parts = name.split(".", 2)
    if len(parts) == 3 and parts[0] == "blocks":
        return f"blocks.{parts[1]}.{LENS[parts[2]]}" if parts[2] in LENS and parts[2] not in OUTSIDE else None
    return LENS[name] if name in OUTSIDE else None


def lens_name(site: str) -> str | None:
    """TransformerLens' name for a site of ours, `blocks.8.resid_pre` → `blocks.8.hook_resid_pre`, or None if it has none."""
    stem, block, short = site.split(".", 2) if site.startswith("blocks.") and site.count(".") > 1 else ("", "", site)
    known = (theirs for theirs, ours in LENS.items() if ours == short and (theirs in OUTSIDE) == (not stem))
    found = next(known, None)
    return found if found is None or not stem else f"{stem}.{block}.{found}"
