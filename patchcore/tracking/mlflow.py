"""Numbers, settings, tables, pictures and files for MLflow, which needs the extra `mlflow`."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from patchcore.digests import digest
from patchcore.report.cells import harmless
from patchcore.report.words import flatten
from patchcore.tracking.about import FINISHED, About
from patchcore.tracking.tracker import RESULTS, Tracker
from patchcore.writing import beginning

if TYPE_CHECKING:
    from patchcore.report.run import Run
    from patchcore.tracking.tables import Details, Table

NAMES = ("settings.yaml", "follows_from.json", "numbers.json", "scores.csv")
"""Names of `RESULTS` in MLflow's store. With their own names, reports would take it for runs."""
LONGEST = 250  # characters of a metric's name that MLflow accepts; a file's name has 255 bytes
_NOT_ACCEPTED = re.compile(r"[^\w./ -]")
_BARE = re.compile(r"(?<![^/])(?=/|$)|(?<![^/])\.{1,2}(?![^/])")  # empty, `.` or `..` in a path
FOLDER_TAG, GROUP_TAG = "patchcore.folder", "patchcore.group"


class MLflow(Tracker):
    """Lightning's MLFlowLogger; its files are in the folder of the run, or of the multirun.

    View with: MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri FOLDER/mlruns
    """

    target = "pytorch_lightning.loggers.MLFlowLogger"
    preset = {  # noqa: RUF012
        "experiment_name": "patchcore",
        "run_name": "${run_name:}",
        "save_dir": "${tracking_folder:}/mlruns",
        "tags": {GROUP_TAG: "${run_group:}"},
    }
    beside = True

    def more_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tags without empty ones, which MLflow refuses.

        Also set the variable without which MLflow refuses to store runs in files.
        """
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        tags = settings.get("tags") or {}
        return {"tags": {str(k): str(v) for k, v in tags.items() if v is not None}}

    def advice(self, name: str) -> str:
        """Return what a user can do if the logger cannot start."""
        return f"set +logger.{name}.tracking_uri, or leave it out of logger=[…]"

    def begin(self, logger: Any, about: About) -> None:
        """Log configuration, tags and notes; delete earlier runs of the same folder."""
        with _quiet(), _alone(logger.save_dir):  # two processes would make the experiment twice
            client = logger.experiment
        folder = about.config()["run.folder"]
        earlier = client.search_runs(
            [logger.experiment_id], filter_string=f"tags.`{FOLDER_TAG}` = '{digest(folder)}'"
        )
        for each in earlier:
            client.delete_run(each.info.run_id)
        tags = {FOLDER_TAG: digest(folder), "mlflow.note.content": about.notes()}
        for number, tag in enumerate(about.tags()):
            tags[f"patchcore.tag.{number}"] = tag
        for key, value in tags.items():
            client.set_tag(logger.run_id, key, value)
        super().begin(logger, about)

    def log_progress(self, logger: Any, values: Mapping[str, float]) -> None:
        """Log the progress: images so far and seconds."""
        step = int(values.get("train_images", 0) + values.get("test_images", 0))
        logger.log_metrics({f"progress/{key}": value for key, value in values.items()}, step)

    def log_numbers(self, logger: Any, numbers: Mapping[str, float]) -> None:
        """Leave the metrics to `log_results`, because Lightning changes names of its own accord."""

    def log_results(self, logger: Any, run: Run) -> None:
        """Log each number in full precision (Lightning logs float32), and the run's pictures."""
        client, own = logger.experiment, logger.run_id
        told = {k: v for k, v in run.record().items() if k not in ("ratio_curve", "undefined")}
        numbers = {key: value for key, value in flatten(told).items() if _is_number(value)}
        for name, value in accepted(numbers).items():
            client.log_metric(own, name, value)
        client.set_tag(own, "patchcore.status", FINISHED)
        for path in run.pictures:
            client.log_artifact(own, str(path), "figures")

    def log_costs(self, logger: Any, costs: Mapping[str, float]) -> None:
        """Log the costs beside the metrics."""
        for key, value in costs.items():
            logger.experiment.log_metric(logger.run_id, f"cost.{key}", value)

    def log_tables(self, logger: Any, run: Run, details: Details) -> None:
        """Log tables, for `mlflow ui` and as CSV, and pictures of test images.

        A picture shows an image and, beside it, the same under its anomaly map. The file name is
        the rank of the image's score.
        """
        client, own = logger.experiment, logger.run_id
        from patchcore.report.figures import heat
        from patchcore.tracking.tables import pictures, ranks, span, tables

        self._log_tables(logger, tables(run, details))
        found, rank = pictures(run, details), ranks(run)
        low, high = span(found.values())
        for i, each in found.items():
            both = np.hstack([each.image, heat(each.image, each.map, low, high)])
            client.log_image(own, both, f"test_images/{rank[i]:05}.png")

    def log_files(self, logger: Any, folder: Path, about: About) -> None:
        """Log the run's data set, settings and scores, and its model if it is kept."""
        from mlflow.entities import Dataset, DatasetInput

        client, own = logger.experiment, logger.run_id
        if data := about.provenance.get("data"):
            name = "-".join(about.tags()[:1]) or "data"
            where = json.dumps({"uri": str(about.config().get("data.root", ""))})
            used = Dataset(name=name, digest=digest(data)[:32], source_type="local", source=where)
            client.log_inputs(own, datasets=[DatasetInput(dataset=used, tags=[])])
        for each, name in zip(RESULTS, NAMES, strict=True):
            if (folder / each).is_file():
                client.log_text(own, (folder / each).read_text("utf-8"), f"results/{name}")
        super().log_files(logger, folder, about)

    def log_artifact(self, logger: Any, folder: Path) -> None:
        """Log the artifact in a folder as `model`."""
        logger.experiment.log_artifacts(logger.run_id, str(folder), "model")

    def log_overview(
        self,
        logger: Any,
        numbers: Mapping[str, float],
        shown: Mapping[str, Table],
        page: Path | None,
    ) -> None:
        """Log the overview of a multirun: see `patchcore.tracking.multirun`."""
        for name, value in accepted(numbers).items():
            logger.experiment.log_metric(logger.run_id, name, value)
        self._log_tables(logger, shown)
        if page is not None:
            logger.experiment.log_artifact(logger.run_id, str(page))

    def _log_tables(self, logger: Any, shown: Mapping[str, Table]) -> None:
        client, own = logger.experiment, logger.run_id
        for name, table in shown.items():
            client.log_dict(own, {"columns": table.columns, "data": table.rows}, f"{name}.json")
            client.log_text(own, _csv(table), f"tables/{name}.csv")
        told = [{"path": f"{name}.json", "type": "table"} for name in shown]
        client.set_tag(own, "mlflow.loggedArtifacts", json.dumps(told))

    def log_end(self, logger: Any, status: str, reason: str) -> None:
        """Mark a run that did not finish, with the reason."""
        for key, value in (("status", status), ("reason", reason)):
            logger.experiment.set_tag(logger.run_id, f"patchcore.{key}", value)


