"""Compute Student's t quantiles, and the smallest difference that a comparison would find.

Degrees of freedom are whole numbers here, so the distribution is a finite sum. SciPy has both functions, but
it is not among the trainer's packages and would add 35 MB to every set-up.
"""

import math
from functools import lru_cache
from statistics import NormalDist

import torch

POWER = 0.8
GRID = 200  # points of the integral over the chi distribution


def student_inside(t: float, freedom: int) -> float:
    """Return P(|T| < t) for t >= 0 (Abramowitz & Stegun 1972, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for i in range(2 if odd else 1, freedom - 2, 2):
        term *= cosine**2 * i / (i + 1)
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


@lru_cache
def student_quantile(level: float, freedom: int) -> float:
    """Return t with P(|T| < t) = level, by bisection on the angle arctan(t / sqrt(freedom))."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if student_inside(math.tan(middle) * math.sqrt(freedom), freedom) < level:
            low = middle
        else:
            high = middle
    return math.tan((low + high) / 2) * math.sqrt(freedom)


def detectable(rows_error: float, seeds_error: float, freedom: int, level: float) -> float:
    """Return the true difference whose interval lies above zero with probability POWER.

    rows_error, seeds_error: the true standard errors of a difference. The measured standard error of the
    seeds varies as chi over `freedom`, so the half-width of the interval varies too; the power is its mean
    over that distribution. Without rows it is the power of Student's test by the noncentral t distribution
    (Johnson, Kotz & Balakrishnan 1995, ch. 31).
    """
    error = math.hypot(rows_error, seeds_error)
    if error == 0:
        return 0.0
    chi = (torch.arange(GRID, dtype=torch.float64) + 0.5) * (math.sqrt(freedom) + 6) / GRID
    weights = torch.softmax((freedom - 1) * chi.log() - chi**2 / 2, dim=0)
    normal = NormalDist().inv_cdf((1 + level) / 2)
    student = student_quantile(level, freedom)
    half_widths = torch.hypot(
        torch.full_like(chi, normal * rows_error), student * seeds_error * chi / math.sqrt(freedom)
    )
    low, high = 0.0, float(half_widths.max()) + 6 * error
    for _ in range(30):
        middle = (low + high) / 2
        found = float(weights @ torch.special.ndtr((middle - half_widths) / error))
        low, high = (middle, high) if found < POWER else (low, middle)
    return (low + high) / 2
