"""Benchmarks of the public functions: a file for each measure, in it one for each function.

Whatever is tracked is better when smaller, which is what asv takes it for: ratios are our time over
another's. They are measured in turn within one process, so that a busy machine disturbs them less
than times.

The suite runs against old commits too. What a commit lacks is skipped: ``setup`` raises
NotImplementedError.

``version`` keeps the results of a benchmark whose text changes. Raise it when what is measured
changes: asv then forgets the older results.
"""
