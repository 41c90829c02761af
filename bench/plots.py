"""Round trips as pictures: distributions in a PNG for people, and in letters for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
import plotext

from bench import paths
from bench.stats import percentile

mpl.use("Agg")
from matplotlib import pyplot as plt

# Okabe and Ito's colours, which colour-blind people can tell apart; markers for the terminal.
_STYLES: Final[Mapping[str, tuple[str, str]]] = {
    paths.VETH: ("#666666", "."),
    paths.ACCEL: ("#0072B2", "#"),
    paths.NO_ACCEL: ("#D55E00", "o"),
    paths.BRIDGE: ("#009E73", "+"),
}
_SHOWN_PERCENT: Final = 99.0
_CURVE_POINTS: Final = 400

Panels = Mapping[str, Mapping[str, Sequence[float]]]
"""Round trips in microseconds, ascending, by path; for each panel's title."""


def _curve(ordered: Sequence[float], points: int) -> tuple[list[float], list[float]]:
    """(microseconds, percent of round trips that took no longer), from the fastest to the 99th percentile."""
    percents = [_SHOWN_PERCENT * number / (points - 1) for number in range(points)]
    return [percentile(ordered, percent) for percent in percents], percents


def _limits(panels: Panels) -> tuple[float, float]:
    series = [ordered for panel in panels.values() for ordered in panel.values()]
    return min(percentile(one, 0.1) for one in series) - 1, max(percentile(one, 97) for one in series) + 1


def save(panels: Panels, path: Path, caption: str) -> None:
    """Writes the distributions as a PNG, one panel beside the other on the same scales."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 6), sharex=True, sharey=True, layout="constrained")
    for axis, (title, panel) in zip(axes, panels.items(), strict=True):
        medians = []
        for name, ordered in panel.items():
            colour = _STYLES[name][0]
            p50 = percentile(ordered, 50)
            label = f"{name}: p50 {p50:.1f}, p99 {percentile(ordered, 99):.1f} us"
            axis.plot(*_curve(ordered, _CURVE_POINTS), color=colour, linewidth=2, label=label)
            medians.append((p50, colour))
        for p50, colour in medians:
            axis.plot([p50, p50], [0, 50], color=colour, linewidth=1, linestyle=":")
            axis.plot([p50], [50], color=colour, marker="o", markersize=6)
        axis.set_title(title, loc="left", fontweight="bold")
        axis.set_xlabel("round trip (microseconds)")
        axis.set_yticks([0, 25, 50, 75, 90, 99], ["0 %", "25 %", "median", "75 %", "90 %", "99 %"])
        axis.grid(color="#dddddd", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), frameon=False, fontsize=10)
    axes[0].set_ylabel("round trips that took no longer")
    axes[0].set_xlim(*_limits(panels))
    axes[0].set_ylim(0, 100)
    figure.suptitle(caption, fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def show(title: str, panel: Mapping[str, Sequence[float]], *, width: int, colours: bool) -> None:
    """Prints one panel's distributions in letters."""
    figure = plotext.figure
    figure.clear()
    figure.theme("simple" if colours else "colorless")
    figure.plot_size(width, 18)
    low, high = _limits({title: panel})
    for name, ordered in panel.items():
        xs, ys = _curve(ordered, _CURVE_POINTS)
        shown = [(x, y) for x, y in zip(xs, ys, strict=True) if low <= x <= high]
        signal = figure.signal([x for x, _ in shown], [y for _, y in shown], marker=_STYLES[name][1])
        signal.lines(True)
        figure.draw(signal)
    figure.title(title)
    figure.label("round trip, microseconds", "x")
    figure.ruler("x").lim(low, high)
    figure.ruler("y").lim(0, 100)
    figure.ruler("y").ticks([0, 25, 50, 75, 100], ["0 %", "25 %", "median", "75 %", "100 %"])
    figure.show(colorless=not colours, flush=True)
    print("   ".join(f"{_STYLES[name][1] * 3} {name}" for name in panel).center(width).rstrip(), flush=True)
