"""Interface of a method: nominal images in, then scores and anomaly maps out.

A method is one file with two classes, a `MethodConfig` (its name, its settings, which of the other
groups of settings it reads) and a `Detector`, and one line in `METHODS`. A detector works on the
layer maps of one frozen backbone:

    maps of a batch → features → buffer.append, …, build_from(buffer)      to fit
    maps of a batch → features → score                                    to test

Each method decides what `features` contains: patch features, several tensors, or features with a
mask of the positions that count. The same holds for `memories`. A method that trains returns an
`optimizer`, and a `loss` of the features of each batch.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor
from torch.utils._pytree import _register_namedtuple

from patchcore.arguments import batches_of, size_of
from patchcore.backbones import BackboneConfig, LayersConfig
from patchcore.coreset import SAMPLERS, AllConfig, CoresetConfig
from patchcore.errors import InputError
from patchcore.index import INDEXES, IndexConfig, TorchIndexConfig
from patchcore.methods.origin import UNKNOWN
from patchcore.methods.scale import Scale, ScaleConfig
from patchcore.methods.stateful import Stateful
from patchcore.patches import PatchConfig
from patchcore.reuse import make_backbone
from patchcore.scoring import ScoringConfig
from patchcore.settings import Groups, Settings


class Prediction(NamedTuple):
    """Scores of a batch of images; higher is more anomalous.

    A tuple, which PyTorch's compilers take apart and put together as they do tensors.
    """

    score: Tensor  # (B,) anomaly score of each image
    map: Tensor  # (B, H, W) anomaly map at the input's size; 0 at pixels that do not count
    patch_score: Tensor  # (B, h, w) anomaly score of each patch; NaN for those that do not count
    nearest: Tensor  # (B, h, w) int64 memory row nearest to each patch; others: see their `score`


# So that `torch.export.save` can write what an exported model gives.
_register_namedtuple(Prediction, serialized_type_name="patchcore.Prediction")


@dataclass
class MethodConfig(Settings):
    """Base of the methods' settings: the name of the method, and the settings that only it has.

    Attributes:
        name: Its name in `METHODS`.
        levels: Layers of a run that names none; empty: those of `LayersConfig`.
        reads: Settings of the groups layers (beyond their names), patch, coreset, index and scoring
            that it reads: {group: names of settings}, or the class that a group's settings must be
            of if it reads them all.
        scalable: Whether it measures `Fitting.scale`, as an ensemble's members must.
        nested: Whether its memory begins with that of every smaller `coreset.ratio`.
        shared: Whether several processes can fit it together, each from its own images.
        untraceable: Why no graph for batches of any length can be made; empty if one can.
    """

    GROUP: ClassVar[str] = "method"
    name: ClassVar[str]
    levels: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[Mapping[str, tuple[str, ...] | type]] = {}
    scalable: ClassVar[bool] = False
    nested: ClassVar[bool] = False
    shared: ClassVar[bool] = False
    untraceable: ClassVar[str] = ""

    def build(self, parts: "Parts") -> "Detector":
        """Return the method, not fitted yet."""
        raise TypeError(f"no method for {type(self).__name__}")


@dataclass
class Parts(Groups):
    """All settings that a detector is made of."""

    method: MethodConfig
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    layers: LayersConfig = field(default_factory=LayersConfig)
    patch: PatchConfig = field(default_factory=PatchConfig)
    coreset: CoresetConfig = field(default_factory=AllConfig)
    index: IndexConfig = field(default_factory=TorchIndexConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)


STANDARD = Parts(MethodConfig())  # settings where none are named
READ_BY_ALL = {"layers": ("names", "norm")}  # settings that every method reads


class Kept(Protocol):
    """Outcomes of earlier fits on the same layer maps, by settings of patches and coreset."""

    def get(
        self, patch: Any, sampler: Any, valid: Callable[[dict[str, Tensor]], bool]
    ) -> dict[str, Tensor] | None:
        """Return the entry, or None if there is none that is `valid`."""

    def put(self, patch: Any, sampler: Any, entry: dict[str, Tensor]) -> None:
        """Keep an entry."""


@dataclass
class Fitting:
    """One fit: its circumstances, and its report.

    Attributes:
        progress: Whether to show progress bars.
        images: Numbers of the images that were gathered: copies of one, as from several epochs,
            share its number. None: each is another.
        places: Places of the images among those of all processes that fit together, each its own;
            None: this process has all images.
        copies: {number: number of the first image with the same contents}. They add to the memory
            bank, but are one image where images are compared with others.
        kept: Where outcomes of costly stages are looked for and kept; None: nowhere.
        scale: Settings for measuring the scale of the scores; None: it is not measured.
        measured: The scale.
        distrusted: Images that may be anomalous, {number: distrust}, the worst first; None: the
            method does not judge images.
        seconds: Wall time of each stage.
        warm: Stages that read `kept`, so that their time is not that of computing.
        costs: Seconds of stages without `kept`, if not `seconds`; NaN: not known.
    """

    progress: bool = False
    images: Sequence[int] | None = None
    places: Sequence[int] | None = None
    copies: Mapping[int, int] = field(default_factory=dict)
    kept: Kept | None = None
    scale: ScaleConfig | None = None
    measured: Scale | None = None
    distrusted: dict[int, float] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    warm: set[str] = field(default_factory=set)
    costs: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the wall time of a stage."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


class Method(Stateful, ABC):
    """Any method, whatever its images pass through.

    Attributes:
        counts_used: Whether `Prediction.nearest` holds rows of a memory bank that grows with the
            images; then the share of rows ever used shows whether it is too large.
        one_size: Whether all images must have one size.
    """

    counts_used: ClassVar[bool] = False
    one_size: bool = False

    @abstractmethod
    def fit(self, images: Any, progress: bool = False) -> Self:
        """Remember nominal images."""

    @abstractmethod
    def forward(self, images: Any) -> Prediction:
        """Score images, normalised like those of `fit`. Raises InputError if not fitted."""

    @property
    @abstractmethod
    def memories(self) -> dict[str, Tensor]:
        """All tensors that are kept of the nominal images, by name; empty ones before `fit`."""

    @property
    @abstractmethod
    def memory_patches(self) -> int:
        """Number of vectors or distributions that a patch may be compared with."""

    @property
    def memory_bytes(self) -> int:
        """Size in bytes of everything that is kept of the nominal images."""
        return sum(memory.nbytes for memory in self.memories.values())

    def bytes_of(self, rows: int) -> int:
        """Return `memory_bytes` with so many of the memory's rows."""
        return self.memory_bytes // self.memory_patches * rows

    def save(
        self,
        folder: str | Path,
        *,
        image: Any = None,
        decision: Any = None,
        details: Mapping[str, Any] | None = None,
        weights: bool = False,
    ) -> None:
        """Save the fitted model as an artifact, which `patchcore.load` reads.

        Args:
            folder: Made; an artifact that is there already is replaced.
            image: How the input is made of an image's pixels: see `Inspector`.
            decision: The `Decision` that belongs to the model.
            details: Further plain values to save: data, metrics, lineage, ….
            weights: Whether the networks' weights are saved inside.

        Raises:
            InputError: It is not fitted, `image` has other tiles, or the folder cannot be written.
        """
        # By its name, so that fingerprints of runs do not follow it: keeping changes no result.
        artifact = import_module("patchcore.artifact")
        artifact.save_model(self, folder, image, decision, details, weights)


