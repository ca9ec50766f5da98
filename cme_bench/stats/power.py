"""How small a difference could have been seen."""

from __future__ import annotations

from scipy import stats


def detectable(stderr: float, *, level: float = 0.05, power: float = 0.8) -> float:
    """Return the minimum detectable effect (Cohen 1988; Bloom 1995). It is the true difference that a
    two-sided test at ``level`` finds with probability ``power``: (z_{1 - level/2} + z_power) SE, 2.80 SE by
    default."""
    return float(stats.norm.isf(level / 2) + stats.norm.ppf(power)) * stderr
