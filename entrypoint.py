#!/usr/bin/env python3
"""The container's door: hands its arguments to the command line and does nothing else."""

import sys

from sslmedsam2.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
