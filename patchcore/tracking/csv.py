"""Numbers in a CSV file of the run's folder."""

from typing import Any

from patchcore.tracking.about import About
from patchcore.tracking.tracker import FOLDER, Tracker


class Csv(Tracker):
    """Lightning's CSVLogger, in the folder `csv` of the run."""

    target = "pytorch_lightning.loggers.CSVLogger"
    preset = {"save_dir": FOLDER, "name": None, "version": "csv"}  # noqa: RUF012

    def begin(self, logger: Any, about: About) -> None:
        """Write the settings, nested as in config.yaml."""
        logger.log_hyperparams(about.settings)
