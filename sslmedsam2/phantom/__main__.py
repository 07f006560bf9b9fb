"""``python -m sslmedsam2.phantom FOLDER`` writes the test inputs."""

from __future__ import annotations

import argparse
from pathlib import Path

from sslmedsam2.phantom.studies import write_test_inputs

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m sslmedsam2.phantom", description="Write the synthetic test inputs."
    )
    parser.add_argument("folder", type=Path)
    write_test_inputs(parser.parse_args().folder)
