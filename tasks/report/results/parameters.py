"""Parameters as flat text, the same in MLflow, in the report and in comparisons."""

from collections.abc import Mapping
from typing import Any

__all__ = ["flat", "of_the_valuation"]

# What MLflow holds.
MAX_PARAM_CHARACTERS = 6000


def flat(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters with dotted names, as text."""
    items: dict[str, str] = {}
    for key, value in parameters.items():
        if isinstance(value, Mapping):
            items |= flat(value, f"{prefix}{key}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            items[f"{prefix}{key}"] = text[:MAX_PARAM_CHARACTERS]
    return items


def of_the_valuation(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters without where the valuation is written and logged, which changes nothing about it."""
    return {name: value for name, value in parameters.items() if name not in ("results", "tracking")}
