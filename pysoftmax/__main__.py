"""Run the command line."""

from pysoftmax.cli import main

raise SystemExit(main())
