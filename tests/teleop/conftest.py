"""Lets the tests of this folder share `console_site.py`: pytest imports each test file on its own."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
