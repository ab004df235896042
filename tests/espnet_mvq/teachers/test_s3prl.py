"""Teachers out of s3prl, offline: filterbanks and a model in a folder."""

import pytest
import torch
from corpus_builders import change_json

from espnet_mvq.teachers import TeacherError, build_teacher
from espnet_mvq.teachers.base import EmbeddingError


@pytest.fixture
def hubert_dir(save_model):
    from transformers import Wav2Vec2FeatureExtractor

    path = save_model("Hubert", feat_extract_norm="group")
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(path)
    return path


@pytest.fixture
def specs(hubert_dir):
    return {
        "fbank": ("fbank", None, 0),
        "hubert": ("hf_hubert_custom", str(hubert_dir), 1),
    }


def spec_of(upstream, checkpoint):
    return f"s3prl/{upstream}" + (f":{checkpoint}" if checkpoint else "")


@pytest.mark.parametrize("kind", ["fbank", "hubert"])
def test_equals_the_upstream_itself(specs, speech, kind):
    from s3prl.nn import S3PRLUpstream

    upstream, checkpoint, layer = specs[kind]
    model = S3PRLUpstream(upstream, path_or_url=checkpoint).eval()
    length = torch.tensor([9600])
    with torch.no_grad():
        states, lengths = model(speech[0][:1], length)
    teacher = build_teacher(spec_of(upstream, checkpoint), layer)
    actual, num_frames = teacher.embed(speech[0][:1], length)
    expected = states[layer][:, : int(lengths[layer])]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert num_frames.tolist() == lengths[layer].tolist()
    assert teacher.frame_shift_samples == model.downsample_rates[layer]
    assert (teacher.dim, teacher.layer) == (model.hidden_sizes[layer], layer)


@pytest.mark.parametrize("kind", ["fbank", "hubert"])
def test_embeddings_do_not_depend_on_the_batch(specs, check_batch_independence, kind):
    upstream, checkpoint, layer = specs[kind]
    teacher = build_teacher(spec_of(upstream, checkpoint), layer)
    check_batch_independence(teacher, [1, 2, 1])


def test_layers_are_counted_from_one(hubert_dir, speech):
    """As those of the same model read by transformers."""
    for layer in (0, 1, 2, -1):
        pair = [
            build_teacher(spec, layer)
            for spec in (
                f"s3prl/hf_hubert_custom:{hubert_dir}",
                f"transformers/{hubert_dir}",
            )
        ]
        actual, expected = (t.embed(speech[0][:1], speech[1][:1])[0] for t in pair)
        frames = min(actual.shape[1], expected.shape[1])
        assert abs(actual.shape[1] - expected.shape[1]) <= 1
        torch.testing.assert_close(
            actual[:, :frames], expected[:, :frames], rtol=1e-4, atol=1e-4
        )
        assert pair[0].layer == pair[1].layer


def test_all_layers_in_one_run(hubert_dir, check_layers):
    def build(layer):
        return build_teacher(f"s3prl/hf_hubert_custom:{hubert_dir}", layer)

    check_layers(build, -1, [0, 1, 2])


def test_id_stands_for_name_and_weights(save_model, hubert_dir):
    teacher = build_teacher(f"s3prl/hf_hubert_custom:{hubert_dir}")
    again = build_teacher(f"s3prl/hf_hubert_custom:{hubert_dir}")
    assert teacher.id == again.id
    assert teacher.id.startswith("s3prl/hf_hubert_custom:tiny@")
    other = save_model("Hubert", seed=1)
    (other / "preprocessor_config.json").write_bytes(
        (hubert_dir / "preprocessor_config.json").read_bytes()
    )
    assert build_teacher(f"s3prl/hf_hubert_custom:{other}").id != teacher.id


def test_filterbanks_have_the_same_id_each_time():
    ids = {build_teacher(f"s3prl/{n}", 0).id for n in ("mel", "mel", "linear")}
    assert len(ids) == 2


@pytest.mark.parametrize(
    "file, changes",
    [
        ("preprocessor_config.json", {"do_normalize": True}),
        ("config.json", {"hidden_act": "relu"}),
    ],
)
def test_id_stands_for_the_configuration_of_a_folder(hubert_dir, file, changes):
    spec = f"s3prl/hf_hubert_custom:{hubert_dir}"
    before = build_teacher(spec).id
    change_json(hubert_dir / file, changes)
    assert build_teacher(spec).id != before


@pytest.fixture
def save_cpc(tmp_path):
    """Return a function that saves a tiny CPC model as its own trainer does."""
    from s3prl.upstream.cpc.cpc_default_config import get_default_cpc_config
    from s3prl.upstream.cpc.feature_loader import getAR, getEncoder
    from s3prl.upstream.cpc.model import CPCModel

    def save(**options):
        torch.manual_seed(0)
        args = get_default_cpc_config()
        vars(args).update(hiddenEncoder=8, hiddenGar=8, **options)
        model = CPCModel(getEncoder(args), getAR(args))
        content = {"config": vars(args), "weights": model.state_dict()}
        torch.save(content, tmp_path / "cpc.pt")
        return f"s3prl/cpc_local:{tmp_path}/cpc.pt"

    return save


