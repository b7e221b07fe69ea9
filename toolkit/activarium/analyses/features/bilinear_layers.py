"""A bilinear layer y = P((Wx) ⊙ (Vx)) and, for each direction of its output, the symmetric matrix that it is there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from activarium.errors import AxisError, InputError

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}  # 16-bit floats get 2e-2


@dataclass(frozen=True, eq=False)
class BilinearLayer:
    """Two linear maps, multiplied entry by entry, and a third: `y = down ((left x) ⊙ (right x))`.

    Attributes:
        left: W, `d_mlp d_model`.
        right: V, `d_mlp d_model`.
        down: P, `output d_mlp`.
        constant: A 1 is appended to x, so that the last columns of W and V are biases: it then holds linear and constant terms too.
    """

    left: Tensor
    right: Tensor
    down: Tensor
    constant: bool = False

    def __post_init__(self) -> None:
        shapes = [tuple(w.shape) for w in (self.left, self.right, self.down)]
        if any(len(s) != 2 for s in shapes) or shapes[0] != shapes[1] or shapes[2][1] != shapes[0][0]:
            raise AxisError(f"W, V and P have shapes {shapes[0]}, {shapes[1]}, {shapes[2]}; wanted (h, d), (h, d) and (outputs, h).")

    @staticmethod
    def of(
        left: Tensor,
        right: Tensor,
        down: Tensor,
        left_bias: Tensor | None = None,
        right_bias: Tensor | None = None,
        down_bias: Tensor | None = None,
    ) -> BilinearLayer:
        """The layer `down ((left x + left_bias) ⊙ (right x + right_bias)) + down_bias`; biases are carried by a 1 behind x."""
        if left_bias is None and right_bias is None and down_bias is None:
            return BilinearLayer(left, right, down)
        none = left.new_zeros(len(left))
        wide = [torch.cat([w, (none if b is None else b)[:, None]], 1) for w, b in ((left, left_bias), (right, right_bias))]
        if down_bias is not None:
            one = left.new_zeros(1, left.shape[1] + 1)
            one[0, -1] = 1  # a neuron that is always 1
            wide, down = [torch.cat([w, one]) for w in wide], torch.cat([down, down_bias[:, None]], 1)
        return BilinearLayer(wide[0], wide[1], down, constant=True)

    @property
    def d_in(self) -> int:
        """Numbers in a row, without the 1."""
        return self.left.shape[1] - self.constant

    def rows(self, x: Tensor) -> Tensor:
        """Rows as W and V take them, `row d_model` or one longer.

        Raises:
            AxisError: They are of another width.
        """
        if x.ndim != 2 or x.shape[1] != self.d_in:
            raise AxisError(f"This layer reads rows of {self.d_in} numbers; got shape {tuple(x.shape)}.")
        return torch.cat([x, torch.ones_like(x[:, :1])], 1) if self.constant else x

    def __call__(self, x: Tensor) -> Tensor:
        """`row d_model` to `row output`, in the type of the weights."""
        x = self.rows(x.to(self.left.dtype))
        return ((x @ self.left.T) * (x @ self.right.T)) @ self.down.T

    def form(self, direction: Tensor) -> Form:
        """What it is along one direction of its output.

        Raises:
            AxisError: The direction has another length than its output.
        """
        if tuple(direction.shape) != (len(self.down),):
            raise AxisError(f"This layer writes {len(self.down)} numbers; the direction has shape {tuple(direction.shape)}.")
        return Form(self.left.double(), self.right.double(), direction.double() @ self.down.double())

    def overlaps(self, directions: Tensor) -> Tensor:
        """Inner products of the matrices of output directions, `output output`, without any of them: what an SVD over outputs needs.

        ⟨Q_a, Q_b⟩ = Σ P_ah P_bk ½ [(w_h·w_k)(v_h·v_k) + (w_h·v_k)(v_h·w_k)].
        """
        left, right = self.left.double(), self.right.double()
        cross = left @ right.T
        between = ((left @ left.T) * (right @ right.T) + cross * cross.T) / 2
        down = directions.double() @ self.down.double()
        return down @ between @ down.T


@dataclass(frozen=True, eq=False)
class Form:
    """A quadratic form xᵀQx with Q = ½ Σ_h c_h (w_h v_hᵀ + v_h w_hᵀ), in float64; Q itself is made only when asked for.

    Attributes:
        left: W, `d_mlp d_model`.
        right: V.
        weights: c, one per neuron.
    """

    left: Tensor
    right: Tensor
    weights: Tensor

    def matrix(self) -> Tensor:
        """Q, `d_model d_model`, exactly symmetric."""
        half = self.left.T @ (self.weights[:, None] * self.right)
        return (half + half.T) / 2

    def times(self, x: Tensor) -> Tensor:
        """Q x for one vector or for columns, without Q."""
        weights = self.weights if x.ndim == 1 else self.weights[:, None]
        return (self.left.T @ (weights * (self.right @ x)) + self.right.T @ (weights * (self.left @ x))) / 2

    def __call__(self, rows: Tensor) -> Tensor:
        """xᵀQx of each row."""
        return ((rows @ self.left.T) * (rows @ self.right.T)) @ self.weights

    def size(self, rows: Tensor) -> float:
        """Largest sum of the terms' sizes over rows: rounding is relative to it, also where the terms cancel."""
        return float((((rows @ self.left.T) * (rows @ self.right.T)).abs() @ self.weights.abs()).max())

    def spectrum(self, count: int | None = None) -> Spectrum:
        """Eigenvalues and eigenvectors, the largest size first.

        Args:
            count: Only so many, by Lanczos steps that need no Q; None computes all.

        Raises:
            InputError: Lanczos cannot give that many.
        """
        width = self.left.shape[1]
        if count is None:
            values, vectors = torch.linalg.eigh(self.matrix())
            found, columns = values.numpy(), vectors.numpy()
        else:
            if not 0 < count < width - 1:
                raise InputError(f"Lanczos gives 1 to {width - 2} eigenvectors of {width}; asked for {count}. Raise dense= to compute all.")
            from scipy.sparse.linalg import LinearOperator, eigsh

            many = lambda x: self.times(torch.as_tensor(np.ascontiguousarray(x), dtype=torch.float64)).numpy()  # noqa: E731
            operator = LinearOperator((width, width), matvec=many, matmat=many, dtype=np.float64)  # type: ignore[call-arg]
            # The library would draw the first vector anew each time.
            start = np.random.default_rng(0).standard_normal(width)
            found, columns = eigsh(operator, k=count, which="LM", v0=start)
        order = np.argsort(-np.abs(found), kind="stable")
        columns = columns[:, order]
        # A vector and its negative are the same answer: the largest entry is made positive.
        sign = np.sign(columns[np.abs(columns).argmax(0), np.arange(columns.shape[1])])
        return Spectrum(found[order], (columns * np.where(sign == 0, 1, sign)).T, count is None)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Q = Σ λ_r q_r q_rᵀ, the largest |λ| first.

    Attributes:
        values: λ, positive where the output is excited, negative where it is held down.
        vectors: q, `pair d_model`, of length 1; the sign is arbitrary, and vectors of equal values span a space together.
        complete: All of them are here.
    """

    values: np.ndarray
    vectors: np.ndarray
    complete: bool

    def __call__(self, rows: Tensor, kept: np.ndarray | slice | None = None) -> Tensor:
        """Σ λ_r (q_r·x)² of each row, over the first ones or those that are kept."""
        chosen = slice(None) if kept is None else kept
        values, vectors = (torch.as_tensor(np.ascontiguousarray(a[chosen])) for a in (self.values, self.vectors))
        return (rows.double() @ vectors.T).square() @ values
