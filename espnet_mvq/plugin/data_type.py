"""ESPnet data type `mvq_ark`: codebook indexes by utterance."""

from espnet2.train.dataset import DATA_TYPES

from espnet_mvq.indexes import CodebookIndexReader

# ESPnet takes the first entry that the type's name begins with; none of its own is a
# prefix of this one.
NAME = "mvq_ark"


def register_data_type() -> None:
    """Add the data type to ESPnet's table."""
    DATA_TYPES[NAME] = dict(
        func=CodebookIndexReader,
        kwargs=[],
        help="Codebook indexes of espnet_mvq (uint8, frames x codebooks); missing "
        "utterances read as empty. codebook_indexes.json must lie beside the scp."
        "\n\n"
        "   utterance_id_a codebook_indexes.1.ark:15\n"
        "   utterance_id_b codebook_indexes.1.ark:5231\n"
        "   ...",
    )
