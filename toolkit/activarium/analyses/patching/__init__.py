"""Which activations cause an answer: exact patching, and what approximates it."""
