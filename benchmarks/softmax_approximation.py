"""Attention by what it keeps for backward: bytes, peak, time and gradient error, side by side.

`python -m benchmarks.softmax_approximation [--quick] [--json FILE] [--plots FOLDER]`

(a) For lengths T, with dropout 0.1: bytes that autograd keeps beyond inputs and output, peak memory of four layers in a
fresh process each, the time of a step (forward and backward) over eager's, and the relative error of all gradients.
(b) The step's time without dropout. (c) The longest T whose kept bytes fit a budget, from the bytes at two lengths.
The headlines are of T = 256: bytes with dropout, and the larger of the two times.

CPUs run one thread unless OMP_NUM_THREADS is set: on a busy machine threads wait for each other at every pass, and the
times say more about the neighbours than about the sides.
"""

from __future__ import annotations

import ctypes
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks._harness import arguments, finish, machine, medians, table
from lit_methods.softmax_approximation import CODECS, softmax_attention
from lit_methods.softmax_approximation.functional import relative_error
from lit_methods.softmax_approximation.meters import SavedBytes

WEIGHTS, HEAD_SIZE, DROPOUT, LAYERS, BUDGET_MIB = 2**21, 64, 0.1, 4, 1024
HEADLINE_LENGTH = 256
MMAP_THRESHOLD = -3  # of mallopt: what is freed goes back at once, and the peak is what is alive
Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def eager(query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> Tensor:
    weights = torch.softmax(query @ key.mT * query.shape[-1] ** -0.5, -1)
    return (F.dropout(weights, dropout_p) @ value).transpose(1, 2).contiguous().transpose(1, 2)


def fused(query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p)


def checkpointed(query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> Tensor:
    output: Tensor = checkpoint(eager, query, key, value, dropout_p, use_reentrant=False)
    return output


def with_codec(name: str) -> Attend:
    return lambda query, key, value, dropout_p: softmax_attention(query, key, value, codec=name, dropout_p=dropout_p)[0]


SIDES: dict[str, Attend] = {"eager": eager, "SDPA": fused, "checkpoint": checkpointed} | {
    name: with_codec(name) for name in CODECS
}


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def heads(length: int, weights: int = WEIGHTS) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value with so many weights in all, laid out as models lay them out."""
    together = max(1, weights // length**2)
    per_batch = min(8, together)
    size = (together // per_batch, length, per_batch, HEAD_SIZE)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(size, generator=generator).to(device()).transpose(1, 2).requires_grad_() for _ in range(3)
    )
    return query, key, value


def step(side: str, inputs: tuple[Tensor, Tensor, Tensor], dropout_p: float) -> tuple[Tensor, ...]:
    """Gradients of one forward and backward pass."""
    output = SIDES[side](*inputs, dropout_p)
    return torch.autograd.grad(output, inputs, inputs[0].detach())


def kept_bytes(side: str, inputs: tuple[Tensor, Tensor, Tensor], dropout_p: float) -> int:
    """Bytes of the storages that autograd keeps, without inputs and output."""
    with SavedBytes() as meter:
        output = SIDES[side](*inputs, dropout_p)
    return meter.nbytes((*inputs, output))


def gradient_error(side: str, inputs: tuple[Tensor, Tensor, Tensor], dropout_p: float) -> float:
    gradients = []
    for name in (side, "eager"):
        torch.manual_seed(0)
        gradients.append(torch.cat([grad.flatten() for grad in step(name, inputs, dropout_p)]))
    return relative_error(*gradients).item()


def process_mib(field: str) -> float:
    """A field of this process's memory accounts, in MiB: ``VmRSS`` now, ``VmHWM`` its peak (since it was reset)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(field))) / 2**10


def peak_here(side: str, length: int) -> float:
    """Peak memory in MiB that a stack of layers adds to this process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 2**16)
    inputs = heads(length)
    step(side, heads(16), DROPOUT)

    def stack() -> None:
        query, key, value = inputs
        for _ in range(LAYERS):
            query = SIDES[side](query, key, value, DROPOUT)
        torch.autograd.grad(query, inputs, inputs[0].detach())

    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        stack()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    resets = Path("/proc/self/clear_refs")
    if not resets.exists():
        return math.nan
    resets.write_text("5")
    before = process_mib("VmRSS")
    stack()
    return process_mib("VmHWM") - before


def peak_mib(side: str, length: int) -> float:
    """The same in a process of its own, forked from one that has only imported torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "lit_methods.softmax_approximation.meters"])
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        return pool.submit(peak_here, side, length).result()


def runs(inputs: tuple[Tensor, Tensor, Tensor], dropout_p: float) -> dict[str, Callable[[], Any]]:
    return {side: lambda side=side: step(side, inputs, dropout_p) for side in SIDES}


