"""Write text with a trained language model; --help says how."""

import sys

from jaxprop.train.sampling import main

if __name__ == "__main__":
    sys.exit(main())
