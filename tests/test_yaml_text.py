"""Settings as YAML text: the values and the text that OmegaConf reads and writes."""

import io
import json
from enum import Enum
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from patchcore.errors import InputError
from patchcore.yaml_text import DEEPEST, read_settings, write_settings

TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20),
    st.sampled_from(["1e-5", "1e5", ".5e-3", "2020-01-01", "no", "~", "", "0x1f", "1_0", "1:30"]),
    st.sampled_from(
        ["${a}", "${now:%Y}", "a ${b} c", "???", "- x", "a: b", "x" * 200, "a b " * 50]
    ),
)
VALUES = st.recursive(
    st.one_of(TEXTS, st.booleans(), st.none(), st.integers(), st.floats(allow_nan=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)


def slowly(text: str) -> Any:
    return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))


@hypothesis(max_examples=40)
@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_settings_are_written_and_read_as_omegaconf_does(settings: dict[str, Any]) -> None:
    text = write_settings(settings)
    assert text == OmegaConf.to_yaml(OmegaConf.create(settings))
    assert read_settings(text) == slowly(text) == settings


class Kind(Enum):
    left = 1


def test_choices_are_written_by_name_as_omegaconf_does() -> None:
    settings = {"a": Kind.left, "b": [{"c": Kind.left}]}
    text = write_settings(settings)
    assert text == OmegaConf.to_yaml(OmegaConf.create(settings))
    assert read_settings(text) == {"a": "left", "b": [{"c": "left"}]}


def test_file_names_that_are_no_utf_8_are_read_again() -> None:
    settings = {"root": b"/data/\xff\xa0\xc3".decode("utf-8", "surrogateescape")}
    assert read_settings(write_settings(settings)) == settings


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "{}",
            "# nothing",
            "a: 1\nb: [1, x, {c: 2.0}]",
            "1: a\n1.5: b\ntrue: c",
            "<<: {a: 1}",
        ),
        *("a: 1e-5\nb: 1e5\nc: .5e-3\nd: 2020-01-01\ne: 12:30:45\nf: 1_000", "a: .inf\nb: -.inf"),
        *("a: 'it''s'\nb: \"x\\ty\"\nc: |\n  two\n  lines\n", "a: ${b}\nb: 'x ${c.d} y'\ne: ???"),
    ],
)
def test_texts_by_hand_are_read_as_omegaconf_does(text: str) -> None:
    found = read_settings(text)
    assert found == slowly(text)
    assert repr(found) == repr(slowly(text))  # 1 is no 1.0, and no True


@pytest.mark.parametrize("text", ["a: ${", "a: ${b:[}", "null: 1", "a: {null: [1]}"])
def test_what_omegaconf_refuses_is_refused(text: str) -> None:
    with pytest.raises(OmegaConfBaseException):
        slowly(text)
    with pytest.raises(OmegaConfBaseException):
        read_settings(text)


@pytest.mark.parametrize(
    "text", ["a: 1\na: 2", "a: [", "a: 1\n---\nb: 2", "a: =", "\t- x", "a: \x01"]
)
def test_what_is_no_yaml_is_refused(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        slowly(text)
    with pytest.raises(yaml.YAMLError):
        read_settings(text)


def test_no_text_reaches_the_limits_of_the_parser() -> None:
    deepest = "[" * DEEPEST + "]" * DEEPEST
    assert read_settings(deepest) == json.loads(deepest)
    for text in ("[" * 500, "{a: " * 500, "- " * 50_000):
        with pytest.raises(InputError, match="nested deeper than 100"):
            read_settings(text)


def test_only_values_of_settings_are_written() -> None:
    for value in (object(), {1, 2}, {None: 1}):
        with pytest.raises(OmegaConfBaseException):
            write_settings({"a": [value]})


def test_without_libyaml_the_same_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from patchcore import yaml_text

    text = "a: 1e-5\nb: [2020-01-01, '${a}', {c: null}]\n"
    quick = read_settings(text)
    monkeypatch.setattr(yaml, "__with_libyaml__", False)
    monkeypatch.delattr(yaml, "CSafeLoader")
    monkeypatch.setattr(yaml_text, "_loader", yaml_text._loader.__wrapped__)
    assert read_settings(text) == quick == {"a": 1e-5, "b": ["2020-01-01", "${a}", {"c": None}]}
