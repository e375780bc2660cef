"""Settings of the algorithms: each says what it is for, and refuses what it cannot be."""

import math
from dataclasses import Field, dataclass, fields

import pytest

from patchcore.commands.settings_help import options
from patchcore.coreset import SAMPLERS
from patchcore.decision import DecisionConfig
from patchcore.errors import InputError
from patchcore.index import INDEXES
from patchcore.label_free import LabelFreeConfig
from patchcore.methods import METHODS
from patchcore.patches import PatchConfig
from patchcore.scoring import ScoringConfig
from patchcore.settings import allowed_range, check_ranges, setting

GROUPS = [
    *(("coreset", config) for config in SAMPLERS.values()),
    *(("index", config) for config in INDEXES.values()),
    *(("method", config) for config in METHODS.values()),
    ("decision", DecisionConfig),
    ("label_free", LabelFreeConfig),
    ("patch", PatchConfig),
    ("scoring", ScoringConfig),
]
SETTINGS = [(group, config, option) for group, config in GROUPS for option in fields(config)]


@dataclass
class Example:
    """One setting of each kind of range."""

    least: int = setting(1, low=1)
    most: float = setting(0.0, high=4)
    between: float = setting(0.5, low=0, high=1)
    above: float | None = setting(None, above=0)
    below: float = setting(0.0, below=2)
    open: float = setting(0.5, above=0, below=1)
    free: float = setting(0.0)
    flag: bool = setting(True, low=5)
    name: str = setting("x", low=5)


def test_ranges_in_words() -> None:
    assert {option.name: allowed_range(option) for option in fields(Example)} == {
        "least": "at least 1",
        "most": "at most 4",
        "between": "in [0, 1]",
        "above": "above 0",
        "below": "below 2",
        "open": "in (0, 1)",
        "free": "",
        "flag": "at least 5",
        "name": "at least 5",
    }


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"least": 1, "most": 4, "between": 0, "above": 1e-9, "below": 1.99, "open": 0.01},
        {"between": 1.0, "above": None, "free": -1e300},
        {"flag": False},
    ],
)
def test_what_lies_within_passes(values: dict[str, float]) -> None:
    check_ranges(Example(**values), "group")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("least", 0, "at least 1"),
        ("most", 4.01, "at most 4"),
        ("between", -0.01, r"in \[0, 1\]"),
        ("between", 1.01, r"in \[0, 1\]"),
        ("between", math.nan, r"in \[0, 1\]"),
        ("above", 0, "above 0"),
        ("above", math.inf, "a finite number"),
        ("below", 2, "below 2"),
        ("below", -math.inf, "a finite number"),
        ("open", 1.0, r"in \(0, 1\)"),
        ("free", math.nan, "a finite number"),
    ],
)
def test_what_lies_outside_is_refused(name: str, value: float, rule: str) -> None:
    config = Example()
    setattr(config, name, value)
    with pytest.raises(InputError, match=rf"^group\.{name} must be {rule}, got {value}$"):
        check_ranges(config, "group")


def test_the_help_of_a_run_tells_what_every_setting_is_for() -> None:
    found = list(options())
    assert {"data.shots", "image.size", "augment.noise", "cache.root"} <= {x for x, *_ in found}
    assert [key for key, option, _ in found if not option.metadata.get("help")] == []


@pytest.mark.parametrize(("group", "config", "option"), SETTINGS)
def test_every_setting_has_its_help_and_refuses_no_number(
    group: str, config: type, option: Field[object]
) -> None:
    assert option.metadata["help"]
    if option.name == "seed":  # the run's, which has its own check
        return
    wrong = {int: [-1], float: [math.nan, math.inf, -1.0]}
    kind = next((kind for kind in wrong if option.type in (kind, kind | None)), None)
    for value in wrong[kind] if kind else []:
        with pytest.raises(InputError, match=rf"^{group}\.{option.name} must be .*, got {value}"):
            config(**{option.name: value})
