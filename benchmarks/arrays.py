"""Float arrays that every flow library gets alike: 2-D toys, breast-cancer, digits and the UCI tables of the shared data.

Without torch and likely, so that the peers' environment can import it, too. Toys, breast-cancer and digits are those of
`shared/peerbench/common.py`; a table is standardised by the moments of its training rows, its first fold is the test.
"""

import importlib.util
import os
from pathlib import Path

import numpy as np

SHARED = Path(__file__).parents[2] / "shared"
TOYS = ("checkerboard", "moons", "8gaussians")
TABLES = ("uci_bike", "uci_concrete", "uci_elevators", "uci_parkinsons", "uci_pol")
NAMES = (*TOYS, "breast-cancer", "digits", *TABLES)
LEVELS = 17  # of a digit's pixel


def split(name):
    """Train, validation and test rows, float32; of digits whole numbers from 0 to 16."""
    if name in TOYS:
        train, test = _peerbench().toy(name, 20000, 0), _peerbench().toy(name, 20000, 1)
    elif name == "digits":
        train, test, *_ = _peerbench().digits()
    elif name == "breast-cancer":
        train, test, *_ = _peerbench().breast()
    else:
        train, test = _table(name)
    train, test = train.astype(np.float32), test.astype(np.float32)
    held = len(train) // 10
    return train[:-held], train[-held:], test


def true_nats(name, x):
    """The mean of -log p of points of a toy under the density that they are drawn from."""
    return _peerbench().toy_true_nll(name, x)


def _table(name):
    x, folds = (np.loadtxt(SHARED / f"data/tables/{name}{end}.csv.gz", delimiter=",") for end in ("", "_test_mask"))
    is_test = folds[:, 0].astype(bool)
    train = np.random.default_rng(0).permutation(x[~is_test])
    varies = train.std(0) > 0
    mean, scale = train[:, varies].mean(0), train[:, varies].std(0)
    return (train[:, varies] - mean) / scale, (x[is_test][:, varies] - mean) / scale


def _peerbench():
    threads = os.environ.get("OMP_NUM_THREADS")
    spec = importlib.util.spec_from_file_location("peerbench_common", SHARED / "peerbench/common.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if threads:
        os.environ["OMP_NUM_THREADS"] = threads
    return module
