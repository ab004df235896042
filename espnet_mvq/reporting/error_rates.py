"""Error rates of the decoded sets of an experiment."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional

from espnet_mvq.reporting.scoring import (
    Utterance,
    align,
    get_tokenizers,
    match,
    read_text,
    summarize,
)
from espnet_mvq.reporting.training_log import ReportError


@dataclass
class Decoding:
    """A decoded set.

    Attributes:
        text: The hypotheses.
        ref: The references; None if they were not found.
        results: Scores by metric, "wer" and so on, see `summarize`.
        problem: Reason why it could not be scored.
    """

    text: Path
    ref: Optional[Path] = None
    results: Dict[str, Dict[str, Any]] = field(default_factory=dict)
    problem: str = ""

    def align(self, metric: str) -> List[Utterance]:
        """Align the hypotheses with the references.

        Raises:
            OSError: If a file is missing.
            ValueError: If they are of different sets; see `match`.
        """
        refs = read_text(self.ref)
        try:
            hyps = match(refs, read_text(self.text))
        except ValueError as error:
            raise ValueError(f"{self.text} and {self.ref}: {error}") from error
        return align(refs, hyps, get_tokenizers(None)[metric])

    def score(self) -> None:
        """Compute the word and character error rates that are missing."""
        try:
            for metric in ("wer", "cer"):
                if metric not in self.results:
                    self.results[metric] = summarize(metric, self.align(metric))
        except ValueError as error:
            self.ref, self.problem = None, str(error)


def read_scores(exp: Path) -> Dict[str, Dict[str, Dict[str, Any]]]:
    """Read every `score_*/result.json` of the recipes below an experiment.

    Returns:
        Scores by decoded set, `decode_asr/test` for example, and metric.

    Raises:
        ReportError: If a file was not written by score.py.
    """
    scores: Dict[str, Dict[str, Dict[str, Any]]] = {}
    for path in sorted(exp.glob("**/score_*/result.json")):
        folder = path.parent.parent
        if folder.name == "score":
            folder = folder.parent
        metric = path.parent.name.removeprefix("score_")
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            if "num_tokens" not in result:
                raise ValueError("no num_tokens in it")
        except ValueError as error:
            raise ReportError(f"{path} is damaged ({error}): score again") from error
        scores.setdefault(folder.relative_to(exp).as_posix(), {})[metric] = result
    return scores


def read_decodings(exp: Path, data_dir: Path) -> Dict[str, Decoding]:
    """Read the error rates of all decoded sets.

    Sets without scores of our recipes, as in ESPnet's recipes, are scored as score.py
    does.

    Args:
        exp: Experiment folder.
        data_dir: Folder of the data sets, such as dump/raw; has SET/text.

    Returns:
        Decoded sets by name, `decode_asr/test` for example.

    Raises:
        ReportError: See `read_scores`.
    """
    scores = read_scores(exp)
    texts = sorted(exp.glob("**/text"))
    names = [path.parent.relative_to(exp).as_posix() for path in texts]
    decodings = {}
    for name in sorted({*scores, *names}):
        if "logdir" in name.split("/"):  # parts of the decoding jobs
            continue
        decoding = Decoding(exp / name / "text", None, scores.get(name, {}))
        ref = data_dir / name.partition("/")[2] / "text"
        if not ref.is_file():
            decoding.problem = f"no references {ref}"
        elif decoding.text.is_file():
            decoding.ref = ref
            decoding.score()
        decodings[name] = decoding
    return decodings
