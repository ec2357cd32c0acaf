"""Recorded arrays for pysoftmax: it asks `recognises`, and gives its calls to `call`."""

import sys

from pysoftmax.adapters.memory import Memory


class Adapter(Memory):
    """Views of the values, and results that know where they come from."""

    name = "recorded"  # as `pysoftmax info` shows it
    library = "pysoftmax-recorded"  # what pip installs

    def recognises(self, array):
        """Without importing the library: if it is not imported, the array is not its."""
        library = sys.modules.get("pysoftmax_recorded")
        return library is not None and isinstance(array, library.Recorded)

    def view(self, array):
        """NumPy's array of the same memory."""
        return array.values

    def device(self, array):
        """All values are in the memory of the CPU."""
        return "cpu"

    def wrap(self, result, like):
        """A result, with the history of the first array."""
        return type(like)(result, like.history)

    def call(self, function, arguments):
        """The call as it was made; what is computed is the business of `Memory`."""
        options = [
            f"{name}={value!r}"
            for name, value in arguments.items()
            if value is not None and not self.recognises(value)
        ]
        entry = f"{function}({', '.join(options)})"
        results = super().call(function, arguments)
        for result in results if isinstance(results, tuple) else (results,):
            result.history += (entry,)
        return results


adapter = Adapter()
