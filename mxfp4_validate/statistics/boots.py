"""How much a server's boot alone moves the score, from A/A pairs."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

#: With fewer A/A pairs the estimate is noise, and a verdict says that boot noise was not measured.
ENOUGH_PAIRS = 3


def tau_squared(differences: ArrayLike, standard_errors: ArrayLike, boots_per_arm: int = 1) -> float:
    """Variance of a boot's effect on the score, by moments: the mean of (difference^2 - SE^2) / 2 over A/A pairs, at least 0.

    Each pair is the same configuration twice, each arm on `boots_per_arm` boots of its own. Wrong when the arms shared
    a boot (too small) or when something else differed (too large); with three pairs it is known within a factor of 3 or so.
    """
    theta, se = np.asarray(differences, float), np.asarray(standard_errors, float)
    if theta.size == 0 or theta.shape != se.shape:
        raise ValueError(f"{theta.size} differences and {se.size} standard errors, there must be as many and at least one")
    return max(0.0, float(np.mean(boots_per_arm * (theta**2 - se**2) / 2)))
