"""What the views of an Overlay share."""

from typing import Any

import numpy as np

from activarium import pictures
from activarium.results import Overlay
from activarium.widgets import payload


def map_words(overlay: Overlay, values: np.ndarray) -> dict[str, Any]:
    """What every view of an Overlay tells the browser about its maps."""
    return {
        "title": overlay.title,
        "unit": overlay.unit,
        "names": [str(name) for name in overlay.names],
        "dtype": "f4" if values.dtype == np.float32 else "f8",
        "source": overlay.values.dtype.name,
        "range": list(pictures.colour_range(values)),
        "data": list(payload.extent(values)),
    }
