"""Options of the commands: they may stand anywhere between the other arguments."""

import argparse
import sys
from importlib import import_module
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from patchcore.commands import COMMANDS
from patchcore.commands.options import Parser

ARGUMENTS: dict[str, tuple[list[str], list[list[str]]]] = {
    "cache": (["clear"], [["--root", "R"]]),
    "completion": (["bash"], []),
    "dashboard": (["G"], [["--output", "O"], ["--dry-run"]]),
    "export": (["M"], [["--format", "onnx"], ["--threads", "2"]]),
    "extend": (["M", "a.png", "b.png"], [["--count", "3"], ["--output=O"]]),
    "fetch": (["mvtec"], [["--root", "R"], ["--category", "nut"]]),
    "predict": (["M", "a.png", "b.png"], [["--threshold", "-3"], ["--overlays"]]),
    "report": (["R", "S"], [["--out", "O"], ["--metric=aupro"]]),
    "serve": (["M"], [["--port", "80"], ["--queue=3"]]),
    "test": (["M", "data=mvtec", "data.category=nut"], [["--output", "O"], ["--threads", "2"]]),
}
"""Arguments of each command that parses with `Parser`: those in order, and options."""


class _Parsed(Exception):  # noqa: N818
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = vars(options)


def parsed(monkeypatch: pytest.MonkeyPatch, command: str, arguments: list[str]) -> dict[str, Any]:
    """Return what a command understands of its arguments; it ends before it does anything."""
    parse = Parser.parse_args

    def stop(self: Parser, *given: Any) -> None:
        raise _Parsed(parse(self, *given))

    with monkeypatch.context() as patched:
        patched.setattr(Parser, "parse_args", stop)
        patched.setattr(sys, "argv", [command, *arguments])
        with pytest.raises(_Parsed) as found:
            import_module(f"patchcore.commands.{command}").main()
    return found.value.options


def test_every_command_with_a_parser_is_tried() -> None:
    assert {*ARGUMENTS} == {*COMMANDS} - {"train", "sweep"}


@pytest.mark.parametrize("command", ARGUMENTS)
def test_options_stand_anywhere(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ordered, options = ARGUMENTS[command]
    usual = parsed(monkeypatch, command, [*ordered, *(word for each in options for word in each)])
    for order in permutations([*([word] for word in ordered), *options]):
        if [each[0] for each in order if each not in options] == ordered:
            words = [word for each in order for word in each]
            assert parsed(monkeypatch, command, words) == usual, words


@pytest.mark.parametrize(
    ("arguments", "images"),
    [
        (["M", "--overlays", "--", "-b.png"], ["-b.png"]),
        (["--overlays", "--", "M", "--help"], ["--help"]),
        (["M", "--overlays", "-"], ["-"]),
    ],
)
def test_names_that_begin_with_a_dash(
    arguments: list[str], images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = parsed(monkeypatch, "predict", arguments)
    assert (str(found["model"]), found["images"], found["overlays"]) == ("M", images, True)


@pytest.mark.parametrize("name", ["-h.png", "-1.png", "--overlays.png", "--x=1.png"])
def test_files_whose_names_begin_with_a_dash_are_told_how_to_name_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for each in (name, "-4", "--overlays", "a.png"):
        Path(each).touch()
    told = f"^error: {name}: begins with a dash, as options do: write ./{name} for a file$"
    for command in ("predict", "extend"):
        with pytest.raises(SystemExit, match=told):
            parsed(monkeypatch, command, ["M", "a.png", name])
    words = ["M", "--threshold", "-4", "--overlays", f"./{name}"]
    found = parsed(monkeypatch, "predict", words)
    assert (found["threshold"], found["overlays"], found["images"]) == (-4, True, [f"./{name}"])


@pytest.mark.parametrize("value", ["-1e-3", "-2.5E+2", "-.5", "-3.", "-4"])
def test_thresholds_may_be_any_negative_number(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = parsed(monkeypatch, "predict", ["M", "--threshold", value, "a.png"])
    assert (found["threshold"], found["images"]) == (float(value), ["a.png"])


def test_images_to_remove_end_at_two_dashes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = parsed(monkeypatch, "extend", ["M", "--remove", "a", "b", "--", "c"])
    assert (str(found["model"]), found["remove"], found["images"]) == ("M", ["a", "b"], ["c"])


@pytest.mark.parametrize("command", [name for name in ARGUMENTS if ARGUMENTS[name][0]])
def test_an_unknown_option_between_them_is_named(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordered, options = ARGUMENTS[command]
    words = [*ordered, "--nonsense", *(word for each in options for word in each)]
    with pytest.raises(SystemExit, match=r"^error: --nonsense: there is no such option; see "):
        parsed(monkeypatch, command, words)


@pytest.mark.parametrize("command", ARGUMENTS)
def test_empty_values_are_refused(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of variables that are not set would stand for the current folder or a default."""
    words, options = ARGUMENTS[command]
    for first, *value in options:
        name, equals, _ = first.partition("=")
        if not value and not equals:
            continue  # it takes no value
        for empty in ([name, ""], [f"{name}="]):
            monkeypatch.setattr(sys, "argv", [command, *words, *empty])
            with pytest.raises(SystemExit, match=f"^error: {name}: the value is empty: give one"):
                import_module(f"patchcore.commands.{command}").main()
    monkeypatch.setattr(sys, "argv", [command, ""])
    with pytest.raises(SystemExit, match=r"^error: [A-Za-z]+: the value is empty"):
        import_module(f"patchcore.commands.{command}").main()
