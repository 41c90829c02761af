"""`python -m bench.panels [FOLDER]`: draws the shipped dashboards, from a Prometheus that scrapes nodes with traffic.

Needs root. What Grafana would draw is drawn here with matplotlib, one PNG for each dashboard, into docs/img by default.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from PIL import Image

from tests.prometheus.panels import documents, filled
from tests.prometheus.scene import scene
from tests.prometheus.server import Prometheus

mpl.use("Agg")
from matplotlib import pyplot as plt

SECONDS: Final = 60
_STEP_S: Final = 2
_RATE_INTERVAL: Final = "10s"
_DPI: Final = 70
_INCHES: Final = (18 / 24, 0.42)
"""Width and height of a cell of Grafana's grid."""
_SHOWN_LINES: Final = 8
"""Of a panel with more, those with the highest values."""
_PALETTE: Final = 64
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666", "#000000")
_PREFIXES: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))
_SYMBOLS: Final = {"s": "s", "bps": "b/s", "pps": "p/s", "ops": "ops/s", "reqps": "req/s", "bytes": "B"}
_RATES: Final = ("bps", "pps", "ops", "reqps")


def shown(value: float, unit: str) -> str:
    """A number as Grafana shows it in one of its units."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit not in _SYMBOLS or value == 0:
        return f"{value:.3g}"
    if unit in _RATES and abs(value) < 1:
        return f"{value:.2g} {_SYMBOLS[unit]}"
    factor, prefix = next((pair for pair in _PREFIXES if abs(value) >= pair[0]), _PREFIXES[-1])
    return f"{value / factor:.3g} {prefix}{_SYMBOLS[unit]}"


def label(legend: str, metric: Mapping[str, str]) -> str:
    """A legend with the labels of a series put in, and nothing for those that it has not."""
    if legend == "__auto":
        return ", ".join(value for name, value in sorted(metric.items()) if name != "__name__")
    return re.sub(r"{{(\w+)}}", lambda found: metric.get(found[1], ""), legend).strip()


def draw(document: Mapping[str, Any], server: Prometheus, end: float, path: Path) -> None:
    """Puts every panel where its dashboard has it."""
    places = [panel["gridPos"] for panel in document["panels"]]
    columns, rows = 24, max(place["y"] + place["h"] for place in places)
    figure = plt.figure(figsize=(columns * _INCHES[0], rows * _INCHES[1]), dpi=_DPI)
    for panel, place in zip(document["panels"], places, strict=True):
        box = (
            (place["x"] + 1.1) / columns,
            1 - (place["y"] + place["h"] - 1.0) / rows,
            (place["w"] - 1.5) / columns,
            (place["h"] - 2.0) / rows,
        )
        axes = figure.add_axes(box)
        axes.set_title(panel["title"], loc="left", fontsize=10, fontweight="bold")
        if panel["type"] == "timeseries":
            _lines(axes, panel, server, end)
        else:
            _words(axes, panel, server)
    drawn = BytesIO()
    figure.savefig(drawn)
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(_PALETTE).save(path, optimize=True)


def _lines(axes: Axes, panel: Mapping[str, Any], server: Prometheus, end: float) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    axes.set_prop_cycle(color=_COLOURS)
    lines = [
        (
            [at - end for at, _ in series["values"]],
            [float(value) for _, value in series["values"]],
            label(target["legendFormat"], series["metric"]),
        )
        for target in panel["targets"]
        for series in server.query_range(filled(target["expr"], _RATE_INTERVAL), end - SECONDS, end, _STEP_S)
    ]
    lines.sort(key=lambda line: -max(line[1]))
    for times, values, name in lines[:_SHOWN_LINES]:
        axes.plot(times, values, linewidth=1.5, label=name)
    axes.set_xlim(-SECONDS, 0)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, unit)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} s"))
    axes.tick_params(labelsize=7)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=7, loc="lower left", framealpha=0.7)


def _words(axes: Axes, panel: Mapping[str, Any], server: Prometheus) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    rows = [
        f"{label(target['legendFormat'], series['metric'])[:100]}: {shown(float(series['value'][1]), unit)}"
        for target in panel["targets"]
        for series in server.query(filled(target["expr"], _RATE_INTERVAL))
    ]
    axes.set_axis_off()
    axes.text(0, 0.95, "\n".join(rows[:10]), va="top", fontsize=8, family="monospace", transform=axes.transAxes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws all dashboards into the folder."""
    arguments = sys.argv[1:] if arguments is None else arguments
    folder = Path(arguments[0] if arguments else "docs/img")
    folder.mkdir(parents=True, exist_ok=True)
    with scene() as seen:
        time.sleep(SECONDS)
        end = time.time()
        for name, document in documents().items():
            draw(document, seen.server, end, folder / f"{name}.png")
            print(folder / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
