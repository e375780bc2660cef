"""Mini ShanghaiTech Campus (mSTC; Venkataramanan et al., 2020): pedestrians, watched by 13 cameras.

ShanghaiTech Campus has 330 training videos of normal events (274,515 frames) and 107 test videos
(42,883 frames of 856×480 pixels). Its mini version keeps every fifth frame of both and has 12
scenes (PatchCore's paper, Section 4.1; results in Table 6). The paper leaves two choices open. Of
five frames, the first is kept here: frames 0, 5, 10, … of each video. And each scene has a memory
of its own here, because its camera does not move: a scene is a category. Scenes without training
or without test videos are left out.

Citation: W. Liu, W. Luo, D. Lian, S. Gao. Future Frame Prediction for Anomaly Detection – A New
Baseline. CVPR 2018. Mini version: S. Venkataramanan, K.-C. Peng, R. V. Singh, A. Mahalanobis.
Attention Guided Anomaly Localization in Images. ECCV 2020.
Layout: `LAYOUT`, where 01 is the scene and the rest of the name is the video. The masks are arrays
saved by NumPy, (frames,) and (frames, H, W); values other than 0 are anomalous. Training videos
come as .avi. Extract each to a folder of its name first, for example with
`ffmpeg -i training/videos/01_001.avi -start_number 0 training/frames/01_001/%03d.jpg`.
"""

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from patchcore.data.files import Files
from patchcore.data.images import open_array
from patchcore.data.layout import by_folder, find_root, images_in, no_category
from patchcore.data.marks import marked_values
from patchcore.data.sample import Category, DataConfig, Masks, Sample, Split
from patchcore.data.source import Archive, Source
from patchcore.errors import InputError, counted, printable
from patchcore.settings import setting

LAYOUT = (
    "training/frames/01_001/000.jpg, testing/frames/01_0014/000.jpg, "
    "testing/test_frame_mask/01_0014.npy, testing/test_pixel_mask/01_0014.npy"
)


@dataclass(kw_only=True)
class MSTCConfig(DataConfig):
    """One scene of Mini ShanghaiTech Campus: frames of its videos as images."""

    CATEGORIES: ClassVar = tuple(f"{scene:02}" for scene in range(1, 13))
    SIZE: ClassVar = 256  # as in the paper, for whole frames of 856×480 pixels
    SOURCE: ClassVar = Source(
        page="https://svip-lab.github.io/dataset/campus_dataset.html",
        licence="ask its owners",
        archive=Archive(None, ("training", "testing")),
    )

    root: str = setting("data/mstc", "folder that holds training and testing", effect=False)
    category: Category = setting("01", "scene, 01 to 12")
    every: int = setting(5, "keep every n-th frame of a video", unit="frames", low=1)

    def _read(self, files: Files) -> Split:
        """Return the split: frames of the scene's training videos, and of its test videos.

        A frame is anomalous if its entry in `test_frame_mask` is not 0. Every n-th training frame
        is chosen by its number, so training frames may be missing; test frames may not.

        A warning names a nominal frame of which `test_pixel_mask` marks part.

        Raises:
            InputError: root, scene, or the frames or masks of a video are missing, frames are not
                numbered, or masks have no video, another number of frames, or NaN values.
        """
        root = find_root(self.root, LAYOUT, self.SOURCE.page)
        sides = [_videos(files, root / side / "frames") for side in ("training", "testing")]
        train_videos, test_videos = (
            [v for v in side if _scene(v) == self.category] for side in sides
        )
        if not train_videos or not test_videos:
            there = sorted(set.intersection(*({_scene(video) for video in side} for side in sides)))
            raise no_category(root, self.category, there, LAYOUT)
        for kind in ("test_frame_mask", "test_pixel_mask"):
            _reject_lost_masks(root / "testing" / kind, self.category, test_videos)
        train = [
            Sample(path, 0)
            for video in train_videos
            for offset, path in _numbered(files, video)
            if offset % self.every == 0
        ]
        kept = [_test_samples(files, video)[:: self.every] for video in test_videos]
        _warn_of_marks(zip(test_videos, kept, strict=True), self.every)
        return Split(train, [sample for samples in kept for sample in samples])

    def _inseparable(self, test: Sequence[Sample]) -> list[list[Sample]]:
        """See `DataConfig`: groups are the frames of one video, which share a folder."""
        return by_folder(test)


