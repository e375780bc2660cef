"""Options of the commands that are no Hydra applications: mistakes are told as elsewhere."""

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """A parser that tells a mistake in one line, with what was probably meant, and exits with 1.

    Options cannot be shortened, so that scripts go on working when there are more of them.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(allow_abbrev=False, **arguments)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse; an option that there is not ends the program with the nearest one's name."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].partition("=")[0]
            known = [name for action in self._actions for name in action.option_strings]
            close = get_close_matches(name, known, 1)
            advice = f"did you mean {close[0]}?" if close else f"see {self.prog} --help"
            self.error(f"{name}: there is no such option; {advice}")
        return options

    def error(self, message: str) -> NoReturn:
        """Tell a mistake and exit."""
        sys.exit(f"error: {message}")
