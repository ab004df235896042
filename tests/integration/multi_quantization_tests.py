"""The tests of k2-fsa's multi_quantization, run with quantizers of our trainer.

Usage: multi_quantization_tests.py CHECKOUT   (of github.com/k2-fsa/multi_quantization)

Their trainer is replaced by ours. The trained quantizer goes through
`to_multi_quantization` into their class, and all that follows is their code: encoding,
decoding, mean of the data, id, checkpoint, and the training of their predictor. Their
tests need a GPU and many hours on a CPU, so the numbers in `CHANGES` are smaller.
"""

import contextlib
import io
import logging
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List

import multi_quantization
import torch

from espnet_mvq.quantization import Quantizer, QuantizerTrainer

CHANGES = {
    "torch.device('cuda')": "torch.device('cpu')",
    "k = 30": "k = 4",
    "num_frames = 1000000": "num_frames = 220000",  # theirs fails below 200 000
    "count % 200 == 0": "count % 20 == 0",
    "count > 10000": "count > 60",
    # A tenth of the validation data
    "repeat=False": "repeat=False, stop=1000",
    "repeat: bool": "repeat: bool, stop: int = 10**9",
    "repeat else cur_offset": "repeat else cur_offset < stop and cur_offset",
}
NUM_FRAMES = 60_000  # for our trainer
# Relative error of `_test_quantizer_trainer` with their trainer and its 600 000 frames,
# measured on a CPU. Ours has a tenth of the frames, and may be 5 % worse.
THEIR_ERROR = 0.576


class OurTrainer:
    """Our trainer with the interface of theirs."""

    def __init__(self, dim: int, bytes_per_frame: int, device: Any, **iterations: int):
        self._trainer = QuantizerTrainer(dim, num_codebooks=bytes_per_frame)
        self._frames: List[torch.Tensor] = []

    def step(self, x: torch.Tensor) -> None:
        """Keep a batch of frames."""
        self._frames.append(x.detach().clone())

    def done(self) -> bool:
        """Whether there are enough frames."""
        return sum(map(len, self._frames)) >= NUM_FRAMES

    def get_quantizer(self) -> multi_quantization.Quantizer:
        """Train, and return their quantizer; ours and theirs give the same indexes."""
        frames = torch.cat(self._frames)
        ours = self._trainer.fit(frames)
        ours.to_multi_quantization("ours.pt")
        theirs = multi_quantization.Quantizer(
            ours.dim, ours.codebook_size, ours.num_codebooks
        )
        theirs.load_state_dict(torch.load("ours.pt"))
        back = Quantizer.from_multi_quantization("ours.pt")
        x = frames[:64]
        expected = theirs.encode(x, refine_indexes_iters=5, as_bytes=False)
        assert torch.equal(back.encode(x, refine_passes=5).long(), expected)
        torch.testing.assert_close(theirs.decode(expected), back.decode(expected))
        assert theirs.get_id() == ours.id[:8]
        return theirs


def load_tests(path: Path) -> Dict[str, Any]:
    """Load a file of their tests with our changes."""
    source = path.read_text(encoding="utf-8")
    for old, new in CHANGES.items():
        source = source.replace(old, new)
    tests: Dict[str, Any] = {"__name__": path.stem}
    exec(compile(source, str(path), "exec"), tests)
    if "QuantizerTrainer" in tests:
        tests["QuantizerTrainer"] = OurTrainer
    return tests


def run(test: Any, log: io.StringIO) -> str:
    """Run one of their tests; return what it prints and logs."""
    log.truncate(0)
    log.seek(0)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        test()
    logged = re.findall(r"^INFO:root:(Iter=.*)$", log.getvalue(), re.M)
    text = " | ".join(printed.getvalue().splitlines() + logged)
    print(f"{test.__name__}: {text}", flush=True)
    return text


def value_of(name: str, text: str) -> float:
    """Return a number that a test has printed."""
    return float(re.findall(rf"{name}\s*(?:=|:|is)\s+(\d\.\d+)", text)[-1])


def main() -> None:
    """Run the tests and check what they print."""
    folder = Path(sys.argv[1]).resolve() / "tests"
    sources = "".join(path.read_text() for path in folder.glob("*.py"))
    unknown = [old for old in CHANGES if old not in sources]
    assert not unknown, f"their tests no longer contain {unknown}"
    log = io.StringIO()
    logging.basicConfig(stream=log, level=logging.INFO)
    names = ("test_quantization", "test_write_hdf5", "test_train_hdf5")
    quantization, write, train = (load_tests(folder / f"{name}.py") for name in names)
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        for name in ("_test_quantizer_trainer", "_test_quantizer_trainer_double"):
            text = run(quantization[name], log)
            assert value_of("approximation error", text) < 1.05 * THEIR_ERROR
        text = run(quantization["_test_quantizer_trainer_gaussian"], log)
        bound = value_of("shannon distortion", text)
        assert bound < value_of("approximation error", text) < 1.15 * bound
        run(write["_write_example_data"], log)
        text = run(train["_test_train_from_file"], log)
        assert value_of("average relative error", text) < 1.05 * THEIR_ERROR
        text = run(train["_test_joint_predictor"], log)
        losses = [float(loss) for loss in re.findall(r"loss = (\d+\.\d+)", text)]
        assert losses[-1] < 0.8 * losses[0], losses
        os.chdir("/")
    print("multi_quantization's tests: all pass with quantizers of our trainer")


if __name__ == "__main__":
    main()
