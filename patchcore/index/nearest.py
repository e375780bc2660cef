"""The nearest memory row of very many queries, at little more than the cost of one product.

`TorchIndex` guarantees its rows, and compares few queries at a time with the whole memory, which
suits the batches of a test. Here, blocks of the memory are compared with many queries, and the
product alone chooses.
"""

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

_QUERIES, _ROWS = 2048, 2048  # of one product: 16 MiB, near the processor's cache


def nearest_rows(
    memory: Float[Tensor, "memory channels"], queries: Float[Tensor, "queries channels"]
) -> tuple[Float32[Tensor, "queries 1"], Int64[Tensor, "queries 1"]]:
    """Squared distance of the nearest memory row to each query, and its number.

    Distances are measured by differences. The row found is the nearest up to rounding: rows whose
    distances a float32 product cannot distinguish may be exchanged.
    """
    centre = memory.mean(0)  # takes length, and with it rounding, from the vectors
    points = memory - centre
    norms = points.square().sum(1)  # (M,)
    distances, rows = [], []
    for some in queries.split(_QUERIES):
        x = some.to(memory.dtype) - centre
        best = x.new_full((len(x),), torch.inf)
        row = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        for start in range(0, len(points), _ROWS):
            block = slice(start, start + _ROWS)
            partial = torch.addmm(norms[block], x, points[block].T, alpha=-2)  # (q, m), less ‖x‖²
            lowest = partial.amin(1)  # several times faster than min, which looks for rows too
            closer = (lowest < best).nonzero()[:, 0]
            row[closer] = start + partial[closer].argmin(1)
            best[closer] = lowest[closer]
        rows.append(row)
        distances.append((some.float() - memory[row].float()).square().sum(1))
    return torch.cat(distances)[:, None], torch.cat(rows)[:, None]
