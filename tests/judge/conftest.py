"""The stand-in judge can be imported by name, as a backend is."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "support"))
