"""Bilinear spectra: what a gated layer without an activation function computes for an output, as eigenvectors of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.analyses.features import bilinear_pictures as pictures
from activarium.analyses.features.bilinear_cuts import FIRST, RANDOM, layer_cuts, model_cuts
from activarium.analyses.features.bilinear_layers import TOLERANCE, BilinearLayer, Form, Spectrum
from activarium.analyses.features.bilinear_models import Outputs, Read, read_block, vectors_of
from activarium.dictionaries.adopt import as_dictionary
from activarium.errors import CertificateError, InputError, NotFinite
from activarium.protocols import Runner
from activarium.results import Grid, Ranking, Report, Result, Series

WIDEST = 8192  # neurons between which all inner products are taken, 512 MB each


def bilinear_spectrum(
    model: Runner | BilinearLayer,
    inputs: Any,
    outputs: Outputs,
    *,
    block: int | None = None,
    labels: Sequence[int] | np.ndarray | None = None,
    approximation: str | None = None,
    vectors: int = 8,
    dense: int = 1024,
    dictionary: Any = None,
    embedding: Tensor | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Which few directions of its input does a bilinear layer multiply for each output?

    A layer y = P((Wx) ⊙ (Vx)) is, along any direction u of its output, a quadratic form uᵀy = xᵀQx with a symmetric Q made of its
    weights alone; so uᵀy = Σ λ (q·x)² exactly. That is checked on real rows. Positive eigenvalues excite, negative ones hold down.
    A gate with an activation function is not bilinear: it is refused, or approximated when that is asked for.

    Args:
        model: A live model (and `block`), or a `BilinearLayer` with weights of your own (`BilinearLayer.of(W, V, P)`).
        inputs: What the model runs on; for a layer the rows that it reads, `row d_model`.
        outputs: Directions: tokens, classes or their ids (what the head reads them with, the final norm's gain folded in), or a dict
            from names to vectors of the residual stream (a dictionary's directions, …). For a layer a dict, of vectors it writes.
        block: The block whose MLP is read.
        labels: For a layer: the right output of each row, a number in the order of `outputs`.
        approximation: `"taylor"` allows the second-order Taylor polynomial at the mean row, where the layer is not bilinear.
        vectors: How many eigenvectors of each output are shown.
        dense: Widest input for which Q is made and all eigenvectors are computed; beyond it Lanczos steps give the first `vectors`.
        dictionary: Features whose directions lie in what the layer reads (or in the stream before its norm): adds which pairs interact.
        embedding: For a layer: what each pixel writes into its rows, `d_model height width` (or `d_model channel height width`).
        seed: Draws the eigenvectors of the control.
        progress: Show a bar while the model runs with fewer eigenvectors.

    Returns:
        A report. `eigenvalues`: one curve per output, the largest size first. `vectors`: the first eigenvectors of each output, in
        the space that the layer reads (signs are arbitrary; where a 1 was appended for biases, it stands last).
        `truncation` and `agreement`: KL(full ‖ cut) in nats and unchanged top answers of the model run with only some eigenvectors
        along the outputs, first those with the largest eigenvalues, and drawn at random as the control; for a layer the right
        answers and the unchanged largest outputs. `tokens` or `pixels`: what excites each eigenvector, where the model has an
        embedding. `shared outputs`: singular values of the layer as a matrix from outputs to quadratic forms, as shares of their
        squares: how many output directions it really has. `interactions`: pairs of features. `check` holds, for each output, the largest
        difference between uᵀy as it was really computed and the quadratic form, relative to the largest |uᵀy| (and the share of
        ‖Q‖² in the eigenvectors that were computed); for an approximation the residual R² on the rows, beside its linear part's.

    Raises:
        InputError: The layer is not bilinear and no approximation was asked for, a norm follows it, or an argument does not fit.
        AxisError: Weights, rows, vectors or an embedding of other widths.
        CertificateError: The identity does not hold on the rows.
        UnknownName: No such token or class.
        NotFinite: NaN or infinity among the rows.

    Source:
        Pearce et al. 2024, Bilinear MLPs enable weight-based mechanistic interpretability, arXiv:2410.08417, sections 3 and 4.

    Differs:
        Biases are kept, by a 1 behind each row. The SVD over outputs uses inner products of neurons and never holds a matrix per
        output. The Taylor polynomial of other layers is ours, and never stands without its R².

    Example:
        >>> import torch
        >>> from activarium.analyses.features.bilinear_layers import BilinearLayer
        >>> layer = BilinearLayer(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.ones(1, 1))  # y = x₁ x₂
        >>> report = act.analyses.bilinear_spectrum(layer, torch.eye(2), {"product": [1.0]})
        >>> report["eigenvalues"].curves["product"].round(3).tolist()
        [-0.5, 0.5]
    """
    _check(model, block, labels, approximation, vectors)
    read = (
        _of_layer(model, inputs, outputs)
        if isinstance(model, BilinearLayer)
        else read_block(model, inputs, int(block or 0), outputs, approximation)
    )
    if not bool(read.x.isfinite().all()) or not bool(read.y.isfinite().all()):
        raise NotFinite("What the layer reads or writes holds NaN or infinity, so nothing can be checked on it. Run in float32.")
    forms = [read.layer.form(u) for u in read.directions]
    width = read.layer.left.shape[1]
    spectra = [f.spectrum(None if width <= dense else vectors) for f in forms]
    check = _check_rows(read, forms, spectra)
    parts: dict[str, Result] = {"eigenvalues": _eigenvalues(read, spectra), "vectors": _vectors(read, spectra, vectors)}
    if isinstance(model, BilinearLayer):
        named = None if labels is None else _labels(labels, len(read.x), len(read.names))
        parts |= layer_cuts(read, spectra, named, seed=seed)
        scale, picture = None, embedding
    else:
        at = int(block or 0)
        parts |= model_cuts(model, inputs, at, read, spectra, seed=seed, progress=progress)
        made = pictures.tokens(model, at, read, spectra, vectors)
        parts |= {"tokens": made} if made is not None else {}
        scale = _gain(model, at, dictionary)
        picture = embedding if embedding is not None else pictures.patch_embedding(model, at, read.layer.d_in)
    if picture is not None:
        parts["pixels"] = pictures.pixels(picture, read, spectra, vectors)
    if len(read.layer.left) <= WIDEST:
        parts["shared outputs"] = _shared(read)
    if dictionary is not None:
        parts["interactions"] = pictures.interactions(as_dictionary(dictionary), scale, forms, read)
    notes = {
        "rows": len(read.x),
        "exact": read.linear is None,
        "spectrum": "complete" if spectra[0].complete else f"the {vectors} largest eigenvalues, by Lanczos steps",
        "a 1 behind each row": read.layer.constant,
        "seed": seed,
    }
    return Report(parts, tuple(_words(read, forms, spectra, check, parts)), title="Bilinear spectrum", check=check, diagnostics=notes)


