"""Every benchmark that needs nothing but the shared data, one after the other; `--seconds` is handed on.

`nanogpt.py` wants a clone of nanoGPT, `text_compression.py` a text: they are run by hand.
"""

import subprocess
import sys
from pathlib import Path

SCRIPTS = (
    "loop_overhead.py",
    "flow_speed.py",
    "diffusion_speed.py",
    "digits.py",
    "binarized_mnist.py",
    "image_sampling.py",
    "binary_density.py",
    "tables.py",
    "images.py",
    "nets.py",
)

for script in SCRIPTS:
    subprocess.run([sys.executable, Path(__file__).parent / script, *sys.argv[1:]], check=True)
