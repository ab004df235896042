"""Tiny models with random weights, saved as transformers saves them."""

import pytest
import torch
from corpus_builders import save_transformers


@pytest.fixture(scope="session")
def save_model(tmp_path_factory):
    """Return a function that saves a tiny model and returns its folder."""

    def save(kind, seed=0, model="Model", folder="tiny", **options):
        path = tmp_path_factory.mktemp(kind) / folder
        return save_transformers(path, kind, model, seed, **options)

    return save


@pytest.fixture
def check_batch_independence(speech):
    """Return a function that compares a batch with its utterances alone.

    Two of the utterances are of one length, so that every teacher batches some.
    """

    def check(teacher, batch_sizes):
        waveforms, lengths = speech
        waveforms = torch.cat([waveforms, waveforms[1:2].flip(1).roll(8000, 1)])
        lengths = torch.cat([lengths, lengths[1:2]])
        forward, sizes = teacher._forward, []

        def counting_forward(batch, batch_lengths):
            sizes.append(len(batch))
            return forward(batch, batch_lengths)

        teacher._forward = counting_forward
        teacher.batch_samples = 4 * 9600
        # Values of the padding must not matter
        padding = torch.arange(9600) >= lengths[:, None]
        together, frames = teacher.embed(waveforms.masked_fill(padding, 7.0), lengths)
        assert sizes == batch_sizes
        assert together.dtype == torch.float32 and together.shape[2] == teacher.dim
        assert together.shape[1] == int(frames.max()) and not together.requires_grad
        for n, length in enumerate(lengths.tolist()):
            alone, count = teacher.embed(
                waveforms[n : n + 1, :length], lengths[n : n + 1]
            )
            assert frames[n] == count[0] == alone.shape[1]
            assert abs(int(count[0]) - length / teacher.frame_shift_samples) <= 2
            torch.testing.assert_close(
                together[n, : frames[n]], alone[0], rtol=0, atol=2e-5
            )
            assert not together[n, frames[n] :].any()

    return check


@pytest.fixture
def check_layers(speech):
    """Return a function that compares `embed_layers` with teachers of single layers."""

    def check(build, top, expected, waveforms=None):
        if waveforms is None:
            waveforms = [row[:n] for row, n in zip(speech[0], speech[1].tolist())]
        teacher = build(top)
        assert teacher.layers == expected
        together = teacher.embed_layers(waveforms)
        for position, layer in enumerate(expected):
            alone = build(layer).embed_batch(waveforms)
            for actual, single in zip(together, alone):
                assert actual.shape[1] == len(expected)
                torch.testing.assert_close(
                    actual[:, position], single, rtol=0, atol=2e-5
                )

    return check
