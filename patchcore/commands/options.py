"""Command-line options of all commands except train; mistakes are reported as in train."""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from patchcore.errors import InputError, local, to_write

if TYPE_CHECKING:  # most of these commands inspect no images and start sooner without
    from patchcore.inspection import Thresholds


class Parser(argparse.ArgumentParser):
    """A parser that reports a mistake in one line, with a suggestion, and exits with code 1.

    Options cannot be abbreviated, so that scripts keep working when options are added. They may
    stand before, between and after the other arguments. Their values may be negative numbers with
    an exponent, such as -1e-3. Empty values are refused.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(allow_abbrev=False, **arguments)
        # Its own pattern has no exponents, so that -1e-3 would be an option.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$", re.I)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse the arguments; an unknown option ends the program and suggests the closest one."""
        given = list(sys.argv[1:] if args is None else args)
        end = given.index("--") if "--" in given else len(given)
        if not {"-h", "--help"}.isdisjoint(given[:end]):
            self.print_help()
            self.exit()
        self._check_names(given[:end])
        # In one pass, argparse ends a list of arguments, such as IMAGES, at the first option.
        actions = self._actions
        self._actions = self._get_optional_actions()
        try:
            options, others = self.parse_known_args(given[:end], namespace)
        finally:
            self._actions = actions
        options, unknown = self.parse_known_args([*others, *given[end:]], options)
        if unknown:
            name = unknown[0].partition("=")[0]
            known = [name for action in self._actions for name in action.option_strings]
            close = get_close_matches(name, known, 1)
            advice = f"did you mean {close[0]}?" if close else f"see {self.prog} --help"
            self.error(f"{name}: there is no such option; {advice}")
        return options

    def _check_names(self, given: Sequence[str]) -> None:
        """Refuse arguments that begin like options and are files, as a shell makes of `*`."""
        for word in given:
            option = word.partition("=")[0] in self._option_string_actions
            number = self._negative_number_matcher.match(word)
            if word[:1] == "-" and not option and not number and os.path.lexists(word):
                self.error(f"{word}: begins with a dash, as options do: write ./{word} for a file")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Refuse empty values: most often a variable is not set, and "" would be this folder."""
        if "" in arg_strings:
            name = "/".join(action.option_strings) or action.metavar or action.dest
            self.error(f"{name}: the value is empty: give one, or leave the argument out")
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        """Print a mistake in one line and exit with code 1."""
        sys.exit(f"error: {message}")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the model, its device and its thresholds."""
    parser.add_argument(
        "model", metavar="MODEL", type=place, help="folder of an artifact or export"
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, …; auto: a GPU if there is one"
    )
    parser.add_argument(
        "--threshold",
        type=score,
        metavar="SCORE",
        help="threshold for images, instead of the model's",
    )
    parser.add_argument(
        "--pixel-threshold",
        type=score,
        metavar="SCORE",
        help="threshold for anomaly maps, instead of the model's",
    )


def score(text: str) -> float:
    """Parse a threshold; NaN and infinity are refused.

    Raises:
        argparse.ArgumentTypeError: The text is not a finite number.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text}")
    return value


def place(text: str) -> Path:
    """Parse the path of a file or folder, in which ~ is the home directory.

    Raises:
        argparse.ArgumentTypeError: It is a URL, or there is no such user.
    """
    return _place(text, local)


def new_place(text: str) -> Path:
    """Parse the path of a file or folder that may be made: see `place`.

    Raises:
        argparse.ArgumentTypeError: As of `place`, or it holds a control character.
    """
    return _place(text, to_write)


def _place(text: str, check: Callable[[str], str]) -> Path:
    try:
        return Path(check(text)).expanduser()
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def count(text: str) -> int:
    """Parse a whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: The text is another number or none.
    """
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text}")
    return value


def asked_thresholds(options: argparse.Namespace) -> "Thresholds":
    """Return the thresholds that the options ask for; None in place of those not given."""
    from patchcore.inspection import Thresholds

    return Thresholds(options.threshold, options.pixel_threshold)


def warn_of_no_verdicts(inspector: Any, thresholds: "Thresholds") -> None:
    """Warn on stderr that there will be no verdicts, if no threshold is known."""
    if inspector.decision is None and thresholds.image is None:
        print(
            "warning: the model holds no threshold, so there are no verdicts: fit it with "
            "decision.false_alarms=…, or give --threshold",
            file=sys.stderr,
        )
