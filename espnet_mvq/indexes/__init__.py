"""Files of indexes, embeddings or posteriors: arks, their scp, metadata beside it."""

from espnet_mvq.indexes.metadata import (
    EmbeddingMetadata,
    IndexMetadata,
    PosteriorMetadata,
)
from espnet_mvq.indexes.reader import FrameReader
from espnet_mvq.indexes.shard import ShardWriter

__all__ = [
    "EmbeddingMetadata",
    "FrameReader",
    "IndexMetadata",
    "PosteriorMetadata",
    "ShardWriter",
]
