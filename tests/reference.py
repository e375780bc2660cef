"""PatchCore on one page, in plain NumPy: slow, obvious, and what every fast path is compared with.

From layer maps to metrics, in the order of an image's way: tiles, patch features, coreset, search
and scores, anomaly map, scale of an ensemble's member, the baselines, metrics.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import scipy.ndimage

# --- tiles -----------------------------------------------------------------------------------


def stitched(
    image: np.ndarray,
    network: Callable[[np.ndarray], list[np.ndarray]],
    strides: list[int],
    side: int,
    overlap: int,
    cut: int,
    unit: int,
    halo: int = 0,
) -> list[np.ndarray]:
    """Layer maps [(C, h, w), …] of an image (3, H, W) from those of its tiles, cell by cell.

    `halo` units around the image, which shift the raster, are made too and left out.
    """
    step = side - overlap
    units = [-(-n // unit) + 2 * halo for n in image.shape[1:]]
    first = [
        (n - (u - 2 * halo) * unit) // 2 - halo * unit - overlap // 2
        for n, u in zip(image.shape[1:], units, strict=True)
    ]
    sums, weights = {}, {}
    for i in range(-(-units[0] * unit // step)):
        for j in range(-(-units[1] * unit // step)):
            rows = [mirror(first[0] + i * step + p, image.shape[1]) for p in range(side)]
            columns = [mirror(first[1] + j * step + p, image.shape[2]) for p in range(side)]
            for layer, x in enumerate(network(image[:, rows][:, :, columns])):
                stride = strides[layer]
                shape = [u * unit // stride for u in units]
                total = sums.setdefault(layer, np.zeros((len(x), *shape)))
                weight = weights.setdefault(layer, np.zeros(shape))
                for y in range(side // stride):
                    for z in range(side // stride):
                        place = [
                            k * step // stride - overlap // 2 // stride + cell
                            for k, cell in ((i, y), (j, z))
                        ]
                        if all(0 <= p < n for p, n in zip(place, shape, strict=True)):
                            own = 1.0
                            for cell in (y, z):
                                centre = (cell + 0.5) * stride
                                inner = min(centre, side - centre) - cut
                                ramp = overlap - 2 * cut
                                own *= np.clip(inner / ramp, 0, 1) if ramp else float(inner > 0)
                            total[:, place[0], place[1]] += own * x[:, y, z]
                            weight[place[0], place[1]] += own
    found = []
    for layer, stride in enumerate(strides):
        edge = halo * unit // stride
        whole = sums[layer] / weights[layer]
        found.append(whole[:, edge : whole.shape[1] - edge, edge : whole.shape[2] - edge])
    return found


def mirror(place: int, length: int) -> int:
    """Pixel at a place beyond a side that is mirrored at both ends."""
    while not 0 <= place < length:
        place = -1 - place if place < 0 else 2 * length - 1 - place
    return place


# --- patches ---------------------------------------------------------------------------------


def patch_features(
    maps: list[np.ndarray], size: int, stride: int, layer_channels: int | None, channels: int | None
) -> np.ndarray:
    """Unfold, pool, interpolate, pool: (B, h, w, D) from [(B, C, H, W), …], as the paper's authors.

    With no channel mapping: the mean over each neighbourhood, layers joined.
    """
    grid = None
    layers = []
    for x in maps:
        x = unfold(x, size, stride)  # (B, h, w, C, p·p)
        if grid is None:
            grid = x.shape[1:3]
        x = interpolate(x, grid)
        if layer_channels is None:
            layers.append(x.mean(-1))
        else:
            flat = x.reshape(*x.shape[:3], -1)  # (B, h, w, C·p·p)
            layers.append(adaptive_average(flat, layer_channels))
    joined = np.concatenate(layers, -1)  # (B, h, w, L·D)
    return joined if channels is None else adaptive_average(joined, channels)


def unfold(x: np.ndarray, size: int, stride: int) -> np.ndarray:
    """Zero-padded p × p neighbourhoods of (B, C, H, W): (B, h, w, C, p·p)."""
    pad = size // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))
    windows = windows[:, :, ::stride, ::stride]  # (B, C, h, w, p, p)
    windows = windows.transpose(0, 2, 3, 1, 4, 5)
    return windows.reshape(*windows.shape[:4], -1)


def interpolate(x: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Bilinear resampling of axes 1 and 2 to `grid`, pixel centres at half integers."""
    for axis, target in ((1, grid[0]), (2, grid[1])):
        n = x.shape[axis]
        position = np.clip((np.arange(target) + 0.5) * n / target - 0.5, 0, None)
        left = np.minimum(position.astype(int), n - 1)
        right = np.minimum(left + 1, n - 1)
        share = (position - left).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        x = np.take(x, left, axis) * (1 - share) + np.take(x, right, axis) * share
    return x


