"""PPMd var. H (pyppmd, 1 GiB of memory) on the last tenth of a text, after the rest; one JSON line."""

import json
import sys
import time
from pathlib import Path

import pyppmd

ORDER = 6


def size(text):
    encoder = pyppmd.Ppmd7Encoder(ORDER, 1 << 30)
    return len(encoder.encode(text)) + len(encoder.flush(endmark=False))


text = Path(sys.argv[1]).read_bytes()
cut = len(text) - len(text) // 10
start = time.process_time()
bits = 8 * (size(text) - size(text[:cut])) / (len(text) - cut)
print(json.dumps({"order": ORDER, "pyppmd": pyppmd.__version__, "bits": bits, "cpu_seconds": time.process_time() - start}))
