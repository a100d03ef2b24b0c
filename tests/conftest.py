"""One thread and one random state per test; shapes and types are checked at run time, in tests only."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from jaxtyping import install_import_hook

# annotations of the package are checked by beartype whenever tests import it
_hook = install_import_hook("likely", "typecheck.check")


@pytest.fixture(autouse=True)
def _own_random_state():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)