class Detector(Method):
    """A method that works on the layer maps of one frozen backbone.

    Images are float tensors (B, 3, H, W), normalised as the backbone expects. A method computes its
    features from their layer maps: by `features`, `buffer` and `build_from` when fitting, and by
    `features` and `score` afterwards. No other code uses the content of the features.

    Attributes:
        parts: All settings. `build_detector(parts)` with this state dict gives an equal detector.
        backbone: Gives the layer maps.
        scoring: How distances become scores; all methods smooth their maps by its sigma.
        left_out: Numbers of images that it was fitted with and does not remember.

    Args:
        parts: See above.
        network: Replaces the detector's own `Backbone`; has the same attributes.

    Raises:
        InputError: A setting has no effect on the method.
    """

    left_out: tuple[int, ...] = ()

    def __init__(self, parts: Parts, network: Any = None) -> None:
        super().__init__()
        check_unused(parts.method, layers=parts.layers, scoring=parts.scoring)
        self.parts = parts
        self.backbone = make_backbone(parts.backbone, parts.layers) if network is None else network
        self.scoring = parts.scoring

    @abstractmethod
    def features(self, maps: Sequence[Tensor]) -> Any:
        """Return the features of a batch from the backbone's layer maps [(B, C, h, w), …]."""

    def counted(self, maps: Sequence[Tensor], inside: Tensor) -> Any:
        """Return `features`; in fitting and in scores, only those count that lie inside.

        Args:
            maps: As for `features`.
            inside: (B, H, W) bool, pixels of the network's input that count.

        Raises:
            InputError: The method cannot do so, or nothing of an image counts.
        """
        raise self._refusal("kept to a part of the images: leave data.region and data.regions out")

    @abstractmethod
    def buffer(self, images: int = 0) -> Any:
        """Return a buffer for the features of about so many images."""

    @abstractmethod
    def build_from(self, buffer: Any, fitting: Fitting | None = None) -> None:
        """Make the memory from the gathered features of nominal images, and empty the `buffer`.

        Raises:
            InputError: There are none, or they do not suit the method.
        """

    @abstractmethod
    def score(self, features: Any, size: tuple[int, int]) -> Prediction:
        """Score the features of images of `size` (H, W). Raises InputError if not fitted."""

    def origins(self, rows: Tensor) -> Tensor:
        """Return where rows (…) of `Prediction.nearest` come from: (…, 3) int32.

        Image number, as in `Fitting.images`, grid row and grid column; -1 where it is not known.
        """
        return torch.full((*rows.shape, 3), UNKNOWN, dtype=torch.int32, device=rows.device)

    @property
    def partial(self) -> bool:
        """Whether some positions of what is remembered do not count, as scores must know."""
        return False

    @property
    def untraceable(self) -> str:
        """Reason why no graph for batches of any length can be made of it; empty if one can."""
        return self.parts.method.untraceable

    @property
    def images_had(self) -> int:
        """Least number above those of all images in the memory, and of those left out."""
        return 0

    def extend(
        self,
        batches: Sequence[Any],
        sizes: Sequence[tuple[int, int]],
        images: Sequence[int],
        count: int | None = None,
    ) -> list[Prediction]:
        """Add nominal images to the memory; return the earlier predictions for each batch.

        Args:
            batches: Results of `features`.
            sizes: (H, W) of the images of each batch.
            images: Numbers of the images, none of which is known already.
            count: Patches to add; by default as many as leave the memory's share of all patches.

        Raises:
            InputError: The method or its settings have no way to do it, or it is not fitted.
        """
        raise self._refusal("extended: fit again with all images")

    def forget(self, images: Collection[int]) -> None:
        """Remove images from the memory, by their numbers.

        Raises:
            InputError: The method keeps no images apart, or too little would be left.
        """
        raise self._refusal("rid of an image: fit again without it")

    def _refusal(self, what: str) -> InputError:
        return InputError(f"method={self.parts.method.name} cannot be {what}")

    def optimizer(self) -> torch.optim.Optimizer | None:
        """Return the optimizer of the method's own parameters; None if it does not train."""
        return None

    def loss(self, features: Any) -> Tensor:
        """Return the loss of a batch of nominal images, for a method with an `optimizer`."""
        raise NotImplementedError(f"{type(self).__name__} has an optimizer, but no loss")

    def prefixes(self, ratios: Sequence[float]) -> dict[float, int]:
        """Return the memory's size at each ratio and at the model's own, {ratio: size}, ascending.

        Empty if none is asked for; only a `nested` method has any.
        """
        return {}

    def score_prefixes(
        self, features: Any, size: tuple[int, int], patches: Sequence[int]
    ) -> list[Prediction]:
        """Return `score` with the first n patches of the memory alone, for each n of `patches`."""
        raise NotImplementedError(f"{type(self).__name__} has no nested memory")

    def settings(self) -> dict[str, Any]:
        """See `Stateful.settings`."""
        layers, norm = self.backbone.layers, self.parts.layers.norm or None
        return {"backbone.name": self.backbone.name, "layers.names": layers, "layers.norm": norm}

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.backbone.parameters()).device

    @torch.inference_mode()
    def embed(self, images: Tensor, inside: Tensor | None = None) -> Any:
        """Return the features of images (B, 3, H, W); of what is `inside`, if that is given."""
        return self.of_maps(self.backbone(images), inside)

    def of_maps(self, maps: Sequence[Tensor], inside: Tensor | None = None) -> Any:
        """Return `features`, or `counted` ones."""
        return self.features(maps) if inside is None else self.counted(maps, inside)

    def learn(
        self,
        maps: Sequence[Tensor],
        step: Callable[[Tensor], None] | None = None,
        inside: Tensor | None = None,
    ) -> Any:
        """Return the features of a nominal batch; a method that trains first takes a step with it.

        Args:
            maps: Layer maps [(B, C, h, w), …].
            step: Makes one step of the optimiser by a loss; None for a method without.
            inside: See `counted`.
        """
        if step is not None:  # through copies, as the backbone's own maps allow no gradient
            step(self.loss(self.of_maps([x.clone() for x in maps], inside)))
        with torch.inference_mode():
            return self.of_maps(maps, inside)

    def fit(
        self,
        images: Tensor | Iterable[Tensor],
        progress: bool = False,
        fitting: Fitting | None = None,
    ) -> Self:
        """Remember nominal images: one batch (B, 3, H, W), or an iterable of batches.

        `fitting`, if given, says more than `progress`, and takes the report.
        """
        buffer, optimizer = self.buffer(), self.optimizer()

        def step(loss: Tensor) -> None:
            assert optimizer is not None
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        for batch in batches_of(images, self.backbone.tiling is not None):
            maps = self.backbone(batch.to(self.device))
            buffer.append(self.learn(maps, step if optimizer else None))
        self.build_from(buffer, fitting or Fitting(progress))
        return self

    @torch.inference_mode()
    def forward(self, images: Tensor, inside: Tensor | None = None) -> Prediction:
        """Score images (B, 3, H, W), normalised as for `fit`, by the pixels `inside` or by all."""
        size = size_of(images, self.backbone.tiling is not None)
        return self.score(self.embed(images, inside), size)


def check_unused(method: MethodConfig, **groups: Any) -> None:
    """Raise InputError for a setting of `groups` that `method` ignores; defaults are allowed."""
    for group, settings in groups.items():
        default, read = getattr(STANDARD, group), method.reads.get(group, ())
        if not isinstance(settings, read if isinstance(read, type) else type(default)):
            raise InputError(
                f"{group}={_choice(settings)} has no effect on method={method.name}: leave it out, "
                f"or set {group}={_choice(default)}"
            )
        if isinstance(read, type):
            continue
        for option in fields(default):
            unlike = getattr(settings, option.name) != getattr(default, option.name)
            if unlike and option.name not in (*read, *READ_BY_ALL.get(group, ())):
                raise InputError(
                    f"{group}.{option.name} has no effect on method={method.name}: leave it out"
                )


def _choice(settings: Any) -> str:
    """Name of a coreset's or an index's settings in their registry."""
    kinds: dict[str, type] = {**SAMPLERS, **INDEXES}
    return next((name for name, kind in kinds.items() if type(settings) is kind), "this")
