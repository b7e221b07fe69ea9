"""Where the texts of a generation end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from activarium.capture._inputs import Inputs
from activarium.errors import InputError

if TYPE_CHECKING:
    from activarium.capture._runner import TorchRunner


class Ends(StoppingCriteria):
    """Which texts have ended: at the model's own end-of-text token, at a token or after words that the caller named.

    Attributes:
        real: For every column that was written: does the token belong to its text? What follows a stop does not.
        eos_token_id: Present, so that transformers pads what follows a stop.
    """

    def __init__(self, model: TorchRunner, prompts: Inputs, space: str, stop: Any) -> None:
        given = [stop] if isinstance(stop, (str, int)) else list(stop or ())
        self.tokenizer, self.words = model.tokenizer, [s for s in given if isinstance(s, str)]
        own = model.torch_module.generation_config.eos_token_id
        own = [] if own is None else [own] if isinstance(own, int) else list(own)
        self.ids = [*own, *(int(s) for s in given if not isinstance(s, str))]
        self.eos_token_id = torch.tensor(self.ids)
        self.start = int(prompts.rows_of(space).max())
        self.done = torch.zeros(len(prompts), dtype=torch.bool)
        self.real: list[Tensor] = []
        if self.words and self.tokenizer is None:
            raise InputError(
                f"stop={self.words[0]!r} is a word, and this model was wrapped without a tokenizer. Give token ids to stop at."
            )
        if any(not w for w in self.words):
            raise InputError("stop='' would end every text at once. Give a word, or leave it out.")

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.real.append(~self.done)
        ended = torch.isin(input_ids[:, -1].cpu(), self.eos_token_id)
        if self.words:
            texts = self.tokenizer.batch_decode(input_ids[:, self.start :])
            ended |= torch.tensor([any(w in t for w in self.words) for t in texts])
        self.done = self.done | ended
        return self.done.to(input_ids.device)
