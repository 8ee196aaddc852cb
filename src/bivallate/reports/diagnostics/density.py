"""Kernel density estimates as lines of a figure."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import gaussian_kde

GRID = 200


def log_grid(values: list[np.ndarray]) -> tuple[float, np.ndarray]:
    """The smallest value to draw, and a grid on the axis of decimal logarithms, for all of these values."""
    every = np.concatenate(values).astype(float)
    low = max(1e-4, float(np.quantile(every, 0.001)))  # FOSC can be exactly zero
    return low, np.linspace(np.log10(low) - 0.3, np.log10(max(float(every.max()), 10 * low)) + 0.3, GRID)


def log_density(ax: Any, at: np.ndarray, low: float, values: np.ndarray, **style: Any) -> None:
    """Draw the Gaussian kernel density of the decimal logarithm; values that are all equal as a line."""
    logs = np.log10(values.astype(float).clip(low))
    if np.ptp(logs) > 1e-3:
        ax.plot(10**at, gaussian_kde(logs)(at), **style)
    else:
        ax.axvline(10 ** float(logs[0]), **style)


def density(ax: Any, values: np.ndarray, most: float, **style: Any) -> None:
    """Draw the Gaussian kernel density of values from 0 to `most`; values that are all equal as a line."""
    if np.ptp(values) > 1e-6:
        at = np.linspace(0, most, GRID)
        ax.plot(at, gaussian_kde(values.astype(float))(at), **style)
    else:
        ax.axvline(float(values[0]), **style)
