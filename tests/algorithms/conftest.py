"""Lets the tests of this folder share the helpers of test_language_model.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
