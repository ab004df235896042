"""Advice on a teacher's layers as JSON, markdown and a figure."""

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from espnet_mvq import __version__
from espnet_mvq.extraction.layer_verdict import KNOWN_RATIO, LayerScore, Verdict
from espnet_mvq.files.whole_file import write_bytes, write_text

# Title and, of a score, what is shown of it
_COLUMNS = {
    "error_rate": "CER, %",
    "reversal_ratio": "reversal ratio",
    "quantizer_error": "quantizer error, %",
    "unchanged": "indexes that stay in noise, %",
    "log_mel_nats": "explained by log-mel, nats",
}
_PERCENT = ("error_rate", "quantizer_error", "unchanged")


@dataclass(frozen=True)
class Advice:
    """A comparison of a teacher's layers.

    Attributes:
        teacher: The teacher's id.
        data_dir: Folder of the speech.
        speech: Minutes, utterances, speakers and how some are held out, in words.
        num_codebooks: Codebooks of the quantizer.
        codebook_size: Their size.
        log_mel_error_rate: Error rate of the probe on log-mel frames; None without a
            text.
        scores: Scores of the layers.
        verdict: The judgement.
    """

    teacher: str
    data_dir: str
    speech: str
    num_codebooks: int
    codebook_size: int
    log_mel_error_rate: Optional[float]
    scores: List[LayerScore]
    verdict: Verdict

    def to_dict(self) -> Dict[str, Any]:
        """Return the content of the JSON file."""
        return {
            "format": "espnet_mvq.layer_advice",
            "version": 1,
            "espnet_mvq_version": __version__,
            **asdict(self),
        }


def write_advice(advice: Advice, folder: Path) -> str:
    """Write `advice.json`, `advice.md` and `advice.png`; return the markdown.

    Raises:
        OSError: If they cannot be written.
    """
    text = markdown(advice)
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(advice.to_dict(), indent=1, allow_nan=False)
    write_text(folder / "advice.json", content + "\n")
    write_text(folder / "advice.md", text)
    write_bytes(folder / "advice.png", draw_png(advice))
    return text


def markdown(advice: Advice) -> str:
    """Return verdict and table as markdown."""
    names = _shown(advice)
    rows = [["layer", *(_COLUMNS[name] for name in names)], ["---"] * (1 + len(names))]
    if advice.log_mel_error_rate is not None:
        cell = _cell("error_rate", advice.log_mel_error_rate)
        rows.append(["log-mel", cell, *[""] * (len(names) - 1)])
    for score in advice.scores:
        cells = [_cell(name, getattr(score, name)) for name in names]
        rows.append([str(score.layer), *cells])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        f"# Layers of {advice.teacher}\n\n"
        f"{advice.verdict.sentences[0]}\n\n"
        f"{' '.join(advice.verdict.sentences[1:])}\n\n"
        f"{table}\n\n"
        f"Speech: {advice.speech} of {advice.data_dir}. Quantizer: "
        f"{advice.num_codebooks} codebooks of {advice.codebook_size} entries.\n"
    )


def _shown(advice: Advice) -> List[str]:
    """Names of the scores that there are."""
    return [n for n in _COLUMNS if getattr(advice.scores[0], n) is not None]


def _cell(name: str, value: float) -> str:
    return f"{100 * value:.1f}" if name in _PERCENT else f"{value:.2f}"


def draw_png(advice: Advice) -> bytes:
    """Draw each score over the layers, with the layers to try as big dots."""
    from matplotlib.figure import Figure

    names = _shown(advice)
    figure = Figure(figsize=(3.2 * len(names), 3), layout="constrained")
    layers = [score.layer for score in advice.scores]
    tried = [n for n, layer in enumerate(layers) if layer in advice.verdict.layers]
    step = -(-len(layers) // 12)
    for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False)[0]):
        factor = 100 if name in _PERCENT else 1
        values = [factor * getattr(score, name) for score in advice.scores]
        (line,) = axes.plot(values, marker="o", markersize=3)
        axes.plot(tried, [values[n] for n in tried], "o", color=line.get_color())
        label, value = _reference(name, advice)
        if value is not None:
            axes.axhline(factor * value, linestyle="--", color="grey", label=label)
            axes.legend(fontsize=8)
        axes.set(title=_COLUMNS[name], xlabel="layer")
        axes.title.set_size(10)
        axes.set_xticks(range(0, len(layers), step), layers[::step])
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    return png.getvalue()


def _reference(name: str, advice: Advice) -> Tuple[str, Optional[float]]:
    """Name and value to compare a score with; None if there is none."""
    if name == "error_rate":
        return "log-mel", advice.log_mel_error_rate
    return "known speech", KNOWN_RATIO if name == "reversal_ratio" else None
