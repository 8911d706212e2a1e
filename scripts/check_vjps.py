"""Check hand-written VJPs, the catalogue's or your own; --help says how."""

import sys

from jaxprop.checking.command import main

if __name__ == "__main__":
    sys.exit(main())
