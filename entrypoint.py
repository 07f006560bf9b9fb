#!/usr/bin/env python3
"""Entry point of the container: passes its arguments to the command line."""

import sys

from sslmedsam2.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
