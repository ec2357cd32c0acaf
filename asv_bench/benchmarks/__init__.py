"""Benchmarks of the public functions: a file for each area, and the functions as parameters.

Time is tracked as it is and, because that depends on the machine and its mood, also as the
ratio to a peer's time in the same process. Errors are tracked in units in the last place, and
memory in bytes.

The suite runs against old commits too. What a commit lacks is skipped: ``setup`` raises
NotImplementedError.
"""
