"""Array types that several packages use."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
"""float64 array of any shape."""

Rng = np.random.Generator
