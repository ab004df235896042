"""Files of codebook indexes: uint8 arks, their scp, and the metadata beside it."""

from espnet_mvq.indexes.metadata import IndexMetadata
from espnet_mvq.indexes.reader import CodebookIndexReader
from espnet_mvq.indexes.shard import ShardWriter

__all__ = ["CodebookIndexReader", "IndexMetadata", "ShardWriter"]
