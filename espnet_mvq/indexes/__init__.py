"""Files of codebook indexes or embeddings: arks, their scp, metadata beside it."""

from espnet_mvq.indexes.metadata import EmbeddingMetadata, IndexMetadata
from espnet_mvq.indexes.reader import FrameReader
from espnet_mvq.indexes.shard import ShardWriter

__all__ = ["EmbeddingMetadata", "FrameReader", "IndexMetadata", "ShardWriter"]
