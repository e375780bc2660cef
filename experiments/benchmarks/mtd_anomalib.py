"""anomalib's part of `mtd_end_to_end.py`, which starts it: it needs nothing of this project.

Takes a folder with `train`, `normal`, `abnormal` and `masks`, and a file of weights; writes the
metrics to result.json in the current folder.
"""

import json
import logging
import sys
import warnings
from pathlib import Path

from anomalib.data import Folder
from anomalib.engine import Engine
from anomalib.metrics import AUROC, Evaluator
from anomalib.models import Patchcore
from safetensors.torch import load_file

SIDE = 224  # px
RATIO = 0.01


def main() -> None:
    """Fit, test, write."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    folder, weights = Path(sys.argv[1]), sys.argv[2]
    data = Folder(
        name="mtd",
        root=folder,
        normal_dir="train",
        normal_test_dir="normal",
        abnormal_dir="abnormal",
        mask_dir="masks",
        train_batch_size=16,  # as ours
        eval_batch_size=16,
        num_workers=2,
        val_split_mode="same_as_test",  # its Engine asks for one; none is run
    )
    model = Patchcore(
        backbone="resnet18",
        layers=("layer2", "layer3"),
        pre_trained=False,
        coreset_sampling_ratio=RATIO,
        num_neighbors=1,
        pre_processor=Patchcore.configure_pre_processor((SIDE, SIDE)),
        post_processor=False,
        evaluator=Evaluator(
            test_metrics=[
                AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
                AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_"),
            ]
        ),
        visualizer=False,
    )
    network = model.model.feature_extractor.feature_extractor
    missing, _ = network.load_state_dict(load_file(weights), strict=False)
    if lacking := [key for key in missing if not key.startswith(("layer4", "fc"))]:
        sys.exit(f"{weights}: lacks {', '.join(lacking[:5])}")
    engine = Engine(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=folder / "results",
    )
    engine.fit(model=model, datamodule=data)
    (found,) = engine.test(model=model, datamodule=data, verbose=False)
    told = {"image AUROC": found["image_AUROC"], "pixel AUROC": found["pixel_AUROC"]}
    Path("result.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
