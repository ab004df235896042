"""lhotse reads the exported cuts, and collates them as icefall's MVQ recipe does."""

import numpy as np
import pytest
from builders import SAMPLE_RATE, index_metadata, write_wavs
from corpus_builders import write_shard, write_table

from espnet_mvq.bin.export_indexes import main as export_indexes
from espnet_mvq.indexes.metadata import METADATA_NAME, SCP_NAME

lhotse = pytest.importorskip("lhotse")
NUM_FRAMES = {"b": 31, "a": 20, "sp0.9-é": 24}


@pytest.fixture
def arrays():
    return {
        utt_id: np.random.randint(0, 256, (count, 4)).astype(np.uint8)
        for utt_id, count in NUM_FRAMES.items()
    }


@pytest.fixture
def cuts(tmp_path, arrays):
    """Return a function that exports the indexes and loads the cuts."""
    lengths = {utt_id: 320 * count + 80 for utt_id, count in NUM_FRAMES.items()}
    write_wavs(tmp_path, lengths)
    write_table(tmp_path / "utt2num_samples", lengths)
    metadata = index_metadata(num_codebooks=4, codebook_size=256)
    _, scp, _ = write_shard(tmp_path / "shards", arrays, metadata)
    (tmp_path / SCP_NAME).write_text(scp.read_text())
    metadata.save(tmp_path / METADATA_NAME)

    def load(form):
        manifest = tmp_path / "cuts.jsonl.gz"
        options = ["--scp", str(tmp_path / SCP_NAME), "--data_dir", str(tmp_path)]
        options += ["--manifest", str(manifest), f"--{form}"]
        export_indexes([*options, str(tmp_path / "x.h5")])
        return lhotse.load_manifest_lazy(manifest)

    return load


@pytest.mark.parametrize("form", ["hdf5", "npy_dir"])
def test_indexes_are_collated_as_in_icefall(cuts, arrays, form):
    """From the join with the corpus's cuts to the tensors of the training step.

    `join_manifests` of vq_utils.py, the data set of asr_datamodule.py with noise, and
    `extract_codebook_indexes` of train.py, of pruned_transducer_stateless6.
    """
    from lhotse.dataset import CutMix, K2SpeechRecognitionDataset
    from lhotse.dataset.collation import collate_custom_field
    from lhotse.dataset.input_strategies import AudioSamples

    ours = {cut.id: cut for cut in cuts(form)}
    corpus = [cut.recording.to_cut() for cut in ours.values()]
    for cut in corpus:
        cut.codebook_indexes = ours[cut.id].codebook_indexes
        cut.supervisions = [
            lhotse.SupervisionSegment(cut.id, cut.id, 0.0, cut.duration, text="a")
        ]
    corpus = lhotse.CutSet.from_cuts(corpus)
    noise = CutMix(corpus.drop_supervisions(), p=1.0, snr=(10, 20), preserve_id=True)
    data_set = K2SpeechRecognitionDataset(
        input_strategy=AudioSamples(), cut_transforms=[noise], return_cuts=True
    )
    mixed = data_set[corpus]["supervisions"]["cut"]
    batch = [c if isinstance(c, lhotse.MonoCut) else c.tracks[0].cut for c in mixed]
    indexes, lengths = collate_custom_field(batch, "codebook_indexes", pad_value=-100)

    utt_ids = [cut.id for cut in batch]
    assert sorted(utt_ids) == sorted(arrays)
    assert lengths.tolist() == [NUM_FRAMES[utt_id] for utt_id in utt_ids]
    assert indexes.shape == (3, 31, 4) and not indexes.is_floating_point()
    for row, utt_id in zip(indexes, utt_ids):
        count = NUM_FRAMES[utt_id]
        np.testing.assert_array_equal(row[:count], arrays[utt_id])
        assert (row[count:] == -100).all()


def test_cuts_are_valid_and_have_audio(cuts, arrays):
    from lhotse import validate

    for cut in cuts("hdf5"):
        validate(cut)
        assert cut.sampling_rate == SAMPLE_RATE
        assert cut.load_audio().shape == (1, 320 * NUM_FRAMES[cut.id] + 80)
        first = cut.truncate(duration=0.2)
        np.testing.assert_array_equal(
            first.load_codebook_indexes(), arrays[cut.id][:10]
        )
