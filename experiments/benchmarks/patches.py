"""Patch features: our fixed linear map against unfolding and pooling, on one batch of maps."""

import torch
import torch.nn.functional as F
from harness import parser, report, seconds
from torch import Tensor

from patchcore.patches import Mapping, PatchConfig, PatchFeatures


def unfold_and_pool(maps: list[Tensor], config: PatchConfig) -> Tensor:
    """The reference's sequence of operations, in torch: (B, h, w, D)."""
    p, s = config.size, config.stride
    layers = []
    for x in maps:
        h, w = ((side + 2 * (p // 2) - p) // s + 1 for side in x.shape[-2:])
        y = F.unfold(x, p, padding=p // 2, stride=s)  # (B, C·p², h·w)
        if layers:
            grid = layers[0].shape[1:3]
            y = F.interpolate(y.unflatten(-1, (h, w)), size=grid, mode="bilinear").flatten(2)
            h, w = grid
        y = F.adaptive_avg_pool1d(y.transpose(1, 2), config.layer_channels)  # (B, h·w, D)
        layers.append(y.unflatten(1, (h, w)))
    joined = torch.cat(layers, -1)  # (B, h, w, L·D)
    out = F.adaptive_avg_pool1d(joined.flatten(0, 2)[:, None], config.channels)
    return out.reshape(*joined.shape[:3], -1)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--channels", type=int, nargs="+", default=[512, 1024])
    options.add_argument("--side", type=int, default=28, help="grid of the first layer")
    options.add_argument("--size", type=int, default=3, help="neighbourhood p")
    options.add_argument("--out", type=int, default=1024, help="patch feature size")
    options.add_argument("--device", default="cpu")
    args = options.parse_args()
    torch.set_num_threads(args.threads)

    config = PatchConfig(args.size, 1, Mapping.reference, 1024, args.out)
    maps = [
        torch.randn(args.batch, c, args.side // 2**i, args.side // 2**i, device=args.device)
        for i, c in enumerate(args.channels)
    ]
    ours = PatchFeatures(args.channels, config).to(args.device)
    difference = (ours(maps) - unfold_and_pool(maps, config)).abs().max().item()
    last = [x.contiguous(memory_format=torch.channels_last) for x in maps]
    rows = [
        ("ours", lambda: ours(maps)),
        ("ours, maps channels-last", lambda: ours(last)),
        ("naive", lambda: unfold_and_pool(maps, config)),
    ]
    results = []
    for name, run in rows:
        s = seconds(run, repeats=5)
        results.append({"name": name, "seconds": s, "ms an image": 1e3 * s / args.batch})
    report(results, args.json, args.device)
    print(f"\nlargest difference: {difference:.1e}")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
