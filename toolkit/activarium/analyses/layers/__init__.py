"""What happens from layer to layer: when an answer appears, and what each block adds to it."""
