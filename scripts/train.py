"""Train a dense network with hand-written backward passes; --help says how."""

import sys

from jaxprop.train.command import main

if __name__ == "__main__":
    sys.exit(main())
