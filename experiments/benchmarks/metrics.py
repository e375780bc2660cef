"""Pixel AUROC, AP and AUPRO of a test set: ours, from maps and masks to numbers, against others."""

import resource
from collections.abc import Callable

import numpy as np
import scipy.ndimage
import sklearn.metrics
import torch
from harness import parser, report, seconds
from torch import Tensor
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision

from patchcore.metrics import PixelMetrics

LIMIT = 0.3
Values = tuple[float, float, float | None]  # pixel AUROC, AP, AUPRO


def test_set(images: int, size: int) -> tuple[Tensor, Tensor]:
    """Smooth noise maps (B, H, W) and masks (B, H, W), a third of the images with two defects."""
    rng = torch.Generator().manual_seed(0)
    maps = torch.randn(images, 1, size, size, generator=rng)
    maps = torch.nn.functional.avg_pool2d(maps, 5, 1, 2)[:, 0]  # (B, 1, H, W) → (B, H, W)
    masks = torch.zeros(images, size, size, dtype=torch.bool)
    masks[::3, size // 8 : size // 3, size // 8 : size // 3] = True
    masks[::3, -size // 4 : -size // 8, size // 2 : -size // 8] = True
    return maps + 0.2 * masks, masks


def ours(maps: Tensor, masks: Tensor, batch: int = 8) -> Values:
    """Batch by batch, as a test loop does it."""
    metric = PixelMetrics(LIMIT)
    for a, b in zip(maps.split(batch), masks.split(batch), strict=True):
        metric.update(a, b)
    values = metric.compute()
    return values["pixel_auroc"], values["pixel_ap"], values["aupro"]


def curve_values(
    fpr: np.ndarray, tpr: np.ndarray, pro: np.ndarray, precision: np.ndarray
) -> Values:
    """Metrics from the points of the curves, which start at (0, 0), one for each threshold."""
    inside = int((fpr <= LIMIT).sum())
    x = np.append(fpr[:inside], LIMIT)
    y = np.append(pro[:inside], np.interp(LIMIT, fpr, pro))
    area = ((x[1:] - x[:-1]) * (y[1:] + y[:-1])).sum() / 2
    auroc = ((fpr[1:] - fpr[:-1]) * (tpr[1:] + tpr[:-1])).sum() / 2
    return auroc, (np.diff(tpr) * precision[1:]).sum(), area / LIMIT


def naive(maps: Tensor, masks: Tensor) -> Values:
    """One threshold after another, one region after another."""
    regions = []
    for scores, mask in zip(maps.numpy(), masks.numpy(), strict=True):
        labels, count = scipy.ndimage.label(mask, np.ones((3, 3)))
        regions += [scores[labels == k + 1] for k in range(count)]
    nominal, anomalous = maps[~masks].numpy(), maps[masks].numpy()
    rows = [(0.0, 0.0, 0.0, 1.0)]
    for t in np.unique(maps.numpy())[::-1]:
        fp, tp = (nominal >= t).sum(), (anomalous >= t).sum()
        pro = np.mean([(region >= t).mean() for region in regions])
        rows.append((fp / len(nominal), tp / len(anomalous), pro, tp / (tp + fp)))
    return curve_values(*np.array(rows).T)


def one_argsort(maps: Tensor, masks: Tensor) -> Values:
    """All pixels sorted together, each with its weight, and summed up."""
    weights = np.zeros(maps.shape)
    count = 0
    for weight, mask in zip(weights, masks.numpy(), strict=True):
        labels, n = scipy.ndimage.label(mask, np.ones((3, 3)))
        weight[mask] = 1 / np.bincount(labels[mask])[labels[mask]]
        count += n
    scores, flags = maps.numpy().ravel(), masks.numpy().ravel()
    order = np.argsort(-scores)
    last = np.append(np.diff(scores[order]) != 0, True)
    tp = np.append(0, np.cumsum(flags[order])[last])
    fp = np.append(0, np.cumsum(~flags[order])[last])
    pro = np.append(0, np.cumsum(weights.ravel()[order])[last]) / count
    precision = np.append(1, tp[1:] / (tp + fp)[1:])
    return curve_values(fp / fp[-1], tp / tp[-1], pro, precision)


def with_sklearn(maps: Tensor, masks: Tensor) -> Values:
    scores, flags = maps.numpy().ravel(), masks.numpy().ravel()
    auroc = sklearn.metrics.roc_auc_score(flags, scores)
    return float(auroc), float(sklearn.metrics.average_precision_score(flags, scores)), None


def with_torchmetrics(maps: Tensor, masks: Tensor) -> Values:
    scores, flags = maps.flatten(), masks.flatten().long()
    auroc = BinaryAUROC(normalization=None)
    ap = BinaryAveragePrecision(normalization=None)
    return float(auroc(scores, flags)), float(ap(scores, flags)), None


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=8)
    options.add_argument("--size", type=int, default=64, help="side of a map in pixels")
    options.add_argument(
        "--skip-naive", action="store_true", help="its time grows with the square of the pixels"
    )
    args = options.parse_args()
    torch.set_num_threads(args.threads)

    maps, masks = test_set(args.images, args.size)
    before = peak_gigabytes()
    expected = ours(maps, masks)
    after = peak_gigabytes()

    rows: list[tuple[str, Callable[[Tensor, Tensor], Values], int]] = [("ours", ours, 3)]
    if not args.skip_naive:
        rows.append(("naive", naive, 1))
    rows += [
        ("one argsort of all pixels", one_argsort, 3),
        ("scikit-learn, no AUPRO", with_sklearn, 3),
        ("torchmetrics, no AUPRO", with_torchmetrics, 3),
    ]
    results = []
    for name, run, repeats in rows:
        found = run(maps, masks)
        pairs = [(a, b) for a, b in zip(found, expected, strict=True) if a is not None]
        s = seconds(lambda run=run: run(maps, masks), repeats, warmup=0)
        difference = max(abs(a - b) for a, b in pairs)
        results.append({"name": name, "seconds": s, "largest difference": difference})
    print(f"{args.images} images of {args.size} × {args.size}")
    report(results, args.json)
    print(f"\npeak memory of the process: {before:.2f} GB before ours, {after:.2f} GB after")


if __name__ == "__main__":
    main()