def _check(model: Any, block: int | None, labels: Any, approximation: str | None, vectors: int) -> None:
    layer = isinstance(model, BilinearLayer)
    if layer == (block is not None):
        raise InputError(
            "A live model needs block=, the number of the block whose MLP is read; a BilinearLayer has none. Give one or the other."
        )
    if labels is not None and not layer:
        raise InputError("labels= is for a layer of your own; a model's right answers come with its inputs.")
    if approximation not in (None, "taylor"):
        raise InputError(f"No approximation called {approximation!r}. Known: 'taylor', or None to take exact layers only.")
    if vectors < 1:
        raise InputError(f"vectors={vectors} shows none; give 1 or more.")


def _of_layer(layer: BilinearLayer, rows: Any, outputs: Any) -> Read:
    if not isinstance(outputs, Mapping):
        raise InputError("A layer of your own has no tokens or classes: give outputs as a dict from names to vectors that it writes.")
    x = rows.tensor if isinstance(rows, Activations) else torch.as_tensor(rows)
    layer.rows(x)
    if not len(x):
        raise InputError("There are no rows to check the layer on; give at least one.")
    names, directions = vectors_of(outputs, len(layer.down))
    with torch.no_grad():
        return Read(layer, x, layer(x), directions, names)


def _labels(labels: Any, rows: int, outputs: int) -> np.ndarray:
    found = np.asarray(labels)
    if found.shape != (rows,) or found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= outputs:
        raise InputError(f"labels have shape {found.shape} of {found.dtype}; wanted {rows} whole numbers from 0 to {outputs - 1}.")
    return found


def _gain(model: Any, block: int, dictionary: Any) -> Tensor | None:
    """What the norm before the layer multiplies a direction of the stream by; nothing for directions that lie behind it."""
    name = f"blocks.{block}.mlp.norm.gain"
    if dictionary is None or name not in model.weights or as_dictionary(dictionary).origin.site == f"blocks.{block}.mlp.in":
        return None
    return model.weight(name).double().cpu()


