"""A vision–language model with random weights, wide enough for phi >= 20, and sinks planted at known tokens."""

import functools

import torch
import transformers

import activarium as act
from activarium.edits import Set, Where

IMAGE, DIM, WIDTH, BLOCKS = 99, 44, 512, 5
TEXTS = [[5, IMAGE, 6, 7, 8], [9, 10, IMAGE, 11]]
SINKS = {0: (0, 7), 1: (0, 11)}  # example → positions: the first token, and one row of its image


@functools.cache
def llava():
    """CLIP on 32 × 32 pixels (16 patches) before a Llama of five blocks."""
    sizes = {"num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            **sizes, hidden_size=32, num_hidden_layers=3, image_size=32, patch_size=8, projection_dim=16
        ),
        text_config=transformers.LlamaConfig(
            **sizes, hidden_size=WIDTH, num_hidden_layers=BLOCKS, num_key_value_heads=2, vocab_size=100, max_position_embeddings=64
        ),
        image_token_index=IMAGE,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlavaForConditionalGeneration(config).eval()
        for weights in model.parameters():
            torch.nn.init.normal_(weights, 1.0 if weights.ndim == 1 else 0.0, 0.2 if weights.ndim == 1 else weights[0].numel() ** -0.5)
    return act.wrap(model, name="llava", certify=False)


def inputs(texts=TEXTS, seed: int = 0):
    pixels = torch.randn(len(texts), 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return {"text": texts, "pixel_values": pixels}


def planted(sinks=SINKS, size: float = 30000.0):
    """Edits that give tokens one huge dimension after the first block."""
    return [
        Set("text.blocks.0.resid_post", size, where=Where(examples=(e,), positions=positions, features=(DIM,)))
        for e, positions in sinks.items()
    ]
