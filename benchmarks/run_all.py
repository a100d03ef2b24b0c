"""Every benchmark, one after the other; `--seconds` is handed on."""

import subprocess
import sys
from pathlib import Path

SCRIPTS = ("loop_overhead.py", "digits.py")

for script in SCRIPTS:
    subprocess.run([sys.executable, Path(__file__).parent / script, *sys.argv[1:]], check=True)
