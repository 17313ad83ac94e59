"""What the figures of the guide share: size, type, colours, and a way to save."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#d55e00", "#009e73", "#cc3311", "#777777"
"""Colours that stay distinct without red-green vision (Okabe and Ito)"""

plt.rcParams.update(
    {
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.constrained_layout.use": True,
        "font.size": 10,
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "svg.hashsalt": "align",
    }
)


def axes(count: int = 1, *, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels side by side, ``height`` inches high."""
    figure, panels = plt.subplots(1, count, figsize=(7.5, height), squeeze=False)
    return figure, list(panels[0])


def save(figure: Figure, script: str) -> None:
    """Write the figure as SVG beside the script that draws it, or into the folder that the command line names."""
    path = Path(script).with_suffix(".svg")
    path = Path(sys.argv[1]) / path.name if len(sys.argv) > 1 else path
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
