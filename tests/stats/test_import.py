from __future__ import annotations

import subprocess
import sys


def test_the_room_imports_neither_scipy_stats_nor_any_other_room():
    # scipy.stats alone takes a second to import, which every gate would pay.
    code = """
import sys, pytest_modelserve.stats
rooms = {name.split(".")[1] for name in sys.modules if name.startswith("pytest_modelserve.")}
print(sorted(rooms), "scipy.stats" in sys.modules)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "['errors', 'stats'] False\n"
