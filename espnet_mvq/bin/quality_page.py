"""The page of a quantizer's report: one HTML file with all its figures inside."""

import html
import io
import itertools
import math
from typing import Any, Callable, Dict, Iterable, List, Tuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from espnet_mvq.bin.quality_text import (
    findings,
    percent,
    table_of_codebooks,
    worst_channels,
)

_BLUE, _ORANGE, _GREY, _GREEN = "#2f6690", "#e07a1f", "#7d7d7d", "#4b9b6e"

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .7rem; border-bottom: 1px solid #ddd; }
td { text-align: right; } th { text-align: left; font-weight: 600; }
table.facts td { text-align: left; overflow-wrap: anywhere; }
ul { list-style: none; padding: 0; }
li { margin: .4rem 0; padding-left: 4.2rem; position: relative; }
li b { position: absolute; left: 0; width: 3.4rem; border-radius: .2rem; color: #fff;
       font-size: .8rem; line-height: 1.6; text-align: center; }
.good { background: #3c7d57; } .note { background: #6b6b6b; }
.bad { background: #b3382c; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; }
figcaption { color: #444; font-size: .95rem; }
"""


def make_page(content: Dict[str, Any]) -> str:
    """Write the report as a page that needs nothing from elsewhere.

    Args:
        content: The report, as written to JSON.

    Returns:
        HTML.
    """
    quantizer, quality = content["quantizer"], content["quality"]
    title = f"Quantizer {quantizer['id']}"
    sentences = "".join(
        f'<li><b class="{verdict}">{verdict}</b>{html.escape(sentence)}</li>'
        for verdict, sentence in findings(content)
    )
    sections = "".join(
        f"<h2>{html.escape(heading)}</h2><figure>{_svg(draw, quality)}"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for heading, caption, draw in _FIGURES
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{html.escape(title)}</h1>{_facts(content)}"
        f"<h2>Summary</h2><ul>{sentences}</ul>"
        f"<h2>Codebooks</h2>{_table(*table_of_codebooks(quality))}"
        f"{sections}"
        f"<h2>Worst channels</h2>{_table(*_channel_rows(quality['errors']))}"
        "</body></html>\n"
    )


def _facts(content: Dict[str, Any]) -> str:
    """Describe quantizer and frames in a table."""
    quantizer, frames = content["quantizer"], content["frames"]
    count, size = quantizer["num_codebooks"], quantizer["codebook_size"]
    facts = {
        "file": quantizer["file"],
        "codebooks": f"{count} of {size} entries: {count} bytes a frame",
        "dimension": quantizer["dim"],
        "search": (
            "multi_quantization's, from a classifier"
            if quantizer["has_classifier"]
            else "beam search and refinement"
        ),
        "frames measured": f"{frames['measured']} of {frames['seen']} seen, in "
        f"{frames['utterances']} utterances",
        "frames from": frames["source"],
        "probe": f"{content['quality']['probe']['num_train_frames']} training and "
        f"{content['quality']['probe']['num_test_frames']} test frames: "
        + content["quality"]["probe"]["split"],
        "seed": content["seed"],
        "espnet_mvq": content["espnet_mvq_version"],
    }
    for key, value in quantizer["provenance"].items():
        facts[f"training: {key}"] = value
    rows = "".join(
        f"<tr><th>{html.escape(str(key))}</th><td>{html.escape(str(value))}</td></tr>"
        for key, value in facts.items()
    )
    return f'<table class="facts">{rows}</table>'


def _table(header: List[str], rows: Iterable[List[str]]) -> str:
    """Write a table of numbers."""
    lines = ["".join(f"<th>{html.escape(name)}</th>" for name in header)]
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _channel_rows(errors: Dict[str, Any]) -> Tuple[List[str], List[List[str]]]:
    """Return header and rows of the worst channels."""
    header = ["channel", "error", "share of the error", "share of the variance"]
    names = ("channel_error", "error_share", "variance_share")
    return header, [
        [str(c), *(percent(errors[name][c]) for name in names)]
        for c in worst_channels(errors["channel_error"])
    ]


def _svg(
    draw: Callable[[Figure, Dict[str, Any]], None], quality: Dict[str, Any]
) -> str:
    """Draw a figure as an svg element."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    draw(figure, quality)
    out = io.StringIO()
    # The salt makes names inside the file those of the figure, and the same every time
    options = {"svg.fonttype": "none", "svg.hashsalt": draw.__name__}
    with matplotlib.rc_context(options):
        names = ("Creator", "Date", "Format", "Type")
        figure.savefig(out, format="svg", metadata=dict.fromkeys(names))
    svg = out.getvalue()
    return svg[svg.index("<svg") :]


def _axes(figure: Figure, x_label: str, y_label: str, place: int = 111) -> Axes:
    """Add axes without a box around them."""
    axes = figure.add_subplot(place)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return axes


def _number_codebooks(axes: Axes, count: int) -> range:
    """Put a tick at codebooks, not more than 16; return all of them."""
    axes.set_xticks(range(0, count, 1 + (count - 1) // 16))
    return range(count)


def _draw_effort(figure: Figure, quality: Dict[str, Any]) -> None:
    axes = _axes(figure, "relative reconstruction error", "")
    names = [effort["search"] for effort in quality["effort"]]
    errors = [effort["relative_error"] for effort in quality["effort"]]
    places = range(len(names), 0, -1)
    axes.plot(errors, places, color="#cccccc")
    axes.plot(errors, places, "o", color=_BLUE)
    for error, place in zip(errors, places):
        offset = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center"}
        axes.annotate(f"{error:.4f}", (error, place), size=8, **offset)
    axes.set_yticks(places, names)
    axes.margins(0.1, 0.12)


def _draw_entropy(figure: Figure, quality: Dict[str, Any]) -> None:
    usage = quality["usage"]
    axes = _axes(figure, "codebook", "entropy, bits")
    places = _number_codebooks(axes, len(usage["entropy_bits"]))
    most = quality["probe"]["chance_nats"] / math.log(2)
    axes.bar(places, usage["entropy_bits"], color=_BLUE)
    axes.axhline(most, color=_GREY, linestyle="--", label="all entries used alike")
    for n, dead in enumerate(usage["dead_entries"]):
        if dead:
            options = {"ha": "center", "va": "bottom", "color": "white"}
            axes.text(n, 0.2, f"{dead} dead", rotation=90, **options)
    axes.set_ylim(0, 1.25 * most)
    axes.legend(loc="upper right", frameon=False)


def _draw_correlation(figure: Figure, quality: Dict[str, Any]) -> None:
    axes = _axes(figure, "codebook", "codebook")
    values = [
        [math.nan if value is None else value for value in row]
        for row in quality["codebook_correlation"]
    ]
    count = len(values)
    image = axes.imshow(values, vmin=0, vmax=1, cmap="Blues")
    _number_codebooks(axes, count)
    axes.set_yticks(axes.get_xticks())
    figure.colorbar(image, label="correlation")
    if count > 8:
        return  # there is no room for numbers
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            color = "white" if value > 0.6 else "black"
            axes.text(
                j, i, f"{value:.2f}", ha="center", va="center", color=color, size=7
            )


def _draw_channels(figure: Figure, quality: Dict[str, Any]) -> None:
    errors = quality["errors"]
    axes = _axes(figure, "channels, worst first", "fraction")
    order = [c for c, error in enumerate(errors["channel_error"]) if error is not None]
    order.sort(key=lambda c: -errors["channel_error"][c])
    ranks = range(1, len(order) + 1)
    axes.plot(
        ranks,
        [errors["channel_error"][c] for c in order],
        color=_BLUE,
        label="error of the channel",
    )
    for name, color, style in (
        ("error_share", _ORANGE, "-"),
        ("variance_share", _GREY, "--"),
    ):
        shares = list(itertools.accumulate(errors[name][c] for c in order))
        word = name.split("_")[0]
        label = f"share of the {word} in the channels so far"
        axes.plot(ranks, shares, style, color=color, label=label)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _draw_stability(figure: Figure, quality: Dict[str, Any]) -> None:
    axes = _axes(figure, "codebook", "unchanged indexes")
    colors = itertools.cycle((_GREEN, _BLUE, _ORANGE, _GREY))
    for at, color in zip(quality["stability"], colors):
        places = _number_codebooks(axes, len(at["unchanged"]))
        label = f"{percent(at['noise_power'])} noise"
        axes.plot(places, at["unchanged"], "o-", color=color, label=label)
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False)


def _draw_probe(figure: Figure, quality: Dict[str, Any]) -> None:
    probe = quality["probe"]
    axes = _axes(figure, "codebook", "guessed right", 121)
    places = _number_codebooks(axes, len(probe["accuracy"]))
    axes.bar(places, probe["accuracy"], color=_BLUE)
    chance = math.exp(-probe["chance_nats"])
    axes.axhline(chance, color=_GREY, linestyle="--", label="by chance")
    axes.legend(frameon=False)
    axes = _axes(figure, "codebook", "nats", 122)
    _number_codebooks(axes, len(places))
    axes.bar(places, probe["cross_entropy_nats"], color=_BLUE, label="cross entropy")
    axes.plot(
        places,
        probe["entropy_nats"],
        "_",
        color=_ORANGE,
        markersize=14,
        markeredgewidth=2,
        label="knowing frequencies alone",
    )
    axes.axhline(probe["chance_nats"], color=_GREY, linestyle="--", label="by chance")
    axes.set_ylim(0, 1.5 * probe["chance_nats"])
    axes.legend(frameon=False, fontsize="small")


_FIGURES = (
    (
        "Error by search effort",
        "What is lost of the variance, after more and more search. A last point far to "
        "the left of the others means that extraction should search harder.",
        _draw_effort,
    ),
    (
        "Use of the codebooks",
        "Entropy of each codebook's indexes. Bars that reach the line use all entries "
        "alike; dead entries, which no frame uses, are wasted.",
        _draw_entropy,
    ),
    (
        "Overlap of the codebooks",
        "1: two codebooks move the reconstruction in the same directions; 0: in "
        "directions at right angles. Codebooks that refine each other overlap.",
        _draw_correlation,
    ),
    (
        "Error of the channels",
        "Squared error of each channel over its variance. Channels near 1 are lost; "
        "the dashed line says how much of the variance lies in them.",
        _draw_channels,
    ),
    (
        "Stability of the indexes",
        "Indexes that stay the same when noise is added to the frames, its power given "
        "in parts of each channel's variance. The more stay, the less of what a "
        "student has to learn is chance.",
        _draw_stability,
    ),
    (
        "Predictability of the indexes",
        "What a linear classifier tells from the frame itself, on frames it was not "
        "trained on. What it cannot tell, a student will find hard too.",
        _draw_probe,
    ),
)
