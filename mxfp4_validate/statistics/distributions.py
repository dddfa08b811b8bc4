"""The few special functions the other modules need, once and with types, because scipy carries none."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.float64]


def normal_cdf(x: ArrayLike) -> Floats:
    """P(Z <= x) for a standard normal Z."""
    return _floats(special.ndtr(x))


def normal_quantile(probability: float) -> float:
    """The x with P(Z <= x) = probability; pass a small upper tail as its own negative quantile, so that no digits are lost."""
    return float(special.ndtri(probability))


def t_quantile(probability: float, degrees: float) -> float:
    """Quantile of Student's t with that many degrees of freedom."""
    return float(special.stdtrit(degrees, probability))


def beta_quantile(probability: ArrayLike, a: float, b: float) -> Floats:
    """Quantile of the Beta(a, b) distribution."""
    return _floats(special.betaincinv(a, b, probability))


def log_beta(a: ArrayLike, b: ArrayLike) -> Floats:
    """log of the beta function."""
    return _floats(special.betaln(a, b))


def log_binomial(n: ArrayLike, k: ArrayLike) -> Floats:
    """log of the binomial coefficient n over k, for 0 <= k <= n."""
    n, k = np.asarray(n, float), np.asarray(k, float)
    return _floats(special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1))


def two_sided_z(level: float) -> float:
    """Critical value of a two-sided interval of that level, 1.96 for .95."""
    return -normal_quantile((1 - level) / 2)


def one_sided_z(alpha: float) -> float:
    """Critical value of a one-sided bound, 1.645 for alpha .05."""
    return -normal_quantile(alpha)


def _floats(value: Any) -> Floats:
    return np.asarray(value, np.float64)
