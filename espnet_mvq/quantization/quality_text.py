"""The quality report of a quantizer as text and tables."""

import math
from typing import Any, Dict, List, Optional, Sequence, Tuple

# The report as a file
REPORT_NAME = "quantizer_report.json"
REPORT_FORMAT = "espnet_mvq.quality_report"
REPORT_VERSION = 1
_WORST_CHANNELS = 10
_IGNORED = 0.9  # a channel that keeps less than a tenth of its variance is ignored
_FRAMES_PER_ENTRY = 50  # with fewer, entries may be unused by chance


def findings(content: Dict[str, Any]) -> List[Tuple[str, str]]:
    """Judge the figures of a report in words.

    Args:
        content: The report, as written to JSON.

    Returns:
        Pairs of "good", "note" or "bad" and a sentence or two.
    """
    quality = content["quality"]
    return [
        _error_finding(quality, content["quantizer"]["provenance"]),
        _effort_finding(quality["effort"]),
        _dead_finding(content),
        _entropy_finding(content),
        *_correlation_findings(quality["codebook_correlation"]),
        _channel_finding(quality["errors"]),
        _stability_finding(quality["stability"]),
        _probe_finding(quality["probe"]),
    ]


def _error_finding(quality, provenance) -> Tuple[str, str]:
    error = quality["relative_error"]
    text = f"The indexes lose {percent(error)} of the variance of the frames."
    verdict = "good"
    if error > 0.5:
        verdict = "bad"
        text += " More codebooks would lose less."
    before = provenance.get("relative_reconstruction_error")
    if isinstance(before, float) and before > 0:
        text += f" On the held-out frames of its training it was {percent(before)}."
        if error > 1.2 * before:
            verdict = "bad"
            text += (
                " These frames are unlike those it was trained on, or were made in "
                "another way: compare corpus, teacher and layer."
            )
    elif "training_relative_reconstruction_error" in provenance:
        before = provenance["training_relative_reconstruction_error"]
        text += (
            f" On the frames it was trained on it was {percent(before)}: there were "
            "too few to hold any out."
        )
    return verdict, text


def _effort_finding(effort) -> Tuple[str, str]:
    least, usual, most = (effort[i]["relative_error"] for i in (0, -2, -1))
    # No error, nothing to take off
    refined, searched = (
        1 - after / before if before else 0
        for before, after in ((least, usual), (usual, most))
    )
    text = (
        f"Refinement takes {percent(refined)} off the error of the first indexes, and "
        f"the largest search effort another {percent(searched)}."
    )
    if searched > 0.05:
        return "note", text + " A larger search effort would pay."
    return "good", text


def _dead_finding(content) -> Tuple[str, str]:
    quantizer = content["quantizer"]
    dead = sum(content["quality"]["usage"]["dead_entries"])
    total = quantizer["num_codebooks"] * quantizer["codebook_size"]
    text = f"{dead} of {total} entries ({percent(dead / total)}) are never used."
    if dead <= 0.01 * total:
        return "good", text
    if content["frames"]["measured"] < _FRAMES_PER_ENTRY * quantizer["codebook_size"]:
        return "note", text + " There are too few frames to judge the quantizer."
    return "bad", text + (" Train on more frames, or with smaller codebooks.")


def _entropy_finding(content) -> Tuple[str, str]:
    entropy = content["quality"]["usage"]["entropy_bits"]
    most = math.log2(content["quantizer"]["codebook_size"])
    mean, least = sum(entropy) / len(entropy), min(entropy)
    text = (
        f"An index carries {mean:.2f} of {most:.2f} bits on average, at least "
        f"{least:.2f} (codebook {entropy.index(least)})."
    )
    verdict = "good" if mean >= 0.9 * most else "note" if mean >= 0.75 * most else "bad"
    if verdict != "good":
        text += " Few entries are used most of the time."
    return verdict, text


def _correlation_findings(correlation) -> List[Tuple[str, str]]:
    pairs = [
        (value, i, j)
        for i, row in enumerate(correlation)
        for j, value in enumerate(row[:i])
        if value is not None
    ]
    if not pairs:
        return []
    value, i, j = max(pairs)
    mean = sum(pair[0] for pair in pairs) / len(pairs)
    text = (
        f"Codebooks {j} and {i} overlap most, with a correlation of {value:.2f}; all "
        f"pairs have {mean:.2f} on average."
    )
    if value > 0.98:
        return [("note", text + " One of the two codebooks may be redundant.")]
    return [("good", text)]


