"""Make docs/catalogue.md from what the checker and the benchmark wrote; --help says how."""

import sys

from jaxprop.checking.catalogue_page import main

if __name__ == "__main__":
    sys.exit(main())
