"""Charts of the report as inline SVG: every colour is a CSS variable, so that they follow light, dark and print.

Models differ in colour and in shape, never in colour alone. Numbers without a unit are SVG user units.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from align.compare.wording import MINUS, within

COLOURS = 8
"""Custom properties ``--m0`` to ``--m7`` of the style sheet"""
WIDTH = 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 14, 26, 40
_LINE = 15
"""Height of a line of text"""
_GLYPH = 7.6
"""Width of a letter of a label, about"""


class Point(NamedTuple):
    """A checkpoint in a chart.

    Attributes:
        x: horizontal value.
        x_ends: interval.
        y: vertical value.
        y_ends: interval.
        label: its name and numbers.
    """

    x: float
    x_ends: tuple[float, float]
    y: float
    y_ends: tuple[float, float]
    label: str


class Track(NamedTuple):
    """The checkpoints of one run, the last one its final weights.

    Attributes:
        model: number of the model.
        name: of the model.
        points: in order of training.
    """

    model: int
    name: str
    points: list[Point]


class Panel(NamedTuple):
    """A plot of tracks; a chart's panels share the horizontal axis.

    Attributes:
        title: what the vertical axis measures.
        tracks: of all models.
        baseline: height of the reference line, if there is one.
    """

    title: str
    tracks: list[Track]
    baseline: float | None


def tag(name: str, *children: Any, **attributes: Any) -> Markup:
    """An element; texts and attributes are escaped.

    Args:
        name: of the element.
        children: texts and elements.
        attributes: ``stroke_width`` is stroke-width, ``class_`` is class; None is left out.
    """
    shown = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    written = "".join(
        f' {key}="{escape(f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value)}"'
        for key, value in shown.items()
    )
    return Markup(f"<{name}{written}>{''.join(map(escape, children))}</{name}>")


def marker(model: int, x: float, y: float, *, radius: float = 5) -> Markup:
    """A model's shape, in the colour of the surrounding text."""
    if model % COLOURS == 0:
        return tag("circle", cx=x, cy=y, r=radius * 0.9, class_="dot")
    corners = _SHAPES[model % COLOURS - 1](radius)
    # Centred by height, which a triangle's centroid is not.
    heights = [dy for _, dy in corners]
    y -= (max(heights) + min(heights)) / 2
    path = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return tag("polygon", points=path, class_="dot")


def colour(model: int) -> str:
    """Class of a model's colour; after eight models the shapes repeat with other colours."""
    return f"c{(model + model // COLOURS) % COLOURS}"


def glyph(model: int) -> Markup:
    """A model's shape beside its name in text, for the eye only."""
    return tag("svg", marker(model, 7, 7), viewBox="0 0 14 14", class_=f"glyph {colour(model)}", aria_hidden="true")


def strip(mean: float, ends: Sequence[float]) -> Markup:
    """A share with its interval on a line from 0 to 100%, for the eye only: the numbers stand beside it."""
    low, high = within(ends)
    side = "even" if low <= 0.5 <= high else "more" if mean > 0.5 else "less"
    parts = [
        tag("line", x1=4, x2=124, y1=10, y2=10, class_="track"),
        tag("line", x1=64, x2=64, y1=2, y2=18, class_="half"),
        tag("line", x1=4 + 120 * low, x2=4 + 120 * high, y1=10, y2=10, class_="reach"),
        tag("circle", cx=4 + 120 * mean, cy=10, r=3.2, class_="mean"),
    ]
    return tag("svg", *parts, viewBox="0 0 128 20", class_=f"strip {side}", aria_hidden="true")


def tracks_chart(
    panels: Sequence[Panel], *, ident: str, title: str, description: str, x_label: str, height: int, named: bool = True
) -> Markup:
    """Checkpoints as points with intervals, those of one run joined.

    Args:
        panels: at least one, each with a point.
        ident: begins the ids of its texts.
        title: of the chart.
        description: of its content, for screen readers.
        x_label: of the shared axis.
        height: of a panel's plot.
        named: whether names stand at the runs' ends.
    """
    points = [point for panel in panels for track in panel.tracks for point in track.points]
    x = _Scale.of([0.0, *(end for point in points for end in (point.x, *point.x_ends))], _LEFT, WIDTH - _RIGHT)
    parts, top = [], 0
    for panel in panels:
        heights = [end for track in panel.tracks for point in track.points for end in (point.y, *point.y_ends)]
        heights += [] if panel.baseline is None else [panel.baseline]
        y = _Scale.of(heights, top + _TOP + height, top + _TOP)
        parts += [*_grid(panel.title, x, y), *_lines(panel, x, y)]
        if named:
            parts += _names(panel, x, y)
        top += _TOP + height + (20 if len(panels) > 1 else 0)
    bottom = top - (20 if len(panels) > 1 else 0)
    parts += [
        tag("text", text, x=x(value), y=bottom + 16, text_anchor="middle", class_="tick") for value, text in x.ticks()
    ]
    parts.append(tag("text", x_label, x=(_LEFT + WIDTH - _RIGHT) / 2, y=bottom + 34, text_anchor="middle"))
    return _figure(parts, ident=ident, title=title, description=description, height=bottom + _BOTTOM)


