"""`python -m mtdnn_ds VERB ...`."""

import sys

from mtdnn_ds.cli import main

if __name__ == "__main__":
    sys.exit(main())
