"""Directions near the rows themselves: convex combinations of real points, and a little freedom beside them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLUSTERING = 0  # one seed for all, so that dictionaries of other seeds have the same points to combine


class Archetypes(nn.Module):
    """What directions are made of: `(weights · points + free) · e^size`.

    Weights are at least 0 and sum to 1 for each feature; `free` is no longer than `slack` times the points' mean length. Since every
    direction stays where rows are, trainings from other first weights come to more similar ones.

    Attributes:
        points: `candidate d_out`, centroids of the rows' clusters around the centre.
        weights: `feature candidate`.
        free: `feature d_out`.
        size: One number for all.

    Source:
        Fel et al. 2025, Archetypal SAE, arXiv:2502.12892, section 4.
    """

    points: Tensor

    def __init__(self, points: Tensor, features: int, slack: float, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        order = torch.cat([torch.randperm(len(points), generator=generator) for _ in range(-(-features // len(points)))])[:features]
        weights = torch.rand(features, len(points), generator=generator) / len(points)
        weights[torch.arange(features), order] += 1.0  # each begins near a point of its own
        self.register_buffer("points", points, persistent=False)
        self.weights = nn.Parameter(weights)
        self.free = nn.Parameter(torch.zeros(features, points.shape[1]))
        length = float(points.norm(dim=1).mean().clamp_min(1e-12))
        self.size = nn.Parameter(torch.tensor(1 / length).log())  # directions begin about as long as 1
        self.longest = slack * length
        self.held()

    def directions(self) -> Tensor:
        """`feature d_out`."""
        return (self.weights @ self.points + self.free) * self.size.exp()

    @torch.no_grad()
    def held(self) -> None:
        """Bring weights and freedom back to where they may be."""
        self.weights.clamp_(min=0)
        self.weights.div_(self.weights.sum(1, keepdim=True).clamp_min(1e-12))
        self.free.mul_((self.longest / self.free.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp(max=1))


def centroids(rows: Tensor, count: int) -> Tensor:
    """`candidate d_out`: centroids of so many clusters of rows `row d_out`."""
    from sklearn.cluster import MiniBatchKMeans

    made = MiniBatchKMeans(min(count, len(rows)), random_state=CLUSTERING, batch_size=4096, n_init=1, max_iter=20)  # pyright: ignore[reportArgumentType]
    made.fit(rows.numpy())
    return torch.from_numpy(made.cluster_centers_).to(rows.dtype)