def _channel_finding(errors) -> Tuple[str, str]:
    error, variance = errors["channel_error"], errors["variance_share"]
    ignored = [c for c, e in enumerate(error) if e is not None and e > _IGNORED]
    share = sum(variance[c] for c in ignored)
    text = (
        f"{len(ignored)} of {len(error)} channels, with {percent(share)} of the "
        f"variance, are hardly reproduced (error above {percent(_IGNORED)})."
    )
    constant = error.count(None)
    if constant:
        text += f" {constant} channels are constant and left out."
    worst = ", ".join(f"{c} ({percent(error[c])})" for c in worst_channels(error)[:5])
    text += f" Worst channels: {worst}."
    if len(ignored) > 0.05 * len(error):
        text += " To give all channels equal weight, train with --normalize mean_std."
        return "note", text
    return "good", text


def _stability_finding(stability) -> Tuple[str, str]:
    parts = [
        f"{percent(s['mean_unchanged'])} at {percent(s['noise_power'])}"
        for s in stability
    ]
    text = (
        "Indexes that stay the same under noise, by its share of the variance: "
        f"{', '.join(parts)}."
    )
    if stability[0]["mean_unchanged"] < 0.5:
        return "bad", text + (
            " The indexes are close to arbitrary: little noise changes them."
        )
    return "good", text


def _probe_finding(probe) -> Tuple[str, str]:
    count = len(probe["accuracy"])
    accuracy = sum(probe["accuracy"]) / count
    gains = [h - c for h, c in zip(probe["entropy_nats"], probe["cross_entropy_nats"])]
    hardest = gains.index(min(gains))
    text = (
        f"From the frame, a linear classifier guesses {percent(accuracy)} of the "
        f"indexes and gains {sum(gains) / count:.2f} nats over their frequencies; "
        f"codebook {hardest} is the hardest ({gains[hardest]:.2f} nats)."
    )
    if min(gains) < 0.1:
        return "bad", text + (
            " Indexes that the frame does not predict are hard for a student to learn."
        )
    return "good", text


def worst_channels(channel_error: Sequence[Optional[float]]) -> List[int]:
    """List at most ten channels, counted from 0, by falling error.

    Constant channels, with None as error, are left out.
    """
    channels = [c for c, error in enumerate(channel_error) if error is not None]
    return sorted(channels, key=lambda c: -channel_error[c])[:_WORST_CHANNELS]


def table_of_codebooks(quality: Dict[str, Any]) -> Tuple[List[str], List[List[str]]]:
    """Header and rows of the table of all codebooks, as text."""
    usage, probe, stability = (quality[k] for k in ("usage", "probe", "stability"))
    columns = {
        "codebook": [str(n) for n in range(len(usage["dead_entries"]))],
        "entropy bits": [f"{bits:.2f}" for bits in usage["entropy_bits"]],
        "perplexity": [f"{value:.1f}" for value in usage["perplexity"]],
        "dead entries": [str(dead) for dead in usage["dead_entries"]],
        "variance %": _percents(quality["codebook_variance_share"]),
    }
    for at in stability:
        name = f"stay at {percent(at['noise_power'])} noise, %"
        columns[name] = _percents(at["unchanged"])
    columns["guessed %"] = _percents(probe["accuracy"])
    for name in ("cross_entropy_nats", "entropy_nats"):
        columns[name.replace("_", " ")] = [f"{nats:.2f}" for nats in probe[name]]
    return list(columns), [list(row) for row in zip(*columns.values())]


def text_report(content: Dict[str, Any]) -> str:
    """Format the report, as written to JSON, as lines for a terminal."""
    quantizer, quality = content["quantizer"], content["quality"]
    lines = [
        f"quantizer {quantizer['file']}, id {quantizer['id']}: "
        f"{quantizer['num_codebooks']} codebooks of {quantizer['codebook_size']} "
        f"entries, dimension {quantizer['dim']}",
        f"{content['frames']['measured']} frames of {content['frames']['utterances']} "
        f"utterances in {content['frames']['source']}",
        "",
        "relative reconstruction error by search effort:",
    ]
    for effort in quality["effort"]:
        lines.append(f"  {effort['relative_error']:.4f}  {effort['search']}")
    lines.append("")
    header, rows = table_of_codebooks(quality)
    lines += ["figures of each codebook, from left to right: " + "; ".join(header)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        lines.append("  " + "  ".join(map(str.rjust, row, widths)))
    lines.append("")
    lines += [f"{verdict:4}  {sentence}" for verdict, sentence in findings(content)]
    return "\n".join(lines)


def percent(fraction: float) -> str:
    """Format a fraction as per cent with three digits."""
    return f"{100 * fraction:.3g} %"


def _percents(fractions: Sequence[float]) -> List[str]:
    return [f"{100 * fraction:.1f}" for fraction in fractions]
