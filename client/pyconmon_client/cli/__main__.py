"""`python -m pyconmon_client.cli`: the same as the command pyconmon-client."""

from __future__ import annotations

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
