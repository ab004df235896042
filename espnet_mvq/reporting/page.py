"""A report as an HTML page and as markdown."""

import base64
import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple, Union

import jinja2

from espnet_mvq.files.whole_file import write_text

NONE = "–"  # a cell without a value


@dataclass
class Table:
    """A table of text; the first column names the rows."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def has_numbers(self, column: int) -> bool:
        """Whether all cells of a column are numbers, or empty ones."""
        cells = [row[column] for row in self.rows]
        return all(cell[:1] in "+-–0123456789" for cell in cells)


@dataclass
class Curves:
    """A figure with a curve for each arm.

    Attributes:
        title: Title of the figure, with the unit.
        xlabel: Title of the horizontal axis.
        curves: Values by arm, counted from 1; NaN where there is none.
    """

    title: str
    xlabel: str
    curves: Dict[str, List[float]]


@dataclass
class AlignedUtterance:
    """An utterance with the hypotheses of two arms.

    Attributes:
        utt_id: Utterance id.
        title: Comparison of the two arms in words.
        columns: For each word, the reference and (edit, word) of each hypothesis; the
            edits are those of `Utterance`.
    """

    utt_id: str
    title: str
    columns: List[Tuple[str, List[Tuple[str, str]]]]


@dataclass
class Comparison:
    """Aligned utterances of a decoded set.

    Attributes:
        title: The set and the arms.
        names: Names of the lines of an utterance.
        utterances: The utterances.
    """

    title: str
    names: List[str]
    utterances: List[AlignedUtterance]


@dataclass
class Section:
    """A part of a report.

    Attributes:
        title: Heading.
        notes: Paragraphs above the parts.
        parts: Tables, figures, utterances.
    """

    title: str
    notes: List[str] = field(default_factory=list)
    parts: List[Union[Table, Curves, Comparison]] = field(default_factory=list)


@dataclass
class Report:
    """A report.

    Attributes:
        title: Heading of the page.
        date: Date in words.
        arms: Name and folder of each experiment.
        sections: Parts of the report.
    """

    title: str
    date: str
    arms: Dict[str, str]
    sections: List[Section]


def number(value: Optional[float], digits: int) -> str:
    """Format a number; None and NaN have none."""
    if value is None or math.isnan(value):
        return NONE
    return f"{value:,.{digits}f}"


def write_html(report: Report, path: Union[str, Path]) -> None:
    """Write a report as one HTML file that needs no other file.

    Raises:
        OSError: If it cannot be written.
    """
    colors = {name: color_of(number) for number, name in enumerate(report.arms)}

    def draw(curves: Curves) -> str:
        return draw_svg(curves, colors)

    write_text(path, _render("report.html", report, colors=colors, draw=draw))


def markdown(report: Report) -> str:
    """Return the notes and tables of a report as markdown."""
    return _render("report.md", report)


def _render(name: str, report: Report, **values: object) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("espnet_mvq.reporting"),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.tests["table"] = lambda part: isinstance(part, Table)
    environment.tests["curves"] = lambda part: isinstance(part, Curves)
    return environment.get_template(name).render(report=report, **values)


def color_of(number: int) -> str:
    """Return the color of an arm, counted from 0."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return to_hex(colormaps["tab10"](number % 10))


def draw_svg(curves: Curves, colors: Dict[str, str]) -> str:
    """Draw a figure; return it as the URL of an SVG image."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with rc_context({"svg.fonttype": "none", "font.size": 11}):
        figure = Figure(figsize=(4.6, 3.2), layout="constrained")
        axes = figure.subplots()
        for number, (name, values) in enumerate(curves.curves.items()):
            x = range(1, 1 + len(values))
            style = ("-", "--", ":")[number // 10 % 3]
            # A single value is no line.
            marker = "o" if len(values) < 25 else None
            axes.plot(x, values, style, marker=marker, markersize=3, color=colors[name])
        axes.set(title=curves.title, xlabel=curves.xlabel)
        axes.title.set_size(11)
        longest = max(map(len, curves.curves.values()))
        axes.set_xlim(0.5, longest + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        svg = io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.getvalue()).decode()}"
