"""Where shrinking by field names cannot know: values by model type, as data."""

from __future__ import annotations

from typing import Any

EXCEPTIONS: dict[str, dict[str, Any]] = {}
