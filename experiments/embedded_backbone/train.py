"""Distil a pretrained network's layer2 and layer3 into small trunks, from images made on the fly.

    python -m experiments.embedded_backbone.train --designs NAME --out FOLDER

All designs named are trained at once on the same images and the same teacher's maps. README.md
beside this file holds the command behind the shipped weights and the table of what was tried.
"""

import argparse
import hashlib
import json
import math
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from experiments.embedded_backbone.designs import DESIGNS, Student, as_shipped
from experiments.embedded_backbone.evaluate import load_teacher, measure, options
from experiments.embedded_backbone.images import (
    TRAIN_PHOTOS,
    Draw,
    normalise,
    photographs,
    scenes,
    training_batch,
)

WARM_UP = 300  # steps
SHIPPED = "rep-32-96"  # the design that `patchcore.backbones` runs


def statistics(maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every channel over a list of (B, C, h, w) maps."""
    values = torch.cat([m.float().transpose(0, 1).flatten(1) for m in maps], 1)  # (C, B·h·w)
    return values.mean(1), values.std(1).clamp(min=1e-4)


class Run:
    """A student with its optimiser and schedule; on a GPU the whole update is one CUDA graph."""

    def __init__(
        self, student: Student, moments: list[tuple[Tensor, Tensor]], lr: float, steps: int
    ) -> None:
        (mean2, std2), (mean3, std3) = moments
        device = mean2.device
        self.student = student.to(device, memory_format=torch.channels_last).train()
        self.student.start_at([mean2, mean3], [std2, std3])
        self.scales = [1 / std.view(1, -1, 1, 1) for std in (std2, std3)]
        on_gpu = device.type == "cuda"
        self.peak, self.steps, self.done = lr, steps, 0
        self.lr = torch.tensor(lr, device=device)
        self.optimiser = torch.optim.AdamW(
            self.student.parameters(), self.lr, weight_decay=0.02, fused=on_gpu, capturable=on_gpu
        )
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.loss = torch.zeros((), device=device)

    def step(self, x: Tensor, targets: list[Tensor]) -> Tensor:
        """One update on the squared error of maps standardised per channel; returns the error."""
        warm_up = min(1.0, (self.done + 1) / WARM_UP)
        cosine = 0.5 * (1 + math.cos(math.pi * self.done / self.steps))
        self.lr.fill_(self.peak * warm_up * cosine)
        self.done += 1
        if x.device.type == "cpu":
            return self._update(x, targets)
        if self.graph is None and self.done <= 5:  # let the libraries choose their kernels first
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                loss = self._update(x, targets)
            torch.cuda.current_stream().wait_stream(side)
            return loss
        if self.graph is None:
            self.inputs = [t.clone() for t in (x, *targets)]
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.loss = self._update(self.inputs[0], self.inputs[1:])
        for kept, new in zip(self.inputs, (x, *targets), strict=True):
            kept.copy_(new)
        self.graph.replay()
        return self.loss

    def _update(self, x: Tensor, targets: list[Tensor]) -> Tensor:
        self.optimiser.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=x.device)
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
            maps = self.student(x)
        for ours, theirs, scale in zip(maps, targets, self.scales, strict=True):
            loss = loss + ((ours - theirs).float() * scale).square().mean() / 2
        loss.backward()
        self.optimiser.step()
        return loss.detach()


def train(args: argparse.Namespace, device: torch.device) -> dict[str, Student]:
    """All designs at once, on the same batches; returns the students by name, in eval mode."""
    generator = torch.Generator(device).manual_seed(args.seed)
    torch.manual_seed(args.seed)
    taken = photographs(TRAIN_PHOTOS, device)
    drawn = scenes(args.scenes, args.size * 6 // 5, generator)
    draw = Draw(args.batch, args.batch, args.size, generator)
    teacher = load_teacher(args.teacher).to(device, memory_format=torch.channels_last)
    forward = torch.compile(teacher, dynamic=False) if device.type == "cuda" else teacher

    @torch.no_grad()
    def batch() -> tuple[Tensor, list[Tensor]]:
        x = normalise(training_batch(drawn, taken, draw))
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            return x, forward(x)

    first = [batch()[1] for _ in range(8)]
    moments = [statistics(list(maps)) for maps in zip(*first, strict=True)]
    runs = {d: Run(DESIGNS[d](), moments, args.lr, args.steps) for d in args.designs}
    progress, began = tqdm(range(args.steps), mininterval=10), time.perf_counter()
    for step in progress:
        x, targets = batch()
        losses = {design: run.step(x, targets) for design, run in runs.items()}
        if step % 500 == 0 or step == args.steps - 1:
            shown = ", ".join(f"{d} {float(loss):.4f}" for d, loss in losses.items())
            progress.write(f"step {step}, {time.perf_counter() - began:.0f} s: {shown}")
    return {design: run.student.eval() for design, run in runs.items()}


def export(student: Student, path: Path) -> str:
    """Write what the package ships: plain convolutions in float16; returns the SHA-256."""
    weights = as_shipped(student.cpu()).state_dict()
    save_file({name: tensor.half() for name, tensor in weights.items()}, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Train, measure, write the students and results.json."""
    parser = options((__doc__ or "").splitlines()[0])
    parser.add_argument("--designs", nargs="+", default=list(DESIGNS), choices=list(DESIGNS))
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=256, help="images a step")
    parser.add_argument("--size", type=int, default=128, help="training image side, px")
    parser.add_argument("--scenes", type=int, default=40_000, help="procedural images in the pool")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device)
    torch.backends.cudnn.benchmark = True

    began = time.perf_counter()
    students = train(args, device)
    seconds = time.perf_counter() - began
    for name, student in students.items():
        tensors = {k: v.contiguous() for k, v in student.state_dict().items()}
        save_file(tensors, args.out / f"{name}.safetensors")
    teacher = load_teacher(args.teacher).to(device)
    networks = {"teacher": teacher, **students}
    results = measure(networks, teacher, device, args.held_out, args.categories)
    (args.out / "results.json").write_text(json.dumps(results, indent=1))
    if SHIPPED in students:
        print("SHA-256", export(students[SHIPPED], args.out / "embedded.safetensors"))
    print(f"{seconds:.0f} s of training")


if __name__ == "__main__":
    main()
