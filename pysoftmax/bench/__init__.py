"""pysoftmax side by side with other libraries: the race behind ``python -m pysoftmax bench``.

`cases` says what is computed, `peers` by whom, `measure` takes the times, `results` keeps them,
`report` and `plot` show them. Every library but NumPy is imported when it is first needed.
"""