def measure(length: int, quick: bool) -> list[dict[str, Any]]:
    inputs = heads(length, WEIGHTS // 4 if quick else WEIGHTS)
    repeats = 5
    seconds = {dropout_p: medians(runs(inputs, dropout_p), repeats) for dropout_p in (DROPOUT, 0.0)}
    return [
        {
            "side": side,
            "length": length,
            "kept_mib": kept_bytes(side, inputs, DROPOUT) / 2**20,
            "kept_mib_no_dropout": kept_bytes(side, inputs, 0.0) / 2**20,
            "peak_mib": peak_mib(side, length) if not quick or side in ("eager", "log4") else math.nan,
            "time": seconds[DROPOUT][side] / seconds[DROPOUT]["eager"],
            "time_no_dropout": seconds[0.0][side] / seconds[0.0]["eager"],
            "error": gradient_error(side, inputs, 0.0),
        }
        for side in SIDES
    ]


def longest(side: str, dropout_p: float, lengths: tuple[int, int]) -> int:
    """Longest T of one head of ``LAYERS`` layers within the budget, from ``a T^2 + b T`` through two lengths."""
    kept = []
    for length in lengths:
        generator = torch.Generator().manual_seed(0)
        inputs = [torch.randn(1, 1, length, HEAD_SIZE, generator=generator).to(device()) for _ in range(3)]
        tensors = tuple(tensor.requires_grad_() for tensor in inputs)
        of_inputs = 4 * 4 * length * HEAD_SIZE
        kept.append(LAYERS * (kept_bytes(side, tensors, dropout_p) + of_inputs))  # type: ignore[arg-type]  # a tuple of three
    short, long = lengths
    a = (kept[1] / long - kept[0] / short) / (long - short)
    b = kept[0] / short - a * short
    budget = BUDGET_MIB * 2**20
    return int(budget / b if a < 1e-9 else (-b + math.sqrt(b * b + 4 * a * budget)) / (2 * a))


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Kept memory against gradient error, one point a side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    length = max(row["length"] for row in rows)
    eager_mib = next(row["kept_mib"] for row in rows if row["side"] == "eager" and row["length"] == length)
    below = {"eager", "checkpoint", "topk"}
    for row in rows:
        if row["length"] == length:
            point = 100 * row["kept_mib"] / eager_mib, max(row["error"], 1e-7)
            axes.scatter(*point)
            axes.annotate(
                row["side"], point, textcoords="offset points", xytext=(5, -11 if row["side"] in below else 4)
            )
    axes.margins(x=0.15, y=0.1)
    axes.set(
        xlabel=f"kept for backward, % of eager (dropout {DROPOUT})",
        ylabel="relative gradient error (exact below 1e-6)",
        yscale="log",
        title=f"T = {length}",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs all lengths, or the headline's alone."""
    options = arguments(__doc__ or "")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    print(f"{machine()}; seed {options.seed}")
    rows: list[dict[str, Any]] = []
    for length in (HEADLINE_LENGTH,) if options.quick else (128, 256, 512, 1024):
        found = measure(length, options.quick)
        rows += found
        table(
            f"T = {length}, head size {HEAD_SIZE}, dropout {DROPOUT}",
            ["side", "kept MiB", "without dropout", f"peak MiB, {LAYERS} layers", "step", "without dropout", "error"],
            [[row[key] for key in row if key != "length"] for row in found],
        )
    lengths = (128, 256) if options.quick else (512, 1024)
    limits = {side: [longest(side, dropout_p, lengths) for dropout_p in (DROPOUT, 0.0)] for side in SIDES}
    table(
        f"longest T of one head, {LAYERS} layers, whose kept bytes fit {BUDGET_MIB} MiB",
        ["side", f"dropout {DROPOUT}", "without dropout"],
        [[side, *found] for side, found in limits.items()],
    )
    by_side = {row["side"]: row for row in rows if row["length"] == HEADLINE_LENGTH}
    headlines = {
        "bytes_eager_vs_log4": by_side["eager"]["kept_mib"] / by_side["log4"]["kept_mib"],
        "step_log4_vs_eager": max(by_side["log4"]["time"], by_side["log4"]["time_no_dropout"]),
        "step_recompute_vs_eager": max(by_side["recompute"]["time"], by_side["recompute"]["time_no_dropout"]),
    }
    if options.plots is not None:
        plot(rows, options.plots / "softmax_approximation.png")
    finish(headlines, {"rows": json.loads(json.dumps(rows)), "longest": limits}, options.json)


if __name__ == "__main__":
    main()
