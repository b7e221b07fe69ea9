"""Which places of a TransformerLens model may hold our sites, as data; a probe decides which of them do."""

from __future__ import annotations

from activarium.capture._sites import Place

TILES = ("attn.scores", "attn.pattern")


def at(path: str) -> Place:
    return Place(path, "output")


# Short name → where it may live in a block, best first. HookedTransformer norms the stream three times, for queries, keys
# and values; its `hook_normalized` comes before gain and bias and is none of our sites.
HOOKED: dict[str, tuple[Place, ...]] = {
    "resid_pre": (at("hook_resid_pre"),),
    "attn.in": (Place("attn", "input", "query_input", also=("key_input", "value_input")),),
    "attn.q": (at("attn.hook_q"),),
    "attn.k": (at("attn.hook_k"),),
    "attn.v": (at("attn.hook_v"),),
    "attn.q_rot": (at("attn.hook_rot_q"),),
    "attn.k_rot": (at("attn.hook_rot_k"),),
    "attn.scores": (at("attn.hook_attn_scores"),),
    "attn.pattern": (at("attn.hook_pattern"),),
    "attn.z": (at("attn.hook_z"),),
    "attn.proj": (at("attn"),),
    "attn.out": (at("hook_attn_out"),),
    "resid_mid": (at("hook_resid_mid"),),
    "mlp.in": (Place("mlp", "input", 0),),
    "mlp.pre": (at("mlp.hook_pre"),),
    "mlp.act": (at("mlp.hook_mid"),),
    "mlp.up": (at("mlp.hook_pre_linear"),),
    "mlp.post": (at("mlp.hook_post"),),
    "mlp.proj": (at("mlp"),),
    "mlp.out": (at("hook_mlp_out"),),
    "resid_post": (at("hook_resid_post"),),
}
BRIDGE: dict[str, tuple[Place, ...]] = {
    "resid_pre": (at("hook_in"),),
    "attn.in": (at("attn.hook_in"),),
    "attn.q": (at("attn.q.hook_out"),),
    "attn.k": (at("attn.k.hook_out"),),
    "attn.v": (at("attn.v.hook_out"),),
    "attn.q_rot": (at("attn.hook_rot_q"),),
    "attn.k_rot": (at("attn.hook_rot_k"),),
    "attn.scores": (at("attn.hook_attn_scores"),),
    "attn.pattern": (at("attn.hook_pattern"),),
    "attn.z": (at("attn.o.hook_in"),),
    "attn.proj": (at("attn.o.hook_out"),),
    "attn.out": (at("ln1_post.hook_out"), at("attn.hook_out")),
    "resid_mid": (at("ln2.hook_in"),),
    "mlp.in": (at("mlp.hook_in"),),
    "mlp.pre": (at("mlp.gate.hook_out"), at("mlp.in.hook_out")),
    "mlp.up": (at("mlp.in.hook_out"),),
    "mlp.post": (at("mlp.out.hook_in"),),
    "mlp.proj": (at("mlp.out.hook_out"),),
    "mlp.out": (at("ln2_post.hook_out"), at("mlp.hook_out"), at("mlp.out.hook_out")),
    "resid_post": (at("hook_out"),),
}
ENDS = {
    "token_embed": (at("hook_embed"), at("embed.hook_out")),
    "final_norm": (Place("unembed", "input", 0), at("ln_final.hook_out")),
}
# Which norms may stand before a sub-layer and after it.
NORMS = {"attn": (("ln1",), ("ln1_post", "ln1")), "mlp": (("ln2", "ln1"), ("ln2_post", "ln2"))}
NO_HOOK = "TransformerLens has no hook point there"
