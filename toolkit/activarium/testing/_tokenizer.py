"""A word-level tokenizer made in code: one hundred words, no file, no download."""

from __future__ import annotations

from typing import Any

# CLIP takes an eos id of 2 for its old default and would pool elsewhere: unk stands there.
SPECIAL = ("pad", "bos", "unk", "eos", "cls", "sep", "mask")
WORDS = (
    ". , ? ! ( ) [ ] the a an of in on to from with and or not is are was were has have "
    "cat dog bird fish king queen child woman man Anna Tom Mary John Paris Rome France Italy book key keys cup apple ball letter house river "
    "sat saw gave took said ran likes like reads read sleeps sleep near far old new red blue green black white small large good bad "
    "he she it they we you I this that these who what where when then now"
).split()  # fmt: skip
LENGTH = 100 - len(SPECIAL)


def word_tokenizer(around: str = "$A") -> Any:
    """A fast tokenizer over `WORDS`; every other word is `<unk>`.

    Args:
        around: Special tokens around a text, `"<cls> $A <sep>"`.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = [f"<{name}>" for name in SPECIAL]
    vocabulary = [*names, *dict.fromkeys(WORDS)][: len(names) + LENGTH]
    ids = {word: place for place, word in enumerate(vocabulary)}
    made = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single=around, pair=f"{around} {around.replace('$A', '$B')}", special_tokens=[(name, ids[name]) for name in names if name in around]
    )
    special = {f"{name}_token": f"<{name}>" for name in SPECIAL}
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=64,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
        **special,  # type: ignore[arg-type]
    )
