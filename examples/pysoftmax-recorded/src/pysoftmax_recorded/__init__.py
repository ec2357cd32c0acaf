"""Arrays that remember what was computed of them."""

import numpy as np


class Recorded:
    """Values, and the calls that they went through."""

    def __init__(self, values, history=()):
        self.values = np.asarray(values)
        self.history = tuple(history)

    def __repr__(self):
        return f"Recorded({self.values!r}, {list(self.history)})"
