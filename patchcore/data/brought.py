"""Categories and views that data sets bring as long as their classes do not say so themselves."""

_MVTEC = (
    "bottle,cable,capsule,carpet,grid,hazelnut,leather,metal_nut,pill,screw,tile,toothbrush,"
    "transistor,wood,zipper"
)
_VISA = "candle,capsules,cashew,chewinggum,fryum,macaroni1,macaroni2,pcb1,pcb2,pcb3,pcb4,pipe_fryum"
CATEGORIES = {
    "btad": ("01", "02", "03"),
    "loco": ("breakfast_box", "juice_bottle", "pushpins", "screw_bag", "splicing_connectors"),
    "mstc": tuple(f"{scene:02}" for scene in range(1, 13)),
    "mvtec": tuple(_MVTEC.split(",")),
    "visa": tuple(_VISA.split(",")),
}
"""Categories that a multirun goes over unless some are named."""

IMAGE = {"generated": None, "mvtec": None, "mstc": "px256_square"}
"""Choice of `image` that a data set brings; None is the run's, and one that is not here has the
whole image as a square, for a crop would lose defects at the border."""
