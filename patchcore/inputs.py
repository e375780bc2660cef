"""Settings that follow from the networks' weights, filled in before anything is made of them."""

from omegaconf import DictConfig, OmegaConf

from patchcore.backbones import BackboneConfig
from patchcore.data.transforms import ImageConfig


def fill_inputs(cfg: DictConfig) -> None:
    """Replace null in `backbone.weights`, `image.mean` and `image.std` by what the weights record.

    So that fingerprint and `config.yaml` hold the values that are used. Each member of an ensemble
    gets its own network's; mean and standard deviation that are set for the run hold for the
    members that leave `image` out. Nothing is built or downloaded.

    Raises:
        InputError: A network or tag does not exist.
    """
    image = OmegaConf.merge(OmegaConf.structured(ImageConfig), cfg.image)
    _fill(cfg.backbone, cfg.image)
    for member in cfg.ensemble.members:
        if member.image is None:
            member.image = image.copy()
        _fill(cfg.backbone if member.backbone is None else member.backbone, member.image)


def _fill(backbone: DictConfig, image: DictConfig) -> None:
    config = BackboneConfig(backbone.name, backbone.weights)
    record = config.input()
    backbone.weights = config.resolved()
    for key in ("mean", "std"):
        if image[key] is None:
            image[key] = list(getattr(record, key))
