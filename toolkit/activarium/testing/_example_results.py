"""One small Result of every kind, with the awkward cases in it: a script tag, a NaN, a negative value, a mask."""

import numpy as np

from activarium.results import Graph, Grid, Layout, Overlay, Ranking, Report, Result, Series

WORDS = ("<bos>", "Anna", "gave", "<script>", "the", "book")


def example_results() -> dict[str, Result]:
    """Kind → one Result of it, the same numbers every time.

    Example:
        >>> sorted(example_results())
        ['Graph', 'Grid', 'Layout', 'Overlay', 'Ranking', 'Report', 'Series']
    """
    made: dict[str, Result] = {"Grid": _grid(), "Ranking": _ranking(), "Series": _series(), "Layout": _layout(), "Graph": _graph()}
    made["Overlay"] = token_overlay()
    made["Report"] = Report(
        {"grid": _grid(), "ranking": _ranking(), "picture": image_overlay()},
        words=("Two of six positions differ.",),
        title="A report",
        unit="",
    )
    return made


def token_overlay() -> Overlay:
    """Two signed maps over six tokens, one of which is a script tag."""
    values = np.array([[0.0, 0.5, -0.25, 1.0, 0.125, -1.0], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]], dtype=np.float32)
    return Overlay(values, names=("gradient", "rollout"), tokens=WORDS, title="What the answer leans on", unit="logits")


def image_overlay() -> Overlay:
    """Two 4 × 4 maps over a 32 × 32 picture with its ground truth."""
    values = np.linspace(-1, 1, 32, dtype=np.float32).reshape(2, 4, 4)
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[8:16, 8:16] = (240, 200, 40)
    mask = np.zeros((32, 32), bool)
    mask[8:16, 8:16] = True
    return Overlay(values, names=("rollout", "gradient"), image=picture, mask=mask, title="Where it looks", unit="share")


def _grid() -> Grid:
    values = np.arange(18, dtype=np.float32).reshape(3, 6) - 4
    values[1, 2] = np.nan
    labels = {"layer": ("blocks.0.mlp.post", "blocks.1.mlp.post", "blocks.2.mlp.post"), "position": WORDS}
    masks = {"refused": np.isnan(values)}
    return Grid(
        values, axes=("layer", "position"), labels=labels, masks=masks, title="Effect by layer and position", unit="logits", noise=1e-5
    )


def _ranking() -> Ranking:
    columns = {"layer": np.array([2, 0, 1]), "token": np.array(["book", "<script>", "Anna"])}
    return Ranking(
        ("blocks.2.7", "blocks.0.3", "blocks.1.30"), np.array([93.5, 12.25, 0.5]), columns, title="Busiest neurons", unit="percent"
    )


def _series() -> Series:
    steps = np.array([0, 10, 100, 1000])
    curve = np.array([1.0, 0.8, 0.4, 0.35])
    bands = {"scribe": np.stack([curve - 0.05, curve + 0.05])}
    return Series(
        steps, {"scribe": curve, "scribe-relu": curve / 2}, x_label="step", bands=bands, title="Active share while training", unit="share"
    )


def _layout() -> Layout:
    points = np.array([[0.0, 0.0], [1.0, 0.5], [-1.0, 0.25], [0.5, -1.0]])
    parents = np.array([-1, 0, 0, 1])
    return Layout(
        ("all", "animals", "things", "cat"),
        points,
        sizes=np.array([4.0, 2.0, 1.0, 1.0]),
        parents=parents,
        title="Concepts",
        unit="examples",
    )


def _graph() -> Graph:
    nodes = ("embed", "blocks.0.attn", "blocks.1.mlp", "logits")
    edges = np.array([[0, 1], [1, 2], [0, 3], [2, 3]])
    columns = {
        "layer": np.array([0, 1, 2, 3]),
        "kind": np.array(["embed", "head", "mlp", "logits"]),
        "readout": np.array(["", "Anna <script>", "book", "Anna"]),
    }
    weights = np.array([1.0, 0.5, 0.25, 1.0])
    return Graph(nodes, edges, np.array([0.5, -0.25, 0.125, 1.0]), weights, columns, title="Name mover", unit="logits")
