"""The `patchcore` command: one module per subcommand, and the handling of errors and signals.

SIGINT (Ctrl-C) and SIGTERM end the command with one line and the exit code that shells expect. This
module imports nothing slow, so that the signal handlers are in place early.
"""

import gc
import importlib
import io
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from patchcore.commands.environment import check_environment
from patchcore.errors import REMEDIES, printable, warning_line

COMMANDS = {
    "train": "fit PatchCore on a category and test it",
    "test": "measure a saved or exported model on a data set",
    "export": "write a saved model for another runtime",
    "extend": "add nominal images to a model, or remove some",
    "report": "compare runs on a page and in tables",
    "dashboard": "make a W&B workspace and report of a sweep",
    "fetch": "download a data set from its owners",
    "predict": "inspect images with a fitted model",
    "serve": "run a web page and an endpoint that inspect images",
    "cache": "show or clear the cache of sweeps",
    "completion": "print a script for completion with Tab in a shell",
}
EXAMPLES = """\
  patchcore train                                        generated images
  patchcore train data=folder data.nominal=GOOD artifact=true      your images
  patchcore predict RUN/artifact IMAGES --overlays       with the model of a run
  patchcore train --multirun patch.size=1,3,5 seed=0,1   every combination
  patchcore report multirun                              a page with all of them"""
STDOUT = "stdout"
"""Name of stdout in messages, and as the file of an error."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)
COMMAND = "PATCHCORE_COMMAND"
"""Environment variable that tells a launcher's processes the process id of the multirun."""

_command: int | None = None  # process id of the command, where its handlers are in place
_seen: int | None = None  # number of the signal that has come
_watched = False  # whether this launcher's process ends with the command


def main() -> None:
    """Entry point: `patchcore COMMAND …`.

    It ends quietly, with exit code 1, if whoever reads its output, such as head, has closed the
    pipe, and with one line if the disk behind stdout is full.
    """
    open_streams()
    try:
        try:
            _run()
        finally:
            if not sys.stdout.closed:
                sys.stdout.flush()  # else Python does this at its end, and prints the error
    except BrokenPipeError:
        discard_stdout()
        sys.exit(1)
    except OSError as error:
        if error.filename != STDOUT:
            raise
        discard_stdout()
        advice = REMEDIES.get(error.errno or 0, "choose another file")
        sys.exit(f"error: {STDOUT}: {error.strerror}: {advice}")


def _run() -> None:
    command, *rest = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print(usage())
        return
    if command in ("-V", "--version"):
        from importlib.metadata import version  # here, as other commands need not wait for it

        print(f"patchcore {version('patchcore')}")
        return
    if command not in COMMANDS:
        sys.exit(f"error: {printable(unknown(command))}")
    if command == "train" and not {"-sc", "--shell-completion"}.isdisjoint(rest):
        sys.exit("error: -sc: is now called patchcore completion bash, zsh or fish")
    sys.argv = [f"patchcore {command}", *sys.argv[2:]]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors, and `plain_errors` prints them
    warnings.formatwarning = warning_line
    try:
        with stoppable(), plain_errors():
            check_environment()
            if command == "train":
                from patchcore.commands.flags import check_flags  # PyTorch takes seconds

                check_flags(rest)
            load(f"patchcore.commands.{command}").main()
    except Stopped as stop:
        end(stop)


def discard_stdout() -> None:
    """Discard what is left to write to stdout, which Python would fail to write when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def open_streams() -> None:
    """Open what the caller has closed of stdin, stdout and stderr, so that libraries find them.

    Output to them is discarded, and no other file gets their numbers. Characters that an encoding
    lacks, such as those of names in ASCII, are written as `\\xe9`. Messages on stderr that cannot
    be written are discarded.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    if sys.stdout is sys.__stdout__:
        sys.stdout = _reopened(sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _reopened(sys.stderr)


class _Screen(io.FileIO):
    """Open file of stdout or stderr.

    An error of stdout names it. One of stderr is passed over: no command fails, and no result is
    lost, because nobody reads its messages.
    """

    def write(self, data: Any) -> int:
        """Write bytes; returns their number."""
        try:
            return super().write(data)
        except OSError as error:
            if self.fileno() == 2:
                return len(data)
            error.filename = STDOUT
            raise


def _reopened(stream: Any) -> io.TextIOWrapper:
    """Return a stream like this one of Python's, as a `_Screen`."""
    stream.flush()
    raw = _Screen(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw) if isinstance(stream.buffer, io.BufferedWriter) else raw,
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,  # as PYTHONUNBUFFERED wants it
    )


def usage() -> str:
    """Return the help of `patchcore` itself, which fits on a screen of 80 by 24."""
    commands = "\n".join(f"  {name:10} {purpose}" for name, purpose in COMMANDS.items())
    return (
        f"usage: patchcore COMMAND [OPTIONS]\n\n{commands}\n\nexamples:\n{EXAMPLES}\n\npatchcore "
        "COMMAND --help tells more; patchcore --version prints the version."
    )


def load(name: str) -> Any:
    """Return a module, imported with Python's garbage collector switched off.

    Importing PyTorch creates very many objects that stay. Scanning them again and again takes time,
    so they are also excluded from later collections.
    """
    if name in sys.modules or not gc.isenabled():
        return importlib.import_module(name)
    gc.disable()
    try:
        module = importlib.import_module(name)
        gc.freeze()
    finally:
        gc.enable()
    return module