def test_id_stands_for_the_configuration_in_a_checkpoint(save_cpc):
    ids = [build_teacher(save_cpc(**o)).id for o in ({}, {}, {"normMode": "batchNorm"})]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    "upstream, offset",
    [("mel", 0), ("linear", 0), ("fbank_no_cmvn", 199.5), ("cpc", 79)],
)
def test_frame_shift_and_offset(save_cpc, upstream, offset):
    """A changed sample changes most the frames around it."""
    spec = save_cpc() if upstream == "cpc" else f"s3prl/{upstream}"
    teacher = build_teacher(spec, 0)
    assert (teacher.frame_shift_samples, teacher.frame_offset_samples) == (160, offset)
    waveform, misses = 0.1 * torch.randn(16000), []
    before = teacher.embed_batch([waveform])[0]
    for sample in range(8000, 8160, 10):
        changed = waveform.clone()
        changed[sample] += 1.0
        difference = (teacher.embed_batch([changed])[0] - before).abs().sum(1)
        differs = (difference > 0.1 * difference.max()).nonzero()
        centre = (float(differs[0]) + float(differs[-1])) / 2
        misses.append(offset + centre * 160 - sample)
    assert abs(sum(misses) / len(misses)) < 30


def test_frames_of_the_wave_models(hubert_dir):
    teacher = build_teacher(f"s3prl/hf_hubert_custom:{hubert_dir}")
    assert (teacher.frame_shift_samples, teacher.frame_offset_samples) == (320, 199.5)


def test_unknown_frame_offset_is_taken_with_a_warning(monkeypatch, caplog):
    unknown = "espnet_mvq.teachers.s3prl.find_frame_offset"
    monkeypatch.setattr(unknown, lambda *args: None)
    assert build_teacher("s3prl/fbank", 0).frame_offset_samples == 199.5
    assert "s3prl/fbank: the position of its frames is not known" in caplog.text
    caplog.clear()
    teacher = build_teacher("s3prl/fbank", 0, frame_offset_samples=12.5)
    assert teacher.frame_offset_samples == 12.5 and not caplog.text


def test_filterbanks_normalise_over_whole_utterances():
    waveform = torch.randn(50 * 16000) * torch.linspace(0.01, 1, 50 * 16000)
    actual = build_teacher("s3prl/fbank", 0).embed_batch([waveform])[0]
    half = len(actual) // 2
    assert actual.mean(0).abs().max() < 0.01 < actual[:half, 0].mean().abs()


@pytest.mark.parametrize("num_samples, upstream", [(1, "mel"), (850, "fbank")])
def test_speech_that_an_upstream_cannot_take(num_samples, upstream):
    teacher = build_teacher(f"s3prl/{upstream}", 0)
    message = f"teacher s3prl/{upstream} cannot embed {num_samples} samples"
    speech = torch.randn(num_samples)
    with pytest.raises(EmbeddingError, match=f"^the {message}"):
        teacher.embed_batch([speech])


@pytest.mark.parametrize("num_samples", [1, 100, 400])
def test_short_audio(specs, num_samples):
    upstream, checkpoint, layer = specs["hubert"]
    teacher = build_teacher(spec_of(upstream, checkpoint), layer)
    speech = torch.randn(1, num_samples)
    actual, lengths = teacher.embed(speech, torch.tensor([num_samples]))
    assert actual.shape == (1, int(lengths), 16) and actual.isfinite().all()


@pytest.mark.parametrize(
    "spec, message",
    [
        ("s3prl/wavlm_lage", "no upstream 'wavlm_lage'; did you mean .*wavlm_large"),
        ("s3prl/zzzzzz", "no upstream 'zzzzzz'; see s3prl's docs"),
        ("s3prl/hf_hubert_custom", "expected s3prl/hf_hubert_custom:CHECKPOINT"),
        ("s3prl/hubert_local", "expected s3prl/hubert_local:CHECKPOINT"),
        ("s3prl/fbank:x.pt", "expected no ':'"),
        ("s3prl/hubert_local:/none.pt", "no such checkpoint: /none.pt"),
    ],
)
def test_wrong_names_are_refused(spec, message):
    with pytest.raises(TeacherError, match=f"teacher {spec}: .*{message}"):
        build_teacher(spec)


def test_checkpoint_that_cannot_be_loaded(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"nothing")
    with pytest.raises(TeacherError, match="s3prl could not load it"):
        build_teacher(f"s3prl/hubert_local:{tmp_path}/x.pt")


def test_layer_out_of_range():
    with pytest.raises(TeacherError, match="got layer 1, expected 0 or -1"):
        build_teacher("s3prl/fbank", 1)
