"""Measure time and memory of hand-written backward passes; --help says how."""

import sys

from jaxprop.benchmarking.command import main

if __name__ == "__main__":
    sys.exit(main())
