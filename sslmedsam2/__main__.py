"""``python -m sslmedsam2``: the command line, also where its script is not on the path."""

import sys

from sslmedsam2.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