def unknown(command: str) -> str:
    """Return the message for an unknown command, with the closest command or all of them."""
    from difflib import get_close_matches

    if "=" in command or command in ("-m", "--multirun", "--cfg"):
        return f"no command {command!r}; options of runs come after patchcore train"
    close = get_close_matches(command, COMMANDS, 1)
    rest = f"did you mean {close[0]}?" if close else f"there is {', '.join(COMMANDS)}"
    return f"no command {command!r}; {rest}"


@contextmanager
def plain_errors() -> Iterator[None]:
    """Print a user's mistake in one line and exit with code 1; a bug keeps its traceback."""
    try:
        yield
    except BrokenPipeError:
        raise  # `main` ends quietly
    except Exception as error:
        if getattr(error, "filename", None) == STDOUT:
            raise  # `main` tells it
        from patchcore.commands.mistakes import explain  # here: `--help` need not wait for Hydra

        message = explain(error)
        if message is None:
            raise
        sys.exit(f"error: {message}")


class Stopped(BaseException):
    """The process was asked to end by a signal.

    It is neither an Exception, which would count as a failed run, nor a KeyboardInterrupt, which
    Lightning handles itself and turns into exit code 1.

    Args:
        number: Number of the signal.
        kept: Sentence for the user: which results are kept, and how to continue.
    """

    def __init__(self, number: int, kept: str = "start the same command again") -> None:
        super().__init__(number, kept)
        self.number = number
        self.kept = kept
        self.apart = False  # whether progress bars of other processes may be on the line

    @property
    def code(self) -> int:
        """Exit code of the process: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.number

    def __str__(self) -> str:
        return f"interrupted ({signal.Signals(self.number).name}): {self.kept}"


@contextmanager
def stoppable() -> Iterator[None]:
    """Turn the first signal into `Stopped`, so that trackers are closed; a second ends at once.

    Has no effect outside the main thread. A signal that is ignored already, as after `nohup`, stays
    ignored.
    """
    global _command, _seen
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, owner = {}, os.getpid()
    _seen = None

    def handle(number: int, frame: FrameType | None) -> None:
        global _seen
        if os.getpid() != owner:  # a loader process: the process that started it decides
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if _seen is not None:
            os.write(2, b"\ninterrupted again: ended at once\n")
            os._exit(128 + number)
        if _finalises(frame):
            _again_soon(number)
            return
        _seen = number
        raise Stopped(number)

    for each in SIGNALS:
        if (old := signal.getsignal(each)) is not signal.SIG_IGN:
            before[each] = old
            signal.signal(each, handle)
    outer, _command = _command, owner
    try:
        yield
    except Exception as error:
        if _seen is not None:  # a library turned the signal into an error of its own
            raise Stopped(_seen) from error
        raise
    except SystemExit as error:
        if _seen is not None:
            raise Stopped(_seen) from error
        raise
    finally:
        _command, _seen = outer, None
        for each, old in before.items():
            signal.signal(each, old)


def _finalises(frame: FrameType | None) -> bool:
    """Whether an object is being finalised: Python only prints exceptions that are raised there."""
    while frame is not None:
        if frame.f_code.co_name == "__del__" or frame.f_globals.get("__name__") == "weakref":
            return True
        frame = frame.f_back
    return False


def _again_soon(number: int) -> None:
    """Send this process the same signal once more, a moment later."""
    timer = threading.Timer(0.01, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def raise_if_stopped() -> None:
    """Raise `Stopped` again if a signal has come, in case a library has caught the first one."""
    if _seen is not None:
        raise Stopped(_seen)


def end(stop: Stopped) -> None:
    """Print the reason and exit; further signals are ignored."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    print("\n" * stop.apart + str(stop), file=sys.stderr)
    sys.exit(stop.code)


@contextmanager
def job() -> Iterator[None]:
    """Handle signals while a job of a multirun runs, in whatever process its launcher chose.

    A worker process of joblib ignores Ctrl-C, because the command ends it. It also ends when the
    command was killed; otherwise it would keep its memory for minutes while it waits for work. On
    SIGTERM it closes trackers like the command and then exits, so that the launcher notices it.
    """
    import multiprocessing  # here: it is slow, and signal handlers have to be in place first

    worker = multiprocessing.current_process().name.startswith("Loky")
    if not worker or _command == os.getpid():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a loader process: the process that started it decides
            os._exit(128 + number)
        if _finalises(frame):
            _again_soon(number)
            return
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Stopped(number)

    old = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    except Stopped as stop:
        os._exit(stop.code)
    finally:
        signal.signal(signal.SIGTERM, old)


def end_with_parent(every: float = 1.0) -> None:
    """End this process soon after the command has ended, even if that was before this call.

    Then the process has another parent already, so its present parent says nothing.
    """
    global _watched
    if _watched:
        return
    _watched, parent = True, os.getppid()
    command = int(os.environ.get(COMMAND) or parent)

    def watch() -> None:
        while os.getppid() == parent and _runs(command):
            time.sleep(every)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def tell_unless_ended(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Print an error with its traceback, unless the command ends within a second.

    Then the error tells only that: what the command has shared with this process is gone.
    """
    command = int(os.environ.get(COMMAND) or os.getpid())
    for _ in range(20):
        if not _runs(command):
            return
        time.sleep(0.05)
    sys.__excepthook__(kind, error, trace)


def _runs(process: int) -> bool:
    """Whether a process runs; one that has ended stays known until its parent has been told."""
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            return not file.read().rpartition(")")[2].startswith(" Z")
    except OSError:  # a system without such files
        return True
