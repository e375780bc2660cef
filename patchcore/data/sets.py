"""All data sets by name: what `data=NAME` and `patchcore fetch NAME` know.

A file of its own, for the code of every data set would else be part of the cache keys of images.
"""

from patchcore.data.btad import BTADConfig
from patchcore.data.folder import FolderConfig
from patchcore.data.generated import GeneratedConfig
from patchcore.data.ksdd2 import KSDD2Config
from patchcore.data.loco import LOCOConfig
from patchcore.data.mpdd import MPDDConfig
from patchcore.data.mstc import MSTCConfig
from patchcore.data.mtd import MTDConfig
from patchcore.data.mvtec import MVTecConfig
from patchcore.data.mvtec2 import MVTec2Config
from patchcore.data.mvtec3d import MVTec3DConfig
from patchcore.data.realiad import RealIADConfig
from patchcore.data.sample import DataConfig
from patchcore.data.visa import VisAConfig

DATA_SETS: dict[str, type[DataConfig]] = {
    "btad": BTADConfig,
    "folder": FolderConfig,
    "generated": GeneratedConfig,
    "ksdd2": KSDD2Config,
    "loco": LOCOConfig,
    "mpdd": MPDDConfig,
    "mstc": MSTCConfig,
    "mtd": MTDConfig,
    "mvtec": MVTecConfig,
    "mvtec2": MVTec2Config,
    "mvtec3d": MVTec3DConfig,
    "realiad": RealIADConfig,
    "visa": VisAConfig,
}
"""Settings of every data set; the class says its source, categories and usual view too."""
