"""Every text and vision transformer class that the installed transformers offers, by the tables of its auto classes."""

from __future__ import annotations

from dataclasses import dataclass

TABLES = {
    "causal language model": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked language model": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "text encoder": "MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES",
    "encoder–decoder": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "image classifier": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "two towers": "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "vision encoder": "MODEL_FOR_IMAGE_MAPPING_NAMES",
}


@dataclass(frozen=True)
class ModelClass:
    """One class.

    Attributes:
        name: As in transformers.
        model_type: Key of its configuration class.
        task: Which table it stands in first.
    """

    name: str
    model_type: str
    task: str


def every_class() -> list[ModelClass]:
    """All classes, each once, in the order of the tables."""
    from transformers.models.auto import modeling_auto

    found: dict[str, ModelClass] = {}
    for task, table in TABLES.items():
        for model_type, names in getattr(modeling_auto, table).items():
            for name in [names] if isinstance(names, str) else names:
                found.setdefault(name, ModelClass(name, model_type, task))
    return list(found.values())