def _check_rows(read: Read, forms: Sequence[Form], spectra: Sequence[Spectrum]) -> Ranking:
    """What the layer really wrote beside its forms: an identity to be kept, or the share that an approximation explains."""
    x = read.layer.rows(read.x.double().cpu())
    real = read.y.double().cpu() @ read.directions.T
    made = torch.stack([f(x) for f in forms], 1)
    total = [float(f.matrix().square().sum()) if len(x[0]) <= 4096 else np.nan for f in forms]
    share = np.array([float((s.values**2).sum()) / t if t else np.nan for s, t in zip(spectra, total, strict=True)])
    if read.linear is not None:
        spread = (real - real.mean(0)).square().sum(0)
        straight = torch.stack([read.linear.form(u)(x) for u in read.directions], 1)
        explained, line = ((1 - (real - m).square().sum(0) / spread).numpy() for m in (made, straight))
        columns = {"R² of its linear part": line, "‖Q‖² in the eigenvectors": share}
        return Ranking(read.names, explained, columns, title="What the Taylor polynomial explains on the rows", unit="R²")
    limit = TOLERANCE.get(read.y.dtype, 2e-2)
    largest = real.abs().amax(0)
    gap = (real - made).abs().amax(0)
    for name, form, apart in zip(read.names, forms, gap.tolist(), strict=True):
        if apart > limit * form.size(x):
            raise CertificateError(
                f"Along {name!r} the layer wrote something {apart:.3g} away from its quadratic form; rounding in {read.y.dtype} explains "
                f"{limit * form.size(x):.3g}. Are these rows what the layer reads, and its weights those it ran with?"
            )
    columns = {"‖Q‖² in the eigenvectors": share}
    if all(s.complete for s in spectra):
        summed = torch.stack([s(x) for s in spectra], 1)
        columns = {"by the eigenvectors": ((real - summed).abs().amax(0) / largest).numpy()} | columns
    return Ranking(
        read.names, (gap / largest).numpy(), columns, title="Quadratic form against what the layer wrote", unit="relative difference"
    )


def _eigenvalues(read: Read, spectra: Sequence[Spectrum]) -> Series:
    curves = {name: s.values for name, s in zip(read.names, spectra, strict=True)}
    return Series(np.arange(len(spectra[0].values)), curves, "eigenvector", title="Eigenvalues, the largest size first", unit="model units")


def _vectors(read: Read, spectra: Sequence[Spectrum], count: int) -> Grid:
    shown = np.stack([s.vectors[:count] for s in spectra])
    return Grid(shown, ("output", "eigenvector", "d_model"), {"output": read.names}, title="Eigenvectors in what the layer reads")


def _shared(read: Read) -> Series:
    """Squared singular values of the layer as a map from outputs to forms, as shares: few mean that outputs share their forms."""
    overlap = read.layer.overlaps(torch.eye(len(read.layer.down), dtype=torch.float64))
    values = torch.linalg.eigvalsh(overlap).flip(0).clamp_min(0).numpy()
    total = values.sum() or 1.0
    curves = {"share": values / total, "up to here": values.cumsum() / total}
    return Series(
        np.arange(1, len(values) + 1), curves, "output direction", title="Output directions that the layer's forms span", unit="share"
    )


def _straight(read: Read, spectrum: Spectrum, form: Form) -> str:
    """How much of the form is linear or constant: what its last row and column hold, where a 1 was appended."""
    if not read.layer.constant or not spectrum.complete:
        return ""
    last = form.times(torch.eye(form.left.shape[1], dtype=torch.float64)[-1])
    share = float(2 * last.square().sum() - last[-1].square()) / float((spectrum.values**2).sum() or 1.0)
    return f" (its linear and constant terms are {share:.0%} of that sum)"


def _words(read: Read, forms: Sequence[Form], spectra: Sequence[Spectrum], check: Ranking, parts: Mapping[str, Result]) -> list[str]:
    said = []
    if read.linear is None:
        said.append(
            f"The layer is its quadratic form: on {len(read.x):,} rows they differ by at most {check.values.max():.1g} of the largest value."
        )
    else:
        low = int(check.values.argmin())
        line = check.columns["R² of its linear part"][low]
        said.append(
            f"The layer is NOT bilinear. Its Taylor polynomial at the mean row has R² from {check.values[low]:.3f} ({check.names[low]}) to "
            f"{check.values.max():.3f} on {len(read.x):,} rows; the linear part alone {line:.3f} for {check.names[low]}."
        )
    for name, spectrum, form in list(zip(read.names, spectra, forms, strict=True))[:4]:
        squares = spectrum.values**2
        first = int(np.searchsorted(squares.cumsum(), 0.9 * squares.sum())) + 1
        of = "" if spectrum.complete else " computed"
        said.append(
            f"{name}: {first} of {len(squares)}{of} eigenvectors hold 90% of the sum of squared eigenvalues{_straight(read, spectrum, form)}."
        )
    cut = parts.get("truncation")
    if isinstance(cut, Series) and len(cut.x) > 2:
        at = min(3, len(cut.x) - 1)
        said.append(
            f"{cut.title} with {cut.x[at]} eigenvectors: {cut.curves[FIRST][at]:.3g}, drawn at random {cut.curves[RANDOM][at]:.3g} {cut.unit}."
        )
    return said
