"""Names of the array types that most files use."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
"""Loads, times, ratios."""
Ints = NDArray[np.int64]
"""Counts and indices."""
Map = NDArray[np.int32]
"""Expert ids by slot, or slots by expert; -1 is an empty slot."""
