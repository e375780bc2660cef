"""Every notebook runs to its end, on fewer images than it shows, and is kept with its outputs."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from tests.runs import REPOSITORY

SMALL = "size=64, train_images=6, nominal_images=4, anomalous_images="
SMALLER = {
    "first_steps": {"GeneratedCategory.object)": f"GeneratedCategory.object, {SMALL}6)"},
    "anatomy": {"GeneratedConfig()": f"GeneratedConfig({SMALL}5)"},
    "reading_a_sweep": {
        "GeneratedConfig()": f"GeneratedConfig({SMALL}5)",
        "SIZES, SEEDS = (1, 3, 5), (0, 1, 2)": "SIZES, SEEDS = (1, 3), (0, 1)",
        "ImageConfig(size=224)": "ImageConfig(size=64)",
    },
    "own_parts": {
        "GOOD_PARTS, NEW_GOOD, NEW_BAD = 60, 12, 6": "GOOD_PARTS, NEW_GOOD, NEW_BAD = 10, 2, 2",
        "ImageConfig(size=224": "ImageConfig(size=64",
    },
}
"""Replacements in the source of each notebook, so that it takes seconds at most."""
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def cells(path: Path) -> list[dict[str, Any]]:
    """Cells of code of a notebook."""
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


def test_there_is_a_smaller_version_of_each() -> None:
    assert {path.stem for path in NOTEBOOKS} == SMALLER.keys()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.pyplot as plt

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = "\n".join("".join(cell["source"]) for cell in cells(path))
    for shown, smaller in SMALLER[path.stem].items():
        assert source.count(shown) == 1, shown
        source = source.replace(shown, smaller)
    backend = matplotlib.get_backend()
    shown_pictures = sum("image/png" in x.get("data", {}) for x in outputs(path))
    try:
        plt.switch_backend("agg")
        with plt.rc_context():
            exec(compile(source, path.name, "exec"), {})
            assert len(plt.get_fignums()) == shown_pictures
    finally:
        plt.close("all")
        plt.switch_backend(backend)


def outputs(path: Path) -> list[dict[str, Any]]:
    """Texts and pictures that the cells of a notebook have left in it."""
    return [output for cell in cells(path) for output in cell["outputs"]]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_with_its_outputs(path: Path) -> None:
    kept = outputs(path)
    assert sum("image/png" in output.get("data", {}) for output in kept) >= 3
    assert [output for output in kept if output["output_type"] == "error"] == []
    assert [output["text"] for output in kept if output.get("name") == "stderr"] == []
    counts = [cell["execution_count"] for cell in cells(path)]
    assert counts == list(range(1, len(counts) + 1))  # run once, from top to bottom
    text = path.read_text(encoding="utf-8")
    assert str(REPOSITORY) not in text and "/tmp/" not in text
    assert len(text) < 1_500_000
