import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from tests.shapes import check_shapes

check_shapes()  # before anything imports the package

settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
settings.load_profile("fixed")  # before any test inherits from it

SHARED = Path(os.environ.get("PATCHCORE_SHARED", Path(__file__).parents[2] / "shared"))


def shared(path: str) -> Path:
    """A file of the real data and weights that are not part of the project, or a skip."""
    if not (SHARED / path).exists():
        pytest.skip(f"needs {path} under PATCHCORE_SHARED ({SHARED})")
    return SHARED / path


@pytest.fixture(scope="session")
def resnet18_weights() -> Path:
    return shared("weights/resnet18_tv_to_layer3.safetensors")


@pytest.fixture(scope="session")
def mtd_root() -> Path:
    return shared("data/mtd")


@pytest.fixture(autouse=True, scope="session")
def interrupts() -> None:
    """Let SIGINT end runs, also in a shell's background job, which is started to ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
