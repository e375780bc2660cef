"""The notebook runs to its end, on a smaller category than it shows."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from tests.runs import REPOSITORY

NOTEBOOK = REPOSITORY / "notebooks/patchcore.ipynb"


def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.pyplot as plt

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    small = "GeneratedConfig(size=64, train_images=6, nominal_images=4, anomalous_images=4)"
    assert sum("GeneratedConfig()" in source for source in sources) == 1
    backend = matplotlib.get_backend()
    names: dict[str, Any] = {}
    try:
        plt.switch_backend("agg")
        for source in sources:
            exec(compile(source.replace("GeneratedConfig()", small), NOTEBOOK.name, "exec"), names)
        assert len(plt.get_fignums()) >= 1
    finally:
        plt.close("all")
        plt.switch_backend(backend)
    assert names["train"]["image"].shape == (6, 3, 224, 224)
    assert names["scores"].shape == (8,) and names["maps"].shape == (8, 224, 224)
    assert 0 <= names["image_metrics"].compute()["image_auroc"] <= 1