def adaptive_average(x: np.ndarray, m: int) -> np.ndarray:
    """Average n entries of the last axis to m runs ⌊kn/m⌋ … ⌈(k+1)n/m⌉."""
    n = x.shape[-1]
    return np.stack([x[..., k * n // m : -(-(k + 1) * n // m)].mean(-1) for k in range(m)], axis=-1)


# --- poses of training images, trusted patches -------------------------------------------------


def pose(image: np.ndarray, mirrored: bool, degrees: float) -> np.ndarray:
    """An image (H, W, C), mirrored left to right or not, then turned to the left in its frame.

    Each pixel is looked up at its place before the turn, bilinearly; borders mirror.
    """
    height, width, _ = image.shape
    image = image[:, ::-1] if mirrored else image
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turned = np.zeros(image.shape)
    for i in range(height):
        for j in range(width):
            y, x = i - (height - 1) / 2, j - (width - 1) / 2
            y, x = cos * y + sin * x + (height - 1) / 2, cos * x - sin * y + (width - 1) / 2
            top, left = int(np.floor(y)), int(np.floor(x))
            for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
                weight = (1 - abs(y - top - a)) * (1 - abs(x - left - b))
                turned[i, j] += weight * image[inward(top + a, height), inward(left + b, width)]
    return turned


def inward(place: int, length: int) -> int:
    """A place beyond the border, mirrored at the pixel there until it lies inside."""
    while not 0 <= place < length:
        place = -place if place < 0 else 2 * (length - 1) - place
    return place


def distrust(
    patches: list[np.ndarray], sources: list[int], rows: list[tuple[int, int]], k: int
) -> dict[int, float]:
    """Distrust of images by some of their patches, {number: deviations of the worst}.

    `patches` are (P, D) of each image, `sources` the images' numbers, of which copies of one share
    theirs; `rows` name an image and a patch of it; `k` other images need to have its like.
    """
    worst: dict[int, float] = {}
    for image, place in rows:
        away: dict[int, float] = {}
        for source, others in zip(sources, patches, strict=True):
            if source != sources[image] and len(others):
                nearest_one = np.linalg.norm(others - patches[image][place], axis=1).min()
                away[source] = min(away.get(source, np.inf), nearest_one)
        reach = sorted(away.values())[k - 1]
        worst[sources[image]] = max(reach, worst.get(sources[image], 0.0))
    logarithms = {number: np.log(reach) for number, reach in worst.items()}
    middle = sorted(logarithms.values())[(len(worst) - 1) // 2]
    away_from = sorted(abs(value - middle) for value in logarithms.values())
    spread = 1.4826 * away_from[(len(worst) - 1) // 2]
    return {number: (value - middle) / spread for number, value in logarithms.items()}


# --- whitening, foreground --------------------------------------------------------------------


def whitening(
    features: np.ndarray, share: float, shrinkage: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) of features (N, D) and the matrix (d, D) that whitens, in float64.

    Ledoit and Wolf's shrinkage is one minus the share that their Lemma 3.3 leaves to the sample's
    covariance, with one outer product a vector.
    """
    x = features.astype(np.float64)
    mean = x.mean(0)
    covariance = sum(np.outer(row - mean, row - mean) for row in x) / len(x)
    variances, vectors = np.linalg.eigh(covariance)
    order = np.argsort(-variances)
    variances, vectors = variances[order], vectors[:, order]
    kept = 1
    while variances[:kept].sum() < share * variances.sum() and kept < len(variances):
        kept += 1
    z = (x - mean) @ vectors[:, :kept]
    sample = z.T @ z / len(z)
    target = np.trace(sample) / kept * np.eye(kept)
    if shrinkage is None:
        error = sum(((np.outer(row, row) - sample) ** 2).sum() for row in z) / len(z) ** 2
        away = ((sample - target) ** 2).sum()
        shrinkage = min(error, away) / away
    shrunk = ((1 - shrinkage) * sample + shrinkage * target) * len(z) / (len(z) - 1)
    return mean, np.diag(np.diag(shrunk) ** -0.5) @ vectors[:, :kept].T


def foreground(features: np.ndarray, threshold: float) -> np.ndarray:
    """Mask (h, w) of one image's object by its patch features (h, w, D), as AnomalyDINO has it."""
    height, width, _ = features.shape
    x = features.reshape(height * width, -1).astype(np.float64)
    x = x - x.mean(0)
    direction = np.linalg.svd(x, full_matrices=False)[2][0]
    direction = direction * np.sign(direction[np.abs(direction).argmax()])
    component = (x @ direction).reshape(height, width)
    mask = component > threshold
    middle = mask[int(height * 0.2) : int(height * 0.8), int(width * 0.2) : int(width * 0.8)]
    if middle.sum() <= 0.35 * middle.size:
        mask = -component > threshold
    square = np.ones((3, 3), bool)
    mask = scipy.ndimage.binary_dilation(mask, square)
    mask = scipy.ndimage.binary_dilation(mask, square)
    mask = scipy.ndimage.binary_erosion(mask, square, border_value=1)
    return mask if mask.any() else np.ones_like(mask)


# --- coreset ---------------------------------------------------------------------------------


def greedy_coreset(
    points: np.ndarray, count: int, first: int | None = None, distances: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Greedy k-centre, one pick at a time in float64: indices, covering radii, margins (count,).

    Starts at `first`, or from given `distances` (N,). The margin of a pick is by how much its
    squared distance to the chosen set exceeds that of the runner-up. Nothing is picked twice.
    """
    points = points.astype(np.float64)
    nearest = np.full(len(points), np.inf) if distances is None else distances.astype(float) ** 2
    left = np.ones(len(points), bool)
    indices, radii, margins = [], [], []
    for _ in range(count):
        reach = np.where(left, nearest, -np.inf)
        pick = first if first is not None and not indices else int(reach.argmax())
        second = np.delete(reach, pick).max(initial=-np.inf)
        margins.append(np.inf if len(indices) == 0 and first is not None else reach[pick] - second)
        indices.append(pick)
        left[pick] = False
        nearest = np.minimum(nearest, ((points - points[pick]) ** 2).sum(1))
        radii.append(np.sqrt(nearest[left].max(initial=0)))
    return np.array(indices), np.array(radii), np.array(margins)


def reconstruction_loss(
    patches: np.ndarray, proxies: np.ndarray, temperature: float = 1.0
) -> np.ndarray:
    """Eq. 8 for each patch (B,), with weights that fall with distance."""
    losses = []
    for m in patches.astype(np.float64):
        distances = np.sqrt(((m - proxies) ** 2).sum(1))
        weights = np.exp(-distances / temperature)
        weights /= weights.sum()
        losses.append(((m - weights @ proxies) ** 2).sum())
    return np.array(losses)


# --- index and scoring -----------------------------------------------------------------------


def nearest(queries: np.ndarray, memory: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances (Q, k) and rows (Q, k) of the k nearest memory entries, in float64."""
    differences = queries[:, None].astype(np.float64) - memory[None].astype(np.float64)
    distances = (differences**2).sum(-1)  # (Q, M)
    rows = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, rows, 1), rows


def nearest_nearby(
    queries: np.ndarray,
    places: np.ndarray,
    memory: np.ndarray,
    origin: np.ndarray,
    k: int,
    radius: int | None = None,
    retrieval: int | None = None,
    means: dict[int, np.ndarray] | None = None,
    whole: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`nearest` for the patches of one image, in the part of the memory that may be compared.

    Args:
        queries: (Q, D) patches of the image; `places` (Q, 2) are their grid rows and columns.
        memory: (M, D); `origin` (M, 3) are image number, grid row and grid column.
        radius: Rows and columns that a memory patch may be away; more where there are too few.
        retrieval: Most similar images that count, by `means`, {number: mean of its patches}; more
            if they have too few patches in the memory.
        whole: What the image is compared by as a whole, if not the mean of its patches.
    """
    allowed = np.ones(len(memory), bool)
    if retrieval is not None:
        present = [number for number in sorted(means) if number in origin[:, 0]]
        whole = queries.mean(0) if whole is None else whole
        away = [((means[number] - whole) ** 2).sum() for number in present]
        ranked = [present[i] for i in np.argsort(away, kind="stable")]
        allowed = np.isin(origin[:, 0], ranked[:retrieval])
        while allowed.sum() < k:
            retrieval += 1
            allowed = np.isin(origin[:, 0], ranked[:retrieval])
    distances, rows = [], []
    for query, place in zip(queries, places, strict=True):
        near, reach = allowed, radius
        while reach is not None:
            near = allowed & (np.abs(origin[:, 1:] - place).max(1) <= reach)
            if near.sum() >= k:
                break
            reach += 1
        squared, found = nearest(query[None], memory[near], k)
        distances.append(squared[0])
        rows.append(np.flatnonzero(near)[found[0]])
    return np.array(distances), np.array(rows)


def patch_scores(
    patches: np.ndarray, memory: np.ndarray, k: int, distance: str
) -> tuple[np.ndarray, np.ndarray]:
    """Mean distance (P,) of patches (P, D) to their k nearest memory entries, and the nearest (P,).

    The cosine distance is 1 − x·y / (|x| |y|).
    """
    if distance == "cosine":
        patches, memory = unit(patches), unit(memory)
    squared, rows = nearest(patches, memory, k)
    if distance == "cosine":
        distances = 1 - (patches[:, None] * memory[rows]).sum(-1)  # (P, k)
    else:
        distances = squared if distance == "squared" else np.sqrt(squared)
    return distances.mean(1), rows[:, 0]


def image_score(
    patches: np.ndarray,
    memory: np.ndarray,
    b: int,
    k: int = 1,
    distance: str = "euclidean",
    share: float = 0.0,
) -> float:
    """Eq. 6 and, for b > 0, Eq. 7, for one image's patches (P, D), term by term.

    The mean over the `share` of the patches that score highest. Eq. 7's distances are Euclidean, of
    unit vectors where the cosine is asked for.
    """
    patches, memory = patches.astype(np.float64), memory.astype(np.float64)
    scores, rows = patch_scores(patches, memory, k, distance)
    if distance == "cosine":
        patches, memory = unit(patches), unit(memory)
    found = []
    for candidate in np.argsort(-scores, kind="stable")[: max(1, round(share * len(scores)))]:
        weight = 1.0
        if b:
            m_star = memory[rows[candidate]]
            _, neighbourhood = nearest(m_star[None], memory, b)
            to = [np.linalg.norm(patches[candidate] - memory[row]) for row in neighbourhood[0]]
            weight -= np.exp(np.linalg.norm(patches[candidate] - m_star)) / np.exp(to).sum()
        found.append(weight * scores[candidate])
    return float(np.mean(found))


def anomaly_map(scores: np.ndarray, size: tuple[int, int], sigma: float) -> np.ndarray:
    """Patch scores (h, w) interpolated to `size` (H, W), then a Gaussian of `sigma` px."""
    upsampled = interpolate(scores.astype(np.float64)[None], size)[0]
    return scipy.ndimage.gaussian_filter(upsampled, sigma) if sigma else upsampled


def pixel_score(anomaly_map: np.ndarray, grid: np.ndarray, share: float) -> float:
    """Mean of the `share` of a map's pixels (H, W) that are highest, in cells (h, w) that count.

    A cell whose score is NaN does not count.
    """
    (height, width), (h, w) = anomaly_map.shape, grid.shape
    pixels = [
        anomaly_map[i, j]
        for i in range(height)
        for j in range(width)
        if not np.isnan(grid[i * h // height, j * w // width])
    ]
    return float(np.mean(sorted(pixels)[::-1][: max(1, round(share * len(pixels)))]))


def nominal_scale(
    images: list[np.ndarray],
    sources: list[int],
    rows: list[tuple[int, int]],
    b: int = 0,
    k: int = 1,
    distance: str = "euclidean",
    share: float = 0.0,
) -> tuple[float, float, float, float]:
    """Mean and deviation of the scores of nominal images, and of their patches, leave-one-out.

    `images` are patches (P, D); `rows` the memory, as numbers of an image and of a patch of it.
    """
    scores, patches = [], []
    for image, source in zip(images, sources, strict=True):
        others = [images[i][j] for i, j in rows if sources[i] != source]
        if len(others) < max(b, k):
            continue
        memory = np.stack(others)
        scores.append(image_score(image, memory, b, k, distance, share))
        patches.append(patch_scores(image, memory, k, distance)[0])
    every = np.concatenate(patches)
    return float(np.mean(scores)), float(np.std(scores)), float(every.mean()), float(every.std())


def separate_layers(
    patches: list[np.ndarray],
    memories: list[np.ndarray],
    scales: list[tuple[float, float]] | None = None,
    k: int = 1,
    distance: str = "euclidean",
) -> np.ndarray:
    """Scores (h, w) of an image's places, with one memory a layer: the mean of the layers' scores.

    Args:
        patches: Features [(h, w, D), …] of the layers, each on its own grid, the finest first.
        memories: Their memories [(M, D), …].
        scales: Nominal mean and deviation of each layer's scores; None: they are taken as they are.
    """
    found = []
    for i, (x, memory) in enumerate(zip(patches, memories, strict=True)):
        scores = patch_scores(x.reshape(-1, x.shape[-1]), memory, k, distance)[0]
        mean, std = scales[i] if scales else (0.0, 1.0)
        grid = (scores.reshape(x.shape[:2]) - mean) / std
        found.append(interpolate(grid[None], patches[0].shape[:2])[0])
    return np.mean(found, axis=0)


def unit(x: np.ndarray) -> np.ndarray:
    """Vectors (…, D) at length 1."""
    x = x.astype(np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# --- baselines -------------------------------------------------------------------------------


def pyramid(maps: list[np.ndarray]) -> np.ndarray:
    """Layers [(B, C, H, W), …] interpolated to the first one's grid and joined: (B, h, w, D)."""
    layers = [x.astype(np.float64).transpose(0, 2, 3, 1) for x in maps]
    return np.concatenate([interpolate(x, layers[0].shape[1:3]) for x in layers], -1)


def spade(
    nominal: list[np.ndarray], image: list[np.ndarray], neighbours: int, pixel_neighbours: int
) -> tuple[float, np.ndarray, np.ndarray]:
    """SPADE's score, pixel scores (h·w,) and nearest pixels (h·w,) of one image.

    Args:
        nominal: Layer maps [(N, C, H, W), …]; the deepest chooses the images.
        image: The same of the image, [(1, C, H, W), …].
    """
    pooled = nominal[-1].mean((2, 3))  # (N, C)
    distances, images = nearest(image[-1].mean((2, 3)), pooled, min(neighbours, len(pooled)))
    pixels = pyramid(nominal)
    pixels = pixels.reshape(len(pooled), -1, pixels.shape[-1])  # (N, h·w, D)
    queries = pyramid(image).reshape(-1, pixels.shape[-1])  # (h·w, D)
    memory = np.concatenate([pixels[i] for i in images[0]])  # (K·h·w, D)
    squared, rows = nearest(queries, memory, pixel_neighbours)
    place = images[0][rows[:, 0] // len(queries)] * len(queries) + rows[:, 0] % len(queries)
    return float(np.sqrt(distances).mean()), np.sqrt(squared).mean(1), place


def padim(nominal: np.ndarray, images: np.ndarray, epsilon: float) -> np.ndarray:
    """Mahalanobis distances (B, P) of (B, P, D) to Gaussians of (N, P, D), by explicit inverses."""
    scores = np.zeros(images.shape[:2])
    for p in range(nominal.shape[1]):
        x = nominal[:, p].astype(np.float64)
        mean = x.mean(0)
        covariance = epsilon * np.eye(x.shape[1])
        for row in x:
            covariance += np.outer(row - mean, row - mean) / max(1, len(x) - 1)
        inverse = np.linalg.inv(covariance)
        for b, y in enumerate(images[:, p] - mean):
            scores[b, p] = np.sqrt(y @ inverse @ y)
    return scores


# --- metrics ---------------------------------------------------------------------------------


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of (anomalous, nominal) pairs in the right order, ties counting half."""
    anomalous, nominal = scores[labels], scores[~labels]
    pairs = [(a > n) + 0.5 * (a == n) for a in anomalous for n in nominal]
    return float(np.mean(pairs))


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Precision at each distinct score, times the recall that it adds."""
    total, recall = 0.0, 0.0
    for t in np.unique(scores)[::-1]:
        found = labels[scores >= t]
        total += found.mean() * (found.sum() / labels.sum() - recall)
        recall = found.sum() / labels.sum()
    return total


def best_f1(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float, int, int]:
    """Best F1 over all thresholds, the highest such threshold, its false positives, negatives."""
    best = (-1.0, 0.0, 0, 0)
    for t in np.unique(scores)[::-1]:
        called = scores >= t
        tp, fp, fn = (called & labels).sum(), (called & ~labels).sum(), (~called & labels).sum()
        f1 = 2 * tp / (2 * tp + fp + fn)
        if f1 > best[0]:
            best = (float(f1), float(t), int(fp), int(fn))
    return best


def errors_at_full_recall(scores: np.ndarray, labels: np.ndarray) -> int:
    """Nominal scores that no threshold which finds every anomaly can avoid."""
    return int((scores[~labels] >= scores[labels].min()).sum())


def aupro(maps: list[np.ndarray], masks: list[np.ndarray], limit: float) -> float:
    """Bergmann et al.: one threshold after another, one region after another."""
    regions = []
    for scores, mask in zip(maps, masks, strict=True):
        labels, count = scipy.ndimage.label(mask, np.ones((3, 3)))
        regions += [scores[labels == k + 1] for k in range(count)]
    nominal = np.concatenate([scores[~mask] for scores, mask in zip(maps, masks, strict=True)])
    fpr, pro = [0.0], [0.0]
    for t in np.unique(np.concatenate([scores.ravel() for scores in maps]))[::-1]:
        fpr.append((nominal >= t).mean())
        pro.append(np.mean([(region >= t).mean() for region in regions]))
    inside = [x for x in fpr if x <= limit]
    x = np.array([*inside, limit])
    y = np.array([*pro[: len(inside)], np.interp(limit, fpr, pro)])
    return float(((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum() / limit)


def aupimo(maps: list[np.ndarray], masks: list[np.ndarray], low: float, high: float) -> list[float]:
    """Bertoldo et al.: area of each anomalous image, one threshold after another.

    Both rates at every distinct score; straight lines between them over the logarithm of the
    false-positive rate, which nominal images share, from `low` to `high`.
    """
    nominal = [scores for scores, mask in zip(maps, masks, strict=True) if not mask.any()]
    thresholds = np.unique(np.concatenate([scores.ravel() for scores in maps]))[::-1]
    fpr = [np.mean([(scores >= t).mean() for scores in nominal]) for t in thresholds]
    areas = []
    for scores, mask in zip(maps, masks, strict=True):
        if not mask.any():
            continue
        overlap = [(scores[mask] >= t).mean() for t in thresholds]
        points = [(np.log(x), y) for x, y in zip(fpr, overlap, strict=True) if x > 0]
        area = 0.0
        for (x0, y0), (x1, y1) in pairwise(points):
            left, right = (np.clip(x, np.log(low), np.log(high)) for x in (x0, x1))
            if left < right:
                ends = [y0 + (y1 - y0) * (x - x0) / (x1 - x0) for x in (left, right)]
                area += (right - left) * np.mean(ends)
        areas.append(float(area / np.log(high / low)))
    return areas