def _videos(files: Files, folder: Path) -> list[Path]:
    """Folders of frames, one for each video."""
    if not folder.is_dir():
        hint = ""
        if (folder.parent / "videos").is_dir():
            hint = f"; extract {folder.parent / 'videos'} to it, a folder of frames for each video"
        raise InputError(f"{folder}: no such folder; expected {LAYOUT}{hint}")
    videos = files.folders(folder)
    for video in videos:
        if not re.fullmatch(r"\d\d_\d+", video.name):
            raise InputError(f"{video}: not named like a video, such as 01_001; expected {LAYOUT}")
    return videos


def _scene(video: Path) -> str:
    return video.name.partition("_")[0]


def _numbered(files: Files, video: Path) -> list[tuple[int, Path]]:
    """Frames sorted by number, as (number − first number, path)."""
    frames: dict[int, Path] = {}
    for path in images_in(files, video, LAYOUT):
        match = re.search(r"\d+$", path.stem)
        if match is None or int(match[0]) in frames:
            raise InputError(
                f"{path}: the name of a frame should end in a number that no other frame has; "
                "extract the video anew"
            )
        frames[int(match[0])] = path
    return [(number - min(frames), frames[number]) for number in sorted(frames)]


def _test_samples(files: Files, video: Path) -> list[Sample]:
    """Samples of all frames of a test video."""
    frames = _numbered(files, video)
    labels, pixels = (
        open_array(_masks(video, kind), dimensions)
        for kind, dimensions in (("test_frame_mask", 1), ("test_pixel_mask", 3))
    )
    if not len(frames) == frames[-1][0] + 1 == len(labels) == len(pixels):
        raise InputError(
            f"{video}: has {counted(len(frames), 'frame')} up to number {frames[-1][0]}, and there "
            f"are {len(labels)} in test_frame_mask and {len(pixels)} in test_pixel_mask; restore "
            "them"
        )
    truth = _masks(video, "test_pixel_mask")
    found = marked_values(np.asarray(labels), str(_masks(video, "test_frame_mask")))
    return [
        Sample(path, 1, "anomaly", Masks((truth,), frame=i)) if anomalous else Sample(path, 0)
        for (i, path), anomalous in zip(frames, found, strict=True)
    ]


def _warn_of_marks(videos: Iterable[tuple[Path, Sequence[Sample]]], every: int) -> None:
    """Warn of nominal frames with marked pixels; `videos` has a video's folder and kept frames."""
    marked: list[Path] = []
    for video, samples in videos:
        truth = _masks(video, "test_pixel_mask")
        pixels = open_array(truth, 3)
        marked += [
            sample.path
            for i, sample in enumerate(samples)
            if not sample.label and marked_values(pixels[i * every], str(truth)).any()
        ]
    if marked:
        warnings.warn(
            printable(
                f"data: test_pixel_mask marks part of {counted(len(marked), 'frame')} (first "
                f"{marked[0]}) that test_frame_mask calls nominal: all pixels there count as "
                "nominal; correct one of the arrays"
            ),
            stacklevel=4,
        )


def _masks(video: Path, kind: str) -> Path:
    """File of the masks of a test video, of the frames or of their pixels."""
    return video.parents[1] / kind / f"{video.name}.npy"


def _reject_lost_masks(folder: Path, scene: str, videos: Iterable[Path]) -> None:
    lost = {path.stem: path for path in folder.glob(f"{scene}_*.npy")}
    for video in videos:
        lost.pop(video.name, None)
    if lost:
        raise InputError(
            f"{lost[min(lost)]}: this mask has no folder of frames named {min(lost)}; restore the "
            "frames or remove the mask"
        )
