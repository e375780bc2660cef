"""Numbers in a CSV file of the run's folder."""

from patchcore.tracking.tracker import FOLDER, Tracker


class Csv(Tracker):
    """Lightning's CSVLogger, in the folder `csv` of the run."""

    target = "pytorch_lightning.loggers.CSVLogger"
    preset = {"save_dir": FOLDER, "name": None, "version": "csv"}  # noqa: RUF012
