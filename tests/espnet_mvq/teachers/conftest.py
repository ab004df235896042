"""Tiny models with random weights, saved as transformers saves them."""

import pytest
import torch

WAVE = dict(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    conv_dim=(8,) * 7,
    num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2,
)
WHISPER = dict(
    d_model=16,
    encoder_layers=2,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=16,
    decoder_ffn_dim=16,
    num_mel_bins=80,
    vocab_size=16,
    max_source_positions=50,
    max_target_positions=8,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=1,
)


@pytest.fixture(scope="session")
def save_model(tmp_path_factory):
    """Return a function that saves a tiny model and returns its folder."""
    import transformers

    def save(kind, seed=0, model="Model", folder="tiny", **options):
        torch.manual_seed(seed)
        defaults = WHISPER if kind == "Whisper" else WAVE
        config_class = getattr(transformers, f"{kind}Config")
        config = config_class(**{**defaults, **options})
        path = tmp_path_factory.mktemp(kind) / folder
        whole = getattr(transformers, f"{kind}Model")(config)
        part = whole.get_encoder() if model == "Encoder" else whole
        part.save_pretrained(path)
        return path

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
        # What lies in the padding must not matter
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