def accepted(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return numbers under names that MLflow accepts; names of defect types may be any folder's.

    Other characters become `_`, a name that is too long is cut, and each of two that would become
    equal gets a digest of its own.

    >>> accepted({"recall.crack (1)": 1.0, "recall.cut": 0.5})
    {'recall.crack _1_': 1.0, 'recall.cut': 0.5}
    """
    names = {key: _NOT_ACCEPTED.sub("_", key) for key in numbers}
    # The names are paths in MLflow's store, and it refuses those that are not normal.
    names = {key: beginning(_BARE.sub("_", name), LONGEST) for key, name in names.items()}
    count = Counter(names.values())
    for key, name in names.items():
        if count[name] > 1 and name != key:
            names[key] = f"{beginning(name, LONGEST - 9)}_{digest(key)[:8]}"
    return {names[key]: value for key, value in numbers.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress Lightning's message that it creates an experiment."""
    told = logging.getLogger("pytorch_lightning.loggers.mlflow")
    before, told.level = told.level, logging.ERROR
    try:
        yield
    finally:
        told.level = before


def _alone(folder: str | None) -> Any:
    """Return a lock for a store in `folder`; without a folder, a context without effect."""
    if folder is None:
        return nullcontext()
    Path(folder).mkdir(parents=True, exist_ok=True)
    return FileLock(Path(folder) / ".lock")


def _csv(table: Table) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(table.columns)
    for row in table.rows:
        writer.writerow([harmless(each) if isinstance(each, str) else each for each in row])
    return file.getvalue()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
