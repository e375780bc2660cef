"""All data sets by the names for `data=NAME` and `patchcore fetch NAME`.

The table has a file of its own: in another module, it would make the code of every data set a part
of the cache keys of images.
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
"""Classes of the data sets' settings; class attributes hold source, categories and usual view."""
