"""GPUs for the points of a multirun that run at the same time, one GPU for each process."""

import os

from hydra.conf import HydraConf
from hydra.types import RunMode
from omegaconf import DictConfig

from patchcore.errors import InputError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_ONE_AFTER_ANOTHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
_given: list[str | None] = []
"""Value of the variable before this process has chosen a GPU; empty if it has chosen none."""


def take_gpu(cfg: DictConfig, run: HydraConf) -> None:
    """Choose one of several GPUs for this process, if points of a multirun run at the same time.

    Point number n takes the n-th GPU, counted round and round. A process keeps its GPU for its
    later points, because only this GPU is visible to it from then on. Nothing is chosen for a point
    that uses several devices, names its device, or runs on the CPU; it sees all GPUs.

    Args:
        cfg: Settings of the point.
        run: Hydra's own settings, which name the launcher and number the point.

    Raises:
        InputError: The point needs several devices, but its process works on one GPU already.
    """
    launcher = getattr(run.launcher, "_target_", None)
    if run.mode is not RunMode.MULTIRUN or launcher == _ONE_AFTER_ANOTHER:
        return
    trainer = cfg.trainer
    if trainer.get("accelerator") == "cpu":
        return
    import torch  # takes seconds, and a point on the CPU may fail before

    if str(trainer.get("devices")) != "1":
        if _given and torch.cuda.is_initialized():
            raise InputError(
                f"trainer.devices={trainer.get('devices')}: this process works on one GPU since an "
                "earlier point; run points with other trainer.devices in a multirun of their own"
            )
        if _given:
            del os.environ[VISIBLE]
            if (given := _given.pop()) is not None:
                os.environ[VISIBLE] = given
        return
    if _given or torch.cuda.is_initialized() or (count := torch.cuda.device_count()) < 2:
        return
    before = os.environ.get(VISIBLE)
    names = before.split(",") if before else [str(number) for number in range(count)]
    _given.append(before)
    os.environ[VISIBLE] = names[int(run.job.num) % count].strip()
