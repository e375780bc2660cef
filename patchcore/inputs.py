"""Settings of the network's input that follow from data set and weights, filled in beforehand."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from patchcore.backbones import BackboneConfig
from patchcore.data.transforms import ImageConfig
from patchcore.data.view import View


def fill_inputs(cfg: DictConfig) -> None:
    """Replace null and missing settings of backbones and images by the values that are used.

    `image.size` and `image.view` are the data set's unless given, and `image.resize`, `stretch` and
    `crop` follow from them; `backbone.weights`, `image.mean` and `image.std` are what the weights
    record. So fingerprint and `config.yaml` hold what is used. Each member of an ensemble gets its
    own network's; what is set for the run holds for the members that leave `image` out, and its
    size and view for those that leave these out. Nothing is built or downloaded.

    Raises:
        InputError: A network or tag does not exist, or a setting of an image is out of its range.
    """
    image = OmegaConf.merge(OmegaConf.structured(ImageConfig), cfg.image)
    kind: Any = OmegaConf.get_type(cfg.data)
    size = kind.SIZE if image.size is None else image.size
    view = kind.VIEW if image.view is None else image.view
    _fill(cfg.backbone, cfg.image, size, view)
    for member in cfg.ensemble.members:
        if member.image is None:
            member.image = image.copy()
        backbone = cfg.backbone if member.backbone is None else member.backbone
        _fill(backbone, member.image, size, view)


def _fill(backbone: DictConfig, image: DictConfig, size: int, view: View) -> None:
    config = BackboneConfig(backbone.name, backbone.weights)
    record = config.input()
    backbone.weights = config.resolved()
    known = {"mean": list(record.mean), "std": list(record.std), "size": size, "view": view}
    for key, value in known.items():
        if image[key] is None:
            image[key] = value
    given = {str(key): image[key] for key in image if not OmegaConf.is_missing(image, str(key))}
    filled = ImageConfig(**given)
    for key in ("size", "view", "resize", "stretch", "crop"):
        image[key] = getattr(filled, key)
