"""What is typed wrongly gets one line with the form to type."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from patchcore.commands.overrides import check_overrides, choices, quoted
from patchcore.errors import InputError

PATHS = [
    "/a/run=3",
    "/a/parts (2)",
    "/a/grün",
    "a&b",
    "~/x",
    "it's",
    'say "x"',
    "both' and\"",
    "end\\",
    "odd\\'",
    "$HOME/x",
    "a`b`",
    "yes!",
    "x[1]",
    "日本, x",
    "a;b#c",
    "{x",
    " lead",
]


@pytest.mark.parametrize("path", PATHS)
def test_the_quoted_form_means_the_text_itself(path: str) -> None:
    (word,) = shlex.split(quoted(f"data.root={path}"))  # as the shell reads it
    assert OverridesParser.create().parse_override(word).value() == path


@pytest.mark.parametrize("path", ["/a/run=3", "parts (2)", "grün", "a&b", "~/x", "x[1]", "it's"])
def test_a_path_that_needs_quotes_is_told_them(path: str) -> None:
    with pytest.raises(InputError) as caught:
        check_overrides(["data=mvtec", f"data.root={path}"])
    told = str(caught.value)
    assert told.startswith("data.root: the value needs quotes") and "\n" not in told
    assert told.endswith(f"type {quoted(f'data.root={path}')}")
    check_overrides(shlex.split(told.partition("type ")[2]))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("image=320", "image=320: there is no such choice; did you mean image.size=320? there"),
        ("layers=2", "layers=2: there is no such choice; did you mean layers=only2? there are"),
        ("patch=3", "patch=3: there is no such choice; did you mean patch=p3? there are"),
        ("coreset=0.1", "coreset=0.1: there is no such choice; there are all, approximate"),
        ("index=true", "index=true: there is no such choice; there are faiss_factory"),
        ("model=null", "model=null: there is no such choice; leave it out; there are padim"),
        ("=3", "=3: not understood: type KEY=VALUE"),
        ("a..b=3", "a..b=3: not understood: type KEY=VALUE"),
        ("data.root=a,b", "data.root: a comma makes several values: with quotes it is one, type"),
        ("layers.names=[fc", "layers.names: the value needs quotes"),
    ],
)
def test_mistakes_are_one_line(argument: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_overrides([argument])
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_what_is_right_passes() -> None:
    check_overrides(["--config-dir", "a=b", "--cfg", "job", "-m", "seed=0,1", "patch=p1,p3"])
    check_overrides(["logger=[csv,wandb]", "~data", "+a.b={c:1}", "x=a b"])
    check_overrides(["curve=[0.1,0.2]", "layers.names=['2',layer3]", "hydra.run.dir=x"])
    check_overrides(["coreset.ratio=interval(0.1,0.2)", "data.root='/x/grün'", "method=spade"])


def test_groups_have_their_choices() -> None:
    assert choices()["coreset"] == ["all", "approximate", "greedy", "learned", "random"]
    assert "paper/table_1" in choices()["experiment"] and "1+2+3" in choices()["layers"]
