"""The multi-codebook quantizer: N codebooks whose chosen entries are added up."""

import hashlib
import io
import json
import math
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Union

import torch

from espnet_mvq.files.whole_file import write_bytes
from espnet_mvq.quantization.fastest_search import find_indexes, search_bytes
from espnet_mvq.quantization.frames import as_tensor, check_frames, check_indexes
from espnet_mvq.quantization.gram import GramTables
from espnet_mvq.quantization.multi_quantization import (
    convert_multi_quantization,
    make_multi_quantization,
)
from espnet_mvq.quantization.quantizer_file import (
    FILE_FORMAT,
    FILE_VERSION,
    DamagedQuantizerError,
    read_quantizer_file,
    write_quantizer_file,
)
from espnet_mvq.quantization.quantizer_tensors import check_tensors
from espnet_mvq.quantization.search import SearchEffort, default_pair_candidates
from espnet_mvq.quantization.tournament_search import (
    refine_by_tournament,
    tournament_bytes,
)

# What the cost tables of one chunk of frames may take.
_CHUNK_BYTES = 64 * 2**20


class Quantizer(torch.nn.Module):
    """Approximates each teacher embedding by a sum of N codebook entries.

    An embedding x becomes (x - mean) / scale per channel, then N indexes, one byte
    each; `decode` adds the N entries and undoes the normalisation.

    Args:
        codebooks: Entries in the normalised space, float, (N, K, D), K <= 256.
        mean: Subtracted from each channel, float, (D,). Default: zeros.
        scale: Divides each channel, float, (D,), positive. Default: ones.
        provenance: How the quantizer came about (teacher, layer, frames, seed ...),
            JSON-serialisable; stored in the file, not part of the id.
        classifier_weight: Linear classifier of first indexes, float, (N * K, D), of
            quantizers made by multi_quantization. Default: none, beam search instead.
        classifier_bias: Its bias, float, (N * K,).

    Raises:
        ValueError: If a shape or value is out of range, or float32 does not hold it.

    Source: Guo et al. 2022 (arXiv:2211.00508), direct-sum codebooks. Differs: indexes
        are searched in the Gram domain, without a trained classifier.
    """

    def __init__(
        self,
        codebooks: torch.Tensor,
        mean: Optional[torch.Tensor] = None,
        scale: Optional[torch.Tensor] = None,
        provenance: Optional[Dict[str, Any]] = None,
        classifier_weight: Optional[torch.Tensor] = None,
        classifier_bias: Optional[torch.Tensor] = None,
    ):
        super().__init__()
        tensors = check_tensors(
            codebooks, mean, scale, classifier_weight, classifier_bias
        )
        for name, value in tensors.items():
            self.register_buffer(name, value)
        self.provenance = dict(provenance or {})
        self._tables: Optional[GramTables] = None

    @property
    def num_codebooks(self) -> int:
        """Number of codebooks N."""
        return self.codebooks.shape[0]

    @property
    def codebook_size(self) -> int:
        """Entries per codebook K."""
        return self.codebooks.shape[1]

    @property
    def dim(self) -> int:
        """Dimension D of the embeddings."""
        return self.codebooks.shape[2]

    @property
    def id(self) -> str:
        """Content hash, 16 hex digits: equal codebooks and normalisation, equal id."""
        digest = hashlib.sha256(f"{FILE_FORMAT}/{FILE_VERSION}".encode())
        for value in self.state_dict().values():
            digest.update(str(tuple(value.shape)).encode())
            digest.update(value.cpu().numpy().astype("<f4").tobytes())
        return digest.hexdigest()[:16]

    def extra_repr(self) -> str:
        """Describe the quantizer in one line."""
        return (
            f"num_codebooks={self.num_codebooks}, codebook_size={self.codebook_size}, "
            f"dim={self.dim}, id={self.id}"
        )

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Load other codebooks; tables of the old ones are of no use then."""
        self._tables = None
        super()._load_from_state_dict(*args, **kwargs)

    def _gram_tables(self) -> GramTables:
        """Build the Gram tables once, on the device where the codebooks are."""
        tables = self._tables
        if tables is None or tables.entries.device != self.codebooks.device:
            self._tables = tables = GramTables(self.codebooks)
        return tables

    @torch.no_grad()
    def encode(
        self,
        x: torch.Tensor,
        *,
        beam_size: int = 8,
        refine_passes: int = 5,
        pair_candidates: Optional[int] = None,
        perturbation_rounds: int = 0,
        initial_indexes: Optional[torch.Tensor] = None,
        method: str = "auto",
    ) -> torch.Tensor:
        """Pick codebook indexes that approximate each teacher embedding.

        Memory beyond input and output is bounded, however many frames there are. All
        is computed in float32, under autocast too.

        Args:
            x: Teacher embeddings, float, (*, D), unnormalised; a tensor or numpy array.
            beam_size: Width of the beam search; 1 = greedy.
            refine_passes: Most passes of refinement after the search; a frame stops
                early when a pass changes nothing.
            pair_candidates: Entries of a codebook that refinement tries together with
                the best answer of another codebook; 0: one codebook at a time only.
                Default: 1 with up to 8 codebooks, else 0 (pairs grow as N^2).
            perturbation_rounds: Times that refinement starts again from indexes
                changed at random. 16 take 1 % (8 codebooks) to 4 % (16) off the
                error and leave a third to a tenth of the speed.
            initial_indexes: Indexes to refine instead of searching, (*, N). The result
                is never worse than these.
            method: "beam" for the search described here; "tournament" for
                multi_quantization's, which gives that library's indexes for its
                quantizers and as many `refine_passes`; "auto" is "tournament" for
                these quantizers, "beam" for all others.

        Returns:
            Codebook indexes, uint8, (*, N), on x's device.

        Raises:
            ValueError: If the last dimension of x is not D, if x holds NaN, infinity or
                values too large for float32, if initial_indexes do not fit x, or an
                option is out of range.

        Example:
            >>> quantizer = Quantizer(torch.tensor([[[0.0, 0.0], [4.0, 4.0]]]))
            >>> quantizer.encode(torch.tensor([[3.0, 5.0], [0.5, 0.0]]))
            tensor([[1],
                    [0]], dtype=torch.uint8)
        """
        x = check_frames(x, self.dim)
        frames = x.reshape(-1, self.dim)
        if pair_candidates is None:
            pair_candidates = default_pair_candidates(self.num_codebooks)
        effort = SearchEffort(
            beam_size, refine_passes, pair_candidates, perturbation_rounds
        )
        initial = None
        if initial_indexes is not None:
            initial = check_indexes(
                initial_indexes, self.num_codebooks, self.codebook_size
            )
            if len(initial) != len(frames):
                raise ValueError(
                    f"initial_indexes: got {len(initial)} frames, x has {len(frames)}"
                )
        by_tournament = self._is_tournament(method) and initial is None
        frame_bytes = search_bytes(self.num_codebooks, self.codebook_size, effort)
        if by_tournament:
            frame_bytes += tournament_bytes(self.num_codebooks)
        chunk = max(1, _CHUNK_BYTES // frame_bytes)
        out = torch.empty(
            len(frames), self.num_codebooks, dtype=torch.uint8, device=x.device
        )
        with torch.autocast(self.codebooks.device.type, enabled=False):
            tables = self._gram_tables()
            for start in range(0, len(frames), chunk):
                part = slice(start, start + chunk)
                normalised = self._normalise(frames[part], start)
                unary = tables.unary_costs(normalised)
                if by_tournament:
                    indexes = self._classify(normalised)
                    indexes = refine_by_tournament(
                        tables, unary, indexes, refine_passes
                    )
                else:
                    first = None if initial is None else initial[part].to(unary.device)
                    indexes = find_indexes(tables, unary, effort, first)
                out[part] = indexes.to(x.device, torch.uint8)
        return out.reshape(*x.shape[:-1], self.num_codebooks)

    def _is_tournament(self, method: str) -> bool:
        """Say whether a method of `encode` means the tournament, or refuse it."""
        if method not in ("auto", "beam", "tournament"):
            raise ValueError(
                f"method: got {method!r}, expected 'auto', 'beam' or 'tournament'"
            )
        has_classifier = self.classifier_weight is not None
        if method == "tournament" and not has_classifier:
            raise ValueError(
                "method: got 'tournament', but this quantizer has no classifier to "
                "start it from; expected one read by from_multi_quantization"
            )
        return method != "beam" and has_classifier

    @torch.no_grad()
    def decode(self, indexes: torch.Tensor) -> torch.Tensor:
        """Reconstruct embeddings from codebook indexes.

        Args:
            indexes: Codebook indexes, any integer type, (*, N); a tensor or numpy
                array.

        Returns:
            Embeddings, float32, (*, D).

        Raises:
            ValueError: If the last dimension is not N or an index is out of range.
        """
        flat = check_indexes(indexes, self.num_codebooks, self.codebook_size).to(
            self.codebooks.device
        )
        offsets = torch.arange(self.num_codebooks, device=flat.device)
        rows = flat + offsets * self.codebook_size
        total = torch.nn.functional.embedding_bag(
            rows, self.codebooks.reshape(-1, self.dim), mode="sum"
        )
        total = total * self.scale + self.mean
        return total.reshape(*indexes.shape[:-1], self.dim)

    def relative_reconstruction_error(
        self, x: torch.Tensor, indexes: Optional[torch.Tensor] = None
    ) -> float:
        """Measure what quantization loses, as a fraction of the variance.

        Args:
            x: Teacher embeddings, float, (*, D).
            indexes: Their codebook indexes, (*, N). Default: `encode(x)`.

        Returns:
            sum ||x - x_hat||^2 / sum ||x - mean of x||^2; 0 is perfect, 1 is no
            better than always answering the mean.

        Raises:
            ValueError: If frames and indexes do not fit, or the frames are all equal or
                hold NaN or infinity.
        """
        if indexes is None:
            indexes = self.encode(x)
        frames = check_frames(x, self.dim).detach().reshape(-1, self.dim)
        indexes = as_tensor("indexes", indexes).reshape(-1, self.num_codebooks)
        if len(indexes) != len(frames):
            raise ValueError(f"indexes: got {len(indexes)} of {len(frames)} frames")
        mean = frames.mean(0, dtype=torch.float64)
        error = variance = 0.0
        chunk = max(1, _CHUNK_BYTES // (32 * self.dim))
        for part, part_indexes in zip(frames.split(chunk), indexes.split(chunk)):
            decoded = self.decode(part_indexes).to(part.device, torch.float64)
            error += (part - decoded).square().sum().item()
            variance += (part - mean).square().sum().item()
        if variance == 0:
            raise ValueError(
                f"relative error: all {len(frames)} frames are equal, expected frames "
                "that vary"
            )
        if not math.isfinite(error / variance):
            raise ValueError("relative error: got NaN or infinity in the frames")
        return error / variance

    def save(self, path: Union[str, Path]) -> None:
        """Write a self-describing safetensors file; an existing file is replaced.

        Args:
            path: Where to write, normally `quantizer.safetensors`.

        Raises:
            OSError: If it cannot be written; an existing file stays as it is.
        """
        description = {
            "id": self.id,
            "num_codebooks": str(self.num_codebooks),
            "codebook_size": str(self.codebook_size),
            "dim": str(self.dim),
            "provenance": json.dumps(self.provenance, sort_keys=True),
        }
        write_quantizer_file(path, self.state_dict(), description)

    @classmethod
    def load(cls, path: Union[str, Path]) -> "Quantizer":
        """Read a file written by `save`.

        Args:
            path: The file.

        Returns:
            The quantizer, on the CPU.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is no quantizer or of a newer version; a
                `DamagedQuantizerError` if it is not whole or was changed.
        """
        tensors, description, provenance = read_quantizer_file(path)
        quantizer = cls(**tensors, provenance=provenance)
        if description.get("id") != quantizer.id:
            raise DamagedQuantizerError(
                f"quantizer {path}: content hash {quantizer.id} differs from the id "
                f"{description.get('id')} it was saved with; the file was changed"
            )
        return quantizer

    @classmethod
    def from_multi_quantization(
        cls, source: Union[str, Path, Mapping[str, Any]]
    ) -> "Quantizer":
        """Take over a quantizer of k2-fsa's multi_quantization (icefall, SPEAR).

        `encode` then gives that library's codebook indexes for the same number of
        passes (its default is 5), up to float ties.

        Args:
            source: Checkpoint file or state dict; also SPEAR's with mean and std.

        Returns:
            The quantizer.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not such a checkpoint.
        """
        return cls(
            **convert_multi_quantization(source),
            provenance={"made_by": "multi_quantization"},
        )

    def to_multi_quantization(self, path: Union[str, Path]) -> None:
        """Write a checkpoint that k2-fsa's multi_quantization loads.

        It holds a state dict for `multi_quantization.Quantizer(D, K, N)`. That library
        then searches in its own way, from a linear classifier: its indexes are not
        those of `encode`, but those of `from_multi_quantization(path).encode`.

        Args:
            path: Where to write, normally `*.pt`. With scales other than 1 the file
                has SPEAR's form {"quantizer": state dict, "mean": ..., "std": ...}.

        Raises:
            ValueError: If N or K is no power of two.
            OSError: If it cannot be written; an existing file stays as it is.
        """
        checkpoint = make_multi_quantization(**self.state_dict(), identity=self.id)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_bytes(path, content.getvalue())

    def _classify(self, normalised: torch.Tensor) -> torch.Tensor:
        """Return the classifier's indexes, int64, (B, N), of frames (B, D)."""
        logits = normalised @ self.classifier_weight.T + self.classifier_bias
        shape = (-1, self.num_codebooks, self.codebook_size)
        return logits.reshape(shape).argmax(dim=2)

    def _normalise(self, frames: torch.Tensor, first_row: int) -> torch.Tensor:
        """Bring frames (B, D) into the codebooks' space, refusing what has no costs."""
        given, frames = frames, frames.to(self.codebooks.device, torch.float32)
        normalised = (frames - self.mean) / self.scale
        # Not true of NaN
        usable = normalised.abs().amax(dim=1) <= self._gram_tables().largest_value
        if not usable.all():
            row = int((~usable).nonzero()[0])
            got = "NaN or infinity"
            if given[row].isfinite().all():
                got = f"values up to {float(given[row].abs().max()):g}"
            raise ValueError(
                f"encode: got {got} in frame {first_row + row} (counted from 0), "
                "expected finite embeddings; check the teacher's precision and audio"
            )
        return normalised
