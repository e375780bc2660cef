"""Learned proxies: memory entries that reconstruct the patches, trained by Adam (Eq. 8)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from patchcore._precision import full_precision
from patchcore.coreset.order import Order
from patchcore.coreset.sampler import Coreset, SizedConfig
from patchcore.coreset.space import draw, squared_distances, take
from patchcore.errors import NOT_FINITE, InputError
from patchcore.settings import setting


@dataclass
class LearnedConfig(SizedConfig):
    """Learn proxies that reconstruct the patches (Eq. 8), trained by Adam."""

    steps: int = setting(1000, "number of training steps", low=1)
    batch: int = setting(1024, "number of patches per step", unit="patches", low=1)
    learning_rate: float = setting(
        0.01, "learning rate", unit="standard deviations of the features", above=0
    )
    temperature: float | None = setting(
        0.02,
        "temperature of the weights; null: 1 in the unit of the features, as in the paper",
        unit="mean distances from a patch to its nearest proxy at the start",
        above=0,
    )

    def sample(
        self,
        features: Float[Tensor, "patches channels"],
        device: torch.device,
        order: Order | None = None,
        progress: bool = False,
    ) -> Coreset:
        return learn_proxies(features, self, device, progress)


def learn_proxies(
    features: Float[Tensor, "patches channels"],
    config: LearnedConfig,
    device: torch.device,
    progress: bool = False,
) -> Coreset:
    """Proxies that start as random patches and minimise `reconstruction_loss` by Adam.

    The weights need a temperature that suits the scale of the features. If the distances to the
    proxies differ much less than the temperature, each patch is reconstructed as nearly the mean of
    all proxies. Then the easiest way to a smaller loss is to move the proxies apart, far away from
    the patches. Raises InputError if features or proxies are not finite.
    """
    n, size = len(features), config.size(len(features))
    generator = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(n, generator=generator)[:size]
    start = take(features, chosen).to(device, torch.float32)  # (M, D)
    if not bool(start.isfinite().all()):
        raise InputError(NOT_FINITE)
    with torch.inference_mode(False), full_precision(device), torch.enable_grad():
        losses = torch.empty(config.steps, dtype=torch.float32)
        temperature = 1.0
        if config.temperature is not None:
            probe = draw(n, config.batch, config.seed + 1)
            squared = squared_distances(take(features, probe).to(start), start)
            nearest = squared.amin(1).sqrt().mean()
            temperature = config.temperature * (float(nearest) or 1.0)
        proxies = start.clone().requires_grad_()
        spread = float(start.std(0, correction=0).mean()) or 1.0
        adam = torch.optim.Adam([proxies], lr=config.learning_rate * spread)
        for step in tqdm(range(config.steps), desc="proxies", disable=not progress):
            batch = torch.randint(n, (min(config.batch, n),), generator=generator)
            m = take(features, batch).to(device, torch.float32)  # (B, D)
            loss = reconstruction_loss(m, proxies, temperature).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses[step] = loss.detach()
    memory = proxies.detach().to(features)
    if not bool(memory.isfinite().all()):
        raise InputError(
            "coreset.learning_rate is too high, or coreset.temperature too low: the learned "
            "proxies became NaN or infinite"
        )
    return Coreset(memory, None, losses=losses)


def reconstruction_loss(
    patches: Float[Tensor, "batch channels"],
    proxies: Float[Tensor, "proxies channels"],
    temperature: float = 1.0,
) -> Float[Tensor, " batch"]:
    """Squared error of each patch as a softmax-weighted mean of the proxies, Eq. 8.

    The paper prints the weights as exp(+|m - p|), which would favour the farthest proxies. Here
    they are exp(-|m - p| / temperature).
    """
    distances = squared_distances(patches, proxies).clamp(min=1e-12).sqrt()
    weights = torch.softmax(-distances / temperature, 1)  # (batch, proxies)
    return (patches - weights @ proxies).square().sum(1)
