"""GPUs for the points of a multirun that run at the same time, one GPU for each process."""

import os

from hydra.conf import HydraConf
from hydra.types import RunMode
from omegaconf import DictConfig

VISIBLE = "CUDA_VISIBLE_DEVICES"
_ONE_AFTER_ANOTHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


def take_gpu(cfg: DictConfig, run: HydraConf) -> None:
    """Choose one of several GPUs for this process, if points of a multirun run at the same time.

    Point number n takes the n-th GPU, counted round and round. A process keeps its GPU for all its
    later points, because only this GPU is visible to it from then on. Nothing is chosen for a point
    that uses several devices, names its device, or runs on the CPU.

    Args:
        cfg: Settings of the point.
        run: Hydra's own settings, which name the launcher and number the point.
    """
    launcher = getattr(run.launcher, "_target_", None)
    if run.mode is not RunMode.MULTIRUN or launcher == _ONE_AFTER_ANOTHER:
        return
    trainer = cfg.trainer
    if trainer.get("accelerator") == "cpu" or str(trainer.get("devices")) != "1":
        return
    import torch  # takes seconds, and a point on the CPU may fail before

    if torch.cuda.is_initialized() or (count := torch.cuda.device_count()) < 2:
        return
    given = os.environ.get(VISIBLE)
    names = given.split(",") if given else [str(number) for number in range(count)]
    os.environ[VISIBLE] = names[int(run.job.num) % count].strip()
