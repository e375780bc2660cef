"""Processes for tests: forks of one that has imported the slow libraries, once for all tests.

Nothing here imports the package, so that a fork can import a copy of it.
"""

import os
import sys
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path

LIBRARIES = [
    *("torch", "torchmetrics", "torchvision", "timm", "pytorch_lightning", "scipy.stats"),
    *("hydra.main", "jinja2", "matplotlib.pyplot", "safetensors.torch", "wandb"),
]


def forkserver() -> ForkServerContext:
    """Return the context of these processes."""
    context = get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    return context


def execute(program: str, *arguments: str, folder: Path, patience: float = 300) -> str:
    """Run a program in `folder`, as `python -c` does; return its output.

    It has so many seconds.

    Raises:
        AssertionError: It failed; with all that it printed.
    """
    log = folder / "program.log"
    process = forkserver().Process(target=_execute, args=(program, arguments, folder, log))
    process.start()
    process.join(patience)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode == 0, log.read_text()
    return log.read_text()


_INTERPRETED = """
import os, sys
os.environ["TRITON_INTERPRET"] = "1"
for name in [*sys.modules]:
    if name.partition(".")[0] == "triton" and not name.startswith("triton._C"):
        del sys.modules[name]
sys.path.insert(0, {root!r})
"""


def execute_interpreted(program: str, folder: Path) -> str:
    """Run a program whose Triton kernels are interpreted on the CPU; see `execute`.

    Triton decides so when it is imported, so it is imported anew.
    """
    root = str(Path(__file__).parents[1])
    return execute(_INTERPRETED.format(root=root) + program, folder=folder)


def _execute(program: str, arguments: tuple[str, ...], folder: Path, log: Path) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    sys.dont_write_bytecode = True
    sys.argv = ["-c", *arguments]
    sys.path.insert(0, str(folder))
    exec(compile(program, "program", "exec"), {"__name__": "__main__"})
