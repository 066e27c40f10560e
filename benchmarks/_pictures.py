"""One picture a method for the README's first screen, drawn from the committed results, legible at 400 pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks._results import Measured, Selector, measured, rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY, GREEN, RED = "#1f6fb2", "#e07b00", "#8a8a8a", "#2f9e5b", "#b8323a"
STYLE = {"font.size": 9.0, "axes.titlesize": 9.5, "axes.spines.top": False, "axes.spines.right": False}
SIZE, DPI, COLORS = (4.0, 2.9), 160, 128


def dots(axes: Axes, names: Sequence[str], series: Mapping[str, Sequence[Measured | None]], **colors: str) -> None:
    """A row for each name, from the top down; in it a dot with its standard deviation for each series."""
    places = range(len(names))[::-1]
    for number, (label, values) in enumerate(series.items()):
        shift = 0.18 * ((len(series) - 1) / 2 - number)
        known = [(place + shift, value) for place, value in zip(places, values, strict=True) if value is not None]
        axes.errorbar(
            [value.mean for _, value in known],
            [place for place, _ in known],
            xerr=[value.spread or 0.0 for _, value in known],
            fmt="os^D"[number],
            markersize=4.5,
            capsize=2.5,
            linewidth=1.2,
            color=colors.get(label),
            label=label,
        )
    axes.set_yticks(places, names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(axis="x", alpha=0.3)


def federated(figure: Figure) -> None:
    """Personal accuracies on both data sets."""
    names = {
        "local only": "local only",
        "FedAvg, fine-tuned": "FedAvg, fine-tuned",
        "FedRep": "FedRep",
        "FedRoD": "FedRoD",
        "Ditto 0.03": "Ditto",
        "spectral, both 0": "spectral, weights 0",
        "spectral 0.3 / 0.4": "spectral (paper)",
        "spectral 0.3 / 0.4, teacher's norm": "spectral, scaled",
    }

    def accuracy(data: str, method: str) -> Measured:
        where = {"data": data, "p": 0.5, "method": method}
        return measured({"file": "federated_real.jsonl", "where": where, "value": "val/personal_acc", "scale": 100.0})

    axes = figure.subplots()
    sets = {"CIFAR-10": "cifar10", "Fashion-MNIST": "fashion_mnist"}
    series = {label: [accuracy(data, method) for method in names] for label, data in sets.items()}
    dots(axes, list(names.values()), series, **{"CIFAR-10": ORANGE, "Fashion-MNIST": BLUE})
    axes.set(xlabel="personal accuracy, %")
    figure.suptitle("20 clients, each with about half of the classes", fontsize=9.5)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)


def semi_supervised(figure: Figure) -> None:
    """The seven arms on six animals."""
    names = {
        "supervised": "labels alone",
        "FixMatch": "FixMatch, raw pool",
        "filter + FixMatch": "FixMatch, filtered pool",
        "DWD-UT + FixMatch": "FixMatch, DWD-UT",
        "unweighted UT + FixMatch": "the same, unweighted",
        "DWD-SL": "DWD-SL",
        "unweighted SL": "the same, unweighted",
    }
    values = [measured({"file": "six_animal.jsonl", "where": {"arm": arm}, "value": "accuracy"}) for arm in names]
    axes = figure.subplots()
    dots(axes, list(names.values()), {"": values}, **{"": BLUE})
    axes.set(xlabel="test accuracy, %")
    figure.suptitle("six animals, three quarters of the pool irrelevant", fontsize=9.5)


def data_manipulation(figure: Figure) -> None:
    """Accuracy by the number of examples of the rare class."""
    styles = {
        "plain": ("plain", GREY, "o"),
        "inverse frequency": ("inverse frequency", GREEN, "v"),
        "Ren et al.": ("Ren et al.", ORANGE, "s"),
        "learned (default)": ("learned (default)", BLUE, "^"),
        "learned, `NormalizedStep`": ("learned, NormalizedStep", RED, "D"),
    }
    rare = (20, 50, 100)
    panels = figure.subplots(1, 2)
    for axes, (title, prefix) in zip(panels, {"SST-2": "sst2", "CIFAR-10": "cifar10"}.items(), strict=True):
        for number, (method, (label, color, marker)) in enumerate(styles.items()):
            found = [_weighting(f"{prefix}_{count}", method) for count in rare]
            places = [position + 0.08 * (number - 2) for position in range(len(rare))]
            spreads = [value.spread or 0.0 for value in found]
            means = [value.mean for value in found]
            axes.errorbar(
                places, means, yerr=spreads, label=label, color=color, marker=marker, markersize=3.5, capsize=1.5, lw=1
            )
        axes.set_xticks(range(len(rare)), [str(count) for count in rare])
        axes.set(title=title, xlabel="examples, rare class")
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("test accuracy, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False, labelspacing=0.3)


def _weighting(task: str, method: str) -> Measured:
    return measured({"file": "real_weighting.jsonl", "where": {"task": task, "method": method}, "value": "test"})


def softmax_approximation(figure: Figure) -> None:
    """Gradient error by kept memory; exact ones on a line of their own."""
    selector: Selector = {
        "file": "softmax_approximation.codecs.json",
        "path": ["figures", "rows"],
        "where": {"length": 512},
    }
    floor = 2e-4
    beside = {
        "SDPA": (5, -10),
        "merged": (0, 6),
        "eager": (-2, 6),
        "recompute": (5, 2),
        "topk": (-6, -11),
        "paper": (-14, 7),
    }
    axes = figure.subplots()
    for row in rows(selector):
        if row["side"] == "checkpoint":  # keeps nothing, which a logarithmic axis does not show
            continue
        error, name = max(row["error"], floor), row["side"]
        exact = row["error"] < 1e-6
        color = GREY if name in ("eager", "SDPA") else RED if name == "paper" else BLUE
        axes.plot(row["kept_mib"], error, "s" if exact else "o", color=color, markersize=5)
        place = (row["kept_mib"], error)
        label = "paper's codec" if name == "paper" else name
        axes.annotate(label, place, xytext=beside.get(name, (5, 2)), textcoords="offset points", fontsize=8.5)
    axes.set(xscale="log", yscale="log", xlabel="kept for the backward pass, MiB", ylabel="error of the gradients")
    axes.set_xlim(0.18, 60)
    axes.set_ylim(1e-4, 1.2)
    axes.set_yticks([floor, 1e-3, 1e-2, 1e-1, 1], ["exact", "0.1 %", "1 %", "10 %", "100 %"])
    axes.set_xticks([0.3, 1, 3, 10, 30], ["0.3", "1", "3", "10", "30"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.suptitle("attention of 8 heads, T = 512, dropout 0.1", fontsize=9.5)


def differential_privacy(figure: Figure) -> None:
    """Accuracies at equal budget."""
    names = {
        "identity, fixed order": "independent noise",
        "Opacus DP-SGD, Poisson": "Opacus DP-SGD",
        "BISR p = 4, fixed order": "BISR, p = 4",
        "BSR, fixed order": "BSR",
        "BSR, cyclic Poisson": "BSR, cyclic Poisson",
    }
    found = rows({"file": "differential_privacy.utility.json", "path": ["figures", "utility"]})
    panels = figure.subplots(1, 2, sharey=True)
    for axes, data in zip(panels, ("digits", "Fashion-MNIST"), strict=True):
        own = {(row["epsilon"], row["mechanism"].split(" g =")[0]): row for row in found if row["data"] == data}
        axes.axvline(100 * own[None, "no privacy"]["mean"], color=GREY, linestyle=":", label="no privacy")
        series = {
            f"ε = {epsilon:g}": [
                Measured(100 * row["mean"], 100 * row["spread"], row["seeds"])
                for name in names
                for row in [own[epsilon, name]]
            ]
            for epsilon in (2.0, 8.0)
        }
        dots(axes, list(names.values()), series, **{"ε = 2": ORANGE, "ε = 8": BLUE})
        axes.set(title=data, xlabel="test accuracy, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)


def image_text(figure: Figure) -> None:
    """The sum of recalls of every map on three sets."""
    maps = {
        "none": "knowledge alone",
        "Centring": "Centring (closed form)",
        "Whitening": "Whitening (closed form)",
        "SharedLinear": "cycle-trained",
    }
    sets: dict[str, tuple[str, list[str]]] = {
        "clear scenes": ("image_text_scenes.json", ["scenes", "clear"]),
        "hazy scenes": ("image_text_scenes.json", ["scenes", "hazy"]),
        "emoji": ("image_text_emoji.json", ["emoji", "maps"]),
    }
    series: dict[str, list[Measured]] = {
        label: [measured({"file": file, "path": [*path, name, "test"], "value": "rsum"}) for name in maps]
        for label, (file, path) in sets.items()
    }
    axes = figure.subplots()
    dots(axes, list(maps.values()), series, **{"clear scenes": BLUE, "hazy scenes": ORANGE, "emoji": GREEN})
    axes.set(xlabel="rSum, % (six recalls, at most 600)", xlim=(0, 470))
    figure.suptitle("retrieval without paired data", fontsize=9.5)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)


PICTURES: dict[str, Any] = {
    draw.__name__: draw
    for draw in (federated, semi_supervised, data_manipulation, softmax_approximation, differential_privacy, image_text)
}


def draw_all(folder: Path) -> None:
    """Draws `<room>.png` for each room into a folder."""
    import matplotlib
    from matplotlib.figure import Figure
    from PIL import Image

    for room, draw in PICTURES.items():
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=SIZE, layout="constrained")
            draw(figure)
            path = folder / f"{room}.png"
            figure.savefig(path, dpi=DPI)
        with Image.open(path) as picture:  # a third of the bytes
            picture.convert("RGB").quantize(COLORS).save(path, optimize=True)
