"""The multi-codebook quantizer: an embedding as a sum of N codebook entries."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple, Union

import torch

from espnet_mvq.quantization.frames import (
    as_tensor,
    check_codebook_size,
    check_frames,
    check_indexes,
)
from espnet_mvq.quantization.gram import GramTables
from espnet_mvq.quantization.quantizer_file import (
    FILE_FORMAT,
    FILE_VERSION,
    DamagedQuantizerError,
    read_quantizer_file,
    write_quantizer_file,
)
from espnet_mvq.quantization.search import (
    SearchEffort,
    default_pair_candidates,
    find_indexes,
)

# Modules that build on `Quantizer` are imported in the methods that need them.

# Memory for the cost tables of one chunk of frames
_CHUNK_BYTES = 64 * 2**20


class Quantizer(torch.nn.Module):
    """Approximates each teacher embedding by a sum of N codebook entries.

    An embedding x becomes (x - mean) / scale per channel, then N indexes, one byte
    each; `decode` adds the N entries and undoes the normalisation.

    Args:
        codebooks: Entries in the normalised space, float, (N, K, D), K <= 256.
        mean: Subtracted from each channel, float, (D,). Default: zeros.
        scale: Divides each channel, float, (D,), positive. Default: ones.
        provenance: Origin of the quantizer (teacher, layer, frames, seed ...),
            JSON-serialisable; stored in the file, not part of the id.

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
    ):
        super().__init__()
        codebooks = float32_tensor("codebooks", codebooks)
        if codebooks.dim() != 3 or 0 in codebooks.shape:
            raise ValueError(
                f"codebooks: got shape {tuple(codebooks.shape)}, expected (number of "
                "codebooks, codebook size, dimension), none of them 0"
            )
        num_codebooks, codebook_size, dim = codebooks.shape
        check_codebook_size(codebook_size)
        mean = codebooks.new_zeros(dim) if mean is None else mean
        scale = codebooks.new_ones(dim) if scale is None else scale
        self.register_buffer("codebooks", codebooks)
        self.register_buffer("mean", float32_tensor("mean", mean, (dim,)))
        self.register_buffer("scale", float32_tensor("scale", scale, (dim,)))
        # Costs of a search: squares of sums of an entry from each codebook
        costs = 4 * num_codebooks**2 * codebooks.square().sum(2)
        if not costs.isfinite().all():
            raise ValueError(
                f"codebooks: got values up to {float(codebooks.abs().max()):g}, "
                "expected smaller ones: float32 does not hold their squares; scale the "
                "embeddings"
            )
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
        """Load other codebooks, and drop the tables of the old ones."""
        self._tables = None
        super()._load_from_state_dict(*args, **kwargs)

    def _gram_tables(self) -> GramTables:
        """Gram tables, built once on the device of the codebooks."""
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
    ) -> torch.Tensor:
        """Find codebook indexes that approximate each teacher embedding.

        Memory beyond input and output is bounded for any number of frames. All
        computations are in float32, under autocast too.

        Args:
            x: Teacher embeddings, float, (*, D), unnormalised; a tensor or numpy array.
            beam_size: Width of the beam search; 1 = greedy.
            refine_passes: Maximum number of refinement passes after the search; a
                frame stops early when a pass changes nothing.
            pair_candidates: Entries of a codebook that refinement tries together with
                the best answer of another codebook; 0: one codebook at a time only.
                Default: 1 with up to 8 codebooks, else 0 (their time grows as N^2).
            perturbation_rounds: Number of restarts of refinement from randomly changed
                indexes. 16 take 1 % (8 codebooks) to 4 % (16) off the error and leave
                a third to a tenth of the speed.
            initial_indexes: Indexes to refine instead of searching, (*, N). The result
                is never worse than these.

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
        out = torch.empty(
            len(frames), self.num_codebooks, dtype=torch.uint8, device=x.device
        )
        chunk = max(1, _CHUNK_BYTES // self._search_bytes(effort))
        with torch.autocast(self.codebooks.device.type, enabled=False):
            for start in range(0, len(frames), chunk):
                part = slice(start, start + chunk)
                normalised = self._normalise(frames[part], start)
                first = None if initial is None else initial[part].to(normalised.device)
                indexes = self._search(normalised, effort, first)
                out[part] = indexes.to(x.device, torch.uint8)
        return out.reshape(*x.shape[:-1], self.num_codebooks)

    def _search_bytes(self, effort: SearchEffort) -> int:
        """Estimated memory of the search of one frame, in bytes."""
        # The torch search holds the costs of all entries, twice, and about three tables
        # of a single codebook for each partial choice of the beam.
        return 4 * self.codebook_size * (2 * self.num_codebooks + 3 * effort.beam_size)

    def _search(
        self, x: torch.Tensor, effort: SearchEffort, initial: Optional[torch.Tensor]
    ) -> torch.Tensor:
        """Codebook indexes, int64, (B, N), of normalised frames (B, D)."""
        tables = self._gram_tables()
        return find_indexes(tables, tables.unary_costs(x), effort, initial)

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
        """Squared error of quantization as a fraction of the variance.

        Args:
            x: Teacher embeddings, float, (*, D).
            indexes: Their codebook indexes, (*, N). Default: `encode(x)`.

        Returns:
            sum ||x - x_hat||^2 / sum ||x - mean of x||^2; 0 is perfect, 1 is the
            error of the mean.

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

    @staticmethod
    def load(path: Union[str, Path]) -> "Quantizer":
        """Read a file written by `save`.

        Args:
            path: The file.

        Returns:
            The quantizer, on the CPU; a `ClassifierQuantizer` if the file has a
            classifier.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is no quantizer or of a newer version; a
                `DamagedQuantizerError` if it is truncated or was changed.
        """
        from espnet_mvq.quantization.classifier_quantizer import ClassifierQuantizer

        tensors, description = read_quantizer_file(path)
        has_classifier = any(name.startswith("classifier_") for name in tensors)
        kind = ClassifierQuantizer if has_classifier else Quantizer
        try:
            provenance = json.loads(description.get("provenance", "{}"))
            if not isinstance(provenance, dict):
                raise ValueError(
                    f"got provenance {provenance!r}, expected a json object"
                )
            quantizer = kind(**tensors, provenance=provenance)
        except ValueError as error:
            raise ValueError(
                f"quantizer {path}: {error}; train it again or copy it again"
            ) from error
        if description.get("id") != quantizer.id:
            raise DamagedQuantizerError(
                f"quantizer {path}: content hash {quantizer.id} differs from the id "
                f"{description.get('id')} it was saved with; the file was changed"
            )
        return quantizer

    @staticmethod
    def from_multi_quantization(
        source: Union[str, Path, Mapping[str, Any]],
    ) -> "Quantizer":
        """Read a quantizer of k2-fsa's multi_quantization (icefall, SPEAR).

        `encode` then gives that library's codebook indexes for the same number of
        passes (its default is 5), up to float ties.

        Args:
            source: Checkpoint file or state dict; or SPEAR's form
                {"quantizer": state dict, "mean": (D,), "std": (D,)}.

        Returns:
            The quantizer.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not such a checkpoint, or holds NaN, infinity or values
                that float32 does not hold; names file and tensor.
        """
        from espnet_mvq.quantization.multi_quantization import read_checkpoint

        return read_checkpoint(source)

    def to_multi_quantization(self, path: Union[str, Path]) -> None:
        """Write a checkpoint that k2-fsa's multi_quantization loads.

        It holds a state dict for `multi_quantization.Quantizer(D, K, N)`. That library
        starts its own search from a linear classifier: its indexes are not those of
        `encode`, but those of `from_multi_quantization(path).encode`.

        Args:
            path: Where to write, normally `*.pt`. With scales other than 1 the file
                has SPEAR's form {"quantizer": state dict, "mean": ..., "std": ...}.

        Raises:
            ValueError: If N or K is no power of two.
            OSError: If it cannot be written; an existing file stays as it is.
        """
        from espnet_mvq.quantization.multi_quantization import write_checkpoint

        write_checkpoint(self, path)

    def _normalise(self, frames: torch.Tensor, first_row: int) -> torch.Tensor:
        """Normalise frames (B, D).

        Raises:
            ValueError: If float32 does not hold the costs of a frame.
        """
        given, frames = frames, frames.to(self.codebooks.device, torch.float32)
        normalised = (frames - self.mean) / self.scale
        # False for NaN
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


def float32_tensor(
    name: str, value: Any, shape: Optional[Tuple[int, ...]] = None
) -> torch.Tensor:
    """Convert a tensor of a quantizer to contiguous float32, without a gradient.

    Args:
        name: Name of the tensor; values of "scale" must be positive.
        value: Tensor or numpy array.
        shape: Expected shape. Default: any.

    Raises:
        ValueError: If it has another shape, is complex, or holds NaN, infinity or
            values that float32 does not hold.
    """
    value = as_tensor(name, value)
    if value.is_complex():
        raise ValueError(f"{name}: got {value.dtype}, expected real numbers")
    value = value.detach().float().contiguous()
    if shape is not None and value.shape != shape:
        raise ValueError(
            f"{name}: got shape {tuple(value.shape)}, expected {shape} as the "
            "codebooks have"
        )
    if name == "scale" and not (value.isfinite() & (value > 0)).all():
        raise ValueError(
            "scale: got zero, negative or non-finite values in float32, expected "
            "positive ones"
        )
    if not value.isfinite().all():
        raise ValueError(
            f"{name}: got NaN or infinity in float32, expected finite values"
        )
    return value