def lengths_chart(lengths: Sequence[tuple[str, Sequence[int]]], *, ident: str, title: str, description: str) -> Markup:
    """Lengths of each model's responses: one row of bars per model on one axis, with the median.

    Args:
        lengths: name and tokens of every response, of each model.
        ident: begins the ids of its texts.
        title: of the chart.
        description: of its content, for screen readers.
    """
    row, room = 52, 30
    longest = max(max(tokens) for _, tokens in lengths)
    x = _Scale.of([0.0, float(longest + 1)], _RIGHT, WIDTH - _RIGHT)
    width = max(1, math.ceil((longest + 1) / 40))
    bottom = row * len(lengths)
    parts = [tag("line", x1=x(v), x2=x(v), y1=16, y2=bottom, class_="grid") for v, _ in x.ticks()]
    for number, (name, tokens) in enumerate(lengths):
        base = row * (number + 1)
        counts = [0] * (longest // width + 1)
        for count in tokens:
            counts[count // width] += 1
        steps = " ".join(
            f"V{base - room * count / max(counts):.1f}H{x((place + 1) * width):.1f}"
            for place, count in enumerate(counts)
        )
        path = f"M{x(0):.1f},{base}{steps}V{base}Z"
        median = sorted(tokens)[len(tokens) // 2]
        middle = x(median + 0.5)
        parts += [
            tag("path", d=path, class_=f"bars {colour(number)}"),
            tag("line", x1=_RIGHT, x2=WIDTH - _RIGHT, y1=base, y2=base, class_="axis"),
            tag("line", x1=middle, x2=middle, y1=base - room - 3, y2=base, class_="median"),
            tag("g", marker(number, _RIGHT + 6, base - room - 9), class_=colour(number)),
            tag("text", _short(name, 30), x=_RIGHT + 17, y=base - room - 5, class_="name"),
            tag("text", f"median {median}", x=WIDTH - _RIGHT, y=base - room - 5, text_anchor="end", class_="tick"),
        ]
    parts += [tag("text", text, x=x(v), y=bottom + 16, text_anchor="middle", class_="tick") for v, text in x.ticks()]
    parts.append(tag("text", "length of a response, tokens", x=WIDTH / 2, y=bottom + 34, text_anchor="middle"))
    return _figure(parts, ident=ident, title=title, description=description, height=bottom + _BOTTOM)


class _Scale:
    """Maps values to the page, with round ticks."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high, start, end

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float) -> "_Scale":
        finite = [value for value in values if math.isfinite(value)]
        low, high = min(finite), max(finite)
        room = 0.06 * (high - low) or max(abs(high), 1.0) * 0.5
        # An axis that begins at nought begins there, not before.
        return cls(low if low == 0 else low - room, high + room, start, end)

    def __call__(self, value: float) -> float:
        value = max(self.low, min(self.high, value))
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        raw = (self.high - self.low) / (4 if abs(self.end - self.start) < 130 else 5)
        power = 10 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.8 * raw)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [(n * step, f"{n * step:.{digits}f}".replace("-", MINUS)) for n in range(first, last + 1)]


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "_Box") -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def _grid(title: str, x: _Scale, y: _Scale) -> Iterator[Markup]:
    for value, text in y.ticks():
        yield tag("line", x1=x.start, x2=x.end, y1=y(value), y2=y(value), class_="grid")
        yield tag("text", text, x=x.start - 9, y=y(value) + 4, text_anchor="end", class_="tick")
    for value, _ in x.ticks():
        yield tag("line", x1=x(value), x2=x(value), y1=y.start, y2=y.start + 4, class_="axis")
    yield tag("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis")
    yield tag("text", title, x=2, y=y.end - 12, class_="name")


def _lines(panel: Panel, x: _Scale, y: _Scale) -> Iterator[Markup]:
    if panel.baseline is not None:
        height = y(panel.baseline)
        yield tag("line", x1=x.start, x2=x.end, y1=height, y2=height, class_="baseline")
    for track in panel.tracks:
        drawn = []
        if len(track.points) > 1:
            path = " ".join(f"{x(point.x):.1f},{y(point.y):.1f}" for point in track.points)
            drawn.append(tag("polyline", points=path, class_="path"))
        drawn += [_point(track, point, x, y) for point in track.points]
        yield tag("g", *drawn, class_=colour(track.model))


def _point(track: Track, point: Point, x: _Scale, y: _Scale) -> Markup:
    final = point is track.points[-1]
    left, right = map(x, point.x_ends)
    low, high = map(y, point.y_ends)
    at, height = x(point.x), y(point.y)
    parts = [tag("title", point.label), tag("line", x1=at, x2=at, y1=low, y2=high, class_="whisker")]
    if right - left > 0.5:
        parts.append(tag("line", x1=left, x2=right, y1=height, y2=height, class_="whisker"))
    parts.append(marker(track.model, at, height, radius=6 if final else 3.5))
    return tag("g", *parts, class_="final" if final else "passing")


def _names(panel: Panel, x: _Scale, y: _Scale) -> Iterator[Markup]:
    """A name at the end of each model's first run, where nothing else stands; what finds no place is in the legend."""
    taken = []
    if panel.baseline is not None:
        taken.append(_Box(x.start, y(panel.baseline) - 1, x.end, y(panel.baseline) + 1))
    for track in panel.tracks:
        for point in track.points:
            at, height, half = x(point.x), y(point.y), 5.0
            taken.append(_Box(at - half, height - half, at + half, height + half))
            if point is track.points[-1]:
                taken.append(_Box(at - 1, y(point.y_ends[1]), at + 1, y(point.y_ends[0])))
                taken.append(_Box(x(point.x_ends[0]), height - 1, x(point.x_ends[1]), height + 1))
    frame = _Box(x.start, y.end - 4, x.end + 10, y.start)
    named = set()
    for track in panel.tracks:
        if track.model in named:
            continue
        named.add(track.model)
        end, text = track.points[-1], _short(track.name, 20)
        for box, left, base in _places(x(end.x), y(end.y), len(text) * _GLYPH):
            inside = box.left >= frame.left and box.right <= frame.right
            inside = inside and box.top >= frame.top and box.bottom <= frame.bottom
            if inside and not any(box.meets(other) for other in taken):
                taken.append(box)
                yield tag("text", text, x=left, y=base, class_=f"name {colour(track.model)}")
                break


def _places(x: float, y: float, width: float) -> Iterator[tuple[_Box, float, float]]:
    """Where a name may stand beside a point, the best first: its box and the start of its line."""
    for dy in (-6, 16, -20, 28):
        for left in (x + 7, x - 7 - width, x - width / 2):
            yield _Box(left, y + dy - _LINE + 4, left + width, y + dy + 3), left, y + dy


def _figure(parts: Sequence[Markup], *, ident: str, title: str, description: str, height: float) -> Markup:
    names = [tag("title", title, id=f"{ident}-title"), tag("desc", description, id=f"{ident}-desc")]
    return tag(
        "svg",
        *names,
        *parts,
        viewBox=f"0 0 {WIDTH} {height:g}",
        class_="chart",
        role="img",
        aria_labelledby=f"{ident}-title {ident}-desc",
    )


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _ring(count: int, turn: float = -90, inner: float | None = None) -> Callable[[float], list[tuple[float, float]]]:
    """Corners of a regular polygon, or of a star with an inner radius, as a function of the radius."""

    def corners(radius: float) -> list[tuple[float, float]]:
        many = count if inner is None else 2 * count
        found = []
        for corner in range(many):
            reach = radius * 1.15 * (inner if inner is not None and corner % 2 else 1)
            angle = math.radians(turn + 360 * corner / many)
            found.append((reach * math.cos(angle), reach * math.sin(angle)))
        return found

    return corners


_SHAPES = (
    _ring(3),
    _ring(4, turn=45),
    _ring(4),
    _ring(3, turn=90),
    _ring(4, inner=0.35),
    _ring(5, inner=0.5),
    _ring(6),
)
"""After the circle: triangle, square, diamond, triangle down, four-pointed and five-pointed star, hexagon"""
