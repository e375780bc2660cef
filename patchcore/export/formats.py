"""File formats of exported graphs: how each is written, and run by its own runtime.

A new format is a `Format`, and its line in `FORMATS`. Libraries are imported when they are needed;
`pip install 'patchcore[export]'` brings all of them.
"""

import importlib
import io
import shutil
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from patchcore.errors import InputError
from patchcore.export.graph import reason

OPSET = 18
"""Version of ONNX's standard operators: the oldest that PyTorch's exporter writes by itself."""
INPUT, OUTPUTS = "images", ("score", "map")
_WHOLE = 2**31 - 2**24  # bytes of weights that fit into one ONNX file, which ends at 2 GiB

Run = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Images (B, h, w, 3) to scores (B,) and anomaly maps (B, h, w)."""


class Format(ABC):
    """One format of exported graphs.

    Attributes:
        name: Its name in `FORMATS`.
        file: Name of the file that a runtime opens; others may lie beside it.
        runtime: Library that runs it, by its name on PyPI.
        writers: Further libraries that it is written with.
    """

    name: ClassVar[str]
    file: ClassVar[str]
    runtime: ClassVar[str]
    writers: ClassVar[tuple[str, ...]] = ()

    def check(self) -> None:
        """Raise InputError if a library is missing."""
        for library in (self.runtime, *self.writers):
            needed(library)

    @abstractmethod
    def write(self, program: torch.export.ExportedProgram, folder: Path) -> None:
        """Write a graph into a folder.

        Raises:
            InputError: An operation of the graph has no counterpart.
            OSError: The file cannot be written.
        """

    @abstractmethod
    def open(self, folder: Path, threads: int | None = None) -> Run:
        """Return what runs the graph in a folder, on the CPU.

        Args:
            threads: How many it may use; None leaves that to the runtime.

        Raises:
            InputError: The library is missing, or it cannot run the graph.
        """


class OnnxFormat(Format):
    """ONNX, of standard operators alone; run by ONNX Runtime."""

    name = "onnx"
    file = "model.onnx"
    runtime = "onnxruntime"
    writers = ("onnx", "onnxscript")

    def write(self, program: torch.export.ExportedProgram, folder: Path) -> None:
        """See `Format.write`; what is larger than 2 GiB keeps its weights in a second file."""
        large = sum(x.nbytes for x in program.state_dict.values()) > _WHOLE
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of deprecations inside PyTorch
                made: Any = torch.onnx.export(
                    program,
                    dynamo=True,
                    opset_version=OPSET,
                    input_names=[INPUT],
                    output_names=OUTPUTS,
                    custom_translation_table={torch.ops.aten.sort.stable: _stable_sort()},
                    verbose=False,
                )
        except Exception as error:  # the exporter has many of its own
            raise InputError(reason(error)) from error
        made.save(folder / self.file, external_data=large)

    def open(self, folder: Path, threads: int | None = None) -> Run:
        """See `Format.open`."""
        library = needed(self.runtime)
        options = library.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3  # errors
        with _opening(folder / self.file):
            session = library.InferenceSession(
                folder / self.file, options, providers=["CPUExecutionProvider"]
            )

        def run(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            score, maps = session.run(list(OUTPUTS), {INPUT: images})
            return score, maps

        return run


class OpenVinoFormat(Format):
    """OpenVINO's intermediate representation, made from ONNX.

    Weights are kept in float32, and computing in less is ruled out: on processors with bfloat16
    OpenVINO would choose that by itself, and distances would be wrong by a percent.
    """

    name = "openvino"
    file = "model.xml"
    runtime = "openvino"
    writers = OnnxFormat.writers

    def write(self, program: torch.export.ExportedProgram, folder: Path) -> None:
        """See `Format.write`."""
        library = needed(self.runtime)
        with tempfile.TemporaryDirectory() as between:
            try:
                OnnxFormat().write(program, Path(between))
                made = Path(between) / self.name
                made.mkdir()
                model = library.Core().read_model(Path(between) / OnnxFormat.file)
                model.set_rt_info("f32", ["runtime_options", "INFERENCE_PRECISION_HINT"])
                try:
                    library.save_model(model, made / self.file, compress_to_fp16=False)
                except RuntimeError as error:
                    raise OSError(reason(error)) from error
            except OSError as error:
                where = f"in {tempfile.gettempdir()}, where it is made first"
                raise OSError(
                    f"{error.strerror or error}, {where}: make room there or set TMPDIR"
                ) from error
            except RuntimeError as error:
                raise InputError(reason(error)) from error
            for path in made.iterdir():
                shutil.copyfile(path, folder / path.name)  # whose errors say why, unlike OpenVINO's

    def open(self, folder: Path, threads: int | None = None) -> Run:
        """See `Format.open`."""
        library = needed(self.runtime)
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        with _opening(folder / self.file):
            core = library.Core()
            model = core.compile_model(core.read_model(folder / self.file), "CPU", options)

        def run(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            found = model({INPUT: images})
            return found[0], found[1]

        return run


class TorchFormat(Format):
    """PyTorch's own programs, as `torch.export.save` writes them.

    PyTorch unpickles parts of such a file, so that a forged one can run code: unlike the other
    formats it is to be opened only where its origin is trusted.
    """

    name = "torch"
    file = "model.pt2"
    runtime = "torch"

    def write(self, program: torch.export.ExportedProgram, folder: Path) -> None:
        """See `Format.write`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = io.BytesIO()  # a full disk would abort the process
            torch.export.save(program, made)
        (folder / self.file).write_bytes(made.getbuffer())

    def open(self, folder: Path, threads: int | None = None) -> Run:
        """See `Format.open`; the number of threads is PyTorch's own."""
        with _opening(folder / self.file), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch.export.load(folder / self.file).module()

        def run(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            with torch.no_grad():
                score, maps = graph(torch.from_numpy(images))
            return score.numpy(), maps.numpy()

        return run


FORMATS: dict[str, Format] = {x.name: x for x in (OnnxFormat(), OpenVinoFormat(), TorchFormat())}


def _stable_sort() -> Callable[..., Any]:
    """Translation of PyTorch's stable sort, which its exporter lacks.

    Of equal values TopK puts the one with the lower index first: it is stable by definition.
    """
    from onnxscript import opset18 as op

    def sort(self: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
        one = op.Constant(value_ints=[1])
        length = op.Reshape(op.Gather(op.Shape(self), dim, axis=0), one)
        return op.TopK(self, length, axis=dim, largest=int(descending), sorted=1)

    return sort


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    """Tell what a runtime says of a file in one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each runtime has its own
        raise InputError(f"{path}: cannot be run here ({reason(error)})") from error


def needed(library: str) -> Any:
    """Import a library of the extra `export`. Raises InputError if it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module(library)
    except ImportError as error:
        raise InputError(
            f"{library} is not installed, and this format needs it: pip install 'patchcore[export]'"
            if isinstance(error, ModuleNotFoundError) and error.name == library
            else f"{library} cannot be imported ({reason(error)})"
        ) from None
