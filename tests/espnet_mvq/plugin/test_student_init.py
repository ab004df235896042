"""Students that start from their teacher, loaded by ESPnet's own `--init_param`."""

import pytest
import torch
import yaml
from builders import ATTENTION, INTERCTC, MVQ_CONF, TINY_MODEL
from corpus_builders import save_espnet

import espnet_mvq
from espnet_mvq.bin.init_student import main
from espnet_mvq.plugin.student_init import start_from_teacher

SIZES = {**ATTENTION, "output_size": 8}
CONFORMER = {**TINY_MODEL, "encoder": "conformer"}
# Without what its streaming form lacks: relative positions, and swish outside of the
# convolutions. The streaming encoder sees short speech as one chunk.
ABSOLUTE = {"pos_enc_layer_type": "abs_pos", "selfattention_layer_type": "selfattn"}
ABSOLUTE.update(activation_type="relu", macaron_style=True)
CHUNKS = {"block_size": 40, "hop_size": 16, "look_ahead": 8}


@pytest.fixture
def teacher(tmp_path):
    """Return a function that saves a conformer as the teacher, and returns it."""

    def save(num_blocks=4, conf={}, **options):
        conf = {**SIZES, "num_blocks": num_blocks, **conf}
        made = {**CONFORMER, "encoder_conf": conf, **options}
        model = save_espnet(tmp_path / "asr_big", made)
        for name, value in model.state_dict().items():
            if not name.startswith("frontend."):  # no 0 or 1, as before a training
                value.copy_(0.1 + torch.rand(value.shape) if value.dim() else 7)
        torch.save(model.state_dict(), tmp_path / "asr_big" / "valid.acc.ave.pth")
        return model

    return save


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a student; it returns notes, model, first weights.

    The weights are loaded as in a training of ESPnet, which takes no others and leaves
    none of the named ones out.
    """

    def run(num_blocks=2, conf={}, blocks=None, mvq=False, token_file=None, **options):
        from espnet2.tasks.asr import ASRTask
        from espnet2.torch_utils.load_pretrained_model import load_pretrained_model

        espnet_mvq.register()
        conf = {**SIZES, "num_blocks": num_blocks, **conf}
        config = {**CONFORMER, "encoder_conf": conf, **options}
        if mvq:
            mvq_conf = {**MVQ_CONF, "layer": 1}
            model_conf = {**config["model_conf"], "mvq_conf": mvq_conf}
            config.update(model="mvq", model_conf=model_conf)
        student = tmp_path / "small.yaml"
        student.write_text(yaml.safe_dump(config) + "# the end\n")
        made = start_from_teacher(
            tmp_path / "asr_big", student, blocks=blocks, token_list=token_file
        )
        written = yaml.safe_load(made.path.read_text())
        init_param = written.pop("init_param")
        assert made.path == tmp_path / "small_init.yaml" and written == config
        args = ASRTask.get_parser().parse_args(["--config", str(made.path)])
        args.token_list = args.token_list or TINY_MODEL["token_list"]
        model = ASRTask.build_model(args).eval()
        first = {name: value.clone() for name, value in model.state_dict().items()}
        for text in init_param:
            load_pretrained_model(text, model, ignore_init_mismatch=False)
        return made, model, first

    return run


def moved(model, first):
    """Return the names of weights that are no longer as drawn, without numbers."""
    state = model.state_dict()
    return {name for name in first if not torch.equal(state[name], first[name])}


def encode(model, speech):
    with torch.no_grad():
        return model.encode(*speech)[0]


@pytest.mark.parametrize("mvq", [False, True], ids=["plain", "mvq"])
@pytest.mark.parametrize(
    "deep, shallow, chosen, expected",
    [
        (4, 2, None, (2, 4)),
        (4, 3, None, (1, 3, 4)),
        (4, 1, [3], (3,)),
        # Of the names, encoders.1 is the beginning of encoders.10.
        (11, 2, [2, 11], (2, 11)),
    ],
)
def test_blocks_are_those_of_the_teacher(
    teacher, start, deep, shallow, chosen, expected, mvq
):
    source = teacher(deep).state_dict()
    made, model, first = start(shallow, blocks=chosen, mvq=mvq)
    assert made.blocks == expected
    state = model.state_dict()
    for name in moved(model, first):
        origin = name
        for number, block in enumerate(expected):
            before, after = f"encoders.{number}.", f"encoders.{block - 1}."
            if before in name:
                origin = name.replace(before, after)
        assert torch.equal(state[name], source[origin]), name
    kept = {name.split(".")[0] for name in set(first) - moved(model, first)}
    assert kept - {"mvq"} == {"frontend"}
    assert made.notes[0].endswith("encoder.after_norm, decoder, ctc")
    assert len(made.notes) == 1


def test_student_with_all_blocks_encodes_as_the_teacher(teacher, start, speech):
    source = teacher()
    _, model, _ = start(4)
    assert torch.equal(encode(model, speech), encode(source, speech))


def test_streaming_student_encodes_short_speech_as_the_teacher(teacher, start, speech):
    """The names of the input layer and of two norms in each block differ."""
    source = teacher(2, {**ABSOLUTE, "normalize_before": True})
    made, model, _ = start(
        2,
        {**CHUNKS, "activation_type": "relu", "macaron_style": True},
        encoder="contextual_block_conformer",
    )
    assert len(made.notes) == 1
    torch.testing.assert_close(encode(model, speech), encode(source, speech))


def test_what_does_not_fit_is_listed(teacher, start):
    source = teacher(2, {"cnn_module_kernel": 5}).state_dict()
    made, model, first = start(
        1, {**CHUNKS, "cnn_module_kernel": 3}, encoder="contextual_block_conformer"
    )
    lines = [line for line in made.notes if not line.startswith("taken")]
    depthwise, attention = "conv_module.depthwise_conv.weight", "self_attn"
    block, none = "encoder.encoders.*", "of the teacher: the student has none"
    assert sorted(lines) == [
        f"left out: {block}.{attention}.linear_pos.weight {none}",
        f"left out: {block}.{attention}.pos_bias_u {none}",
        f"left out: {block}.{attention}.pos_bias_v {none}",
        f"random: {block}.{depthwise}: (8, 1, 3), in the teacher (8, 1, 5)",
    ]
    kept = {n for n in set(first) - moved(model, first) if n.startswith("encoder.")}
    assert kept == {f"encoder.encoders.0.{depthwise}"}
    norm = model.state_dict()["encoder.encoders.0.norm1.weight"]
    assert torch.equal(norm, source["encoder.encoders.1.norm_mha.weight"])


@pytest.mark.parametrize(
    "tokens, reason",
    [
        (None, "the student's tokens are not known; give --token_list"),
        ("abcde", "the teacher has other tokens"),
        (TINY_MODEL["token_list"], None),
    ],
)
def test_parts_that_depend_on_tokens(teacher, start, tmp_path, tokens, reason):
    teacher(2, INTERCTC)
    path = None
    if tokens is not None:
        path = tmp_path / "tokens.txt"
        path.write_text("".join(f"{token}\n" for token in tokens))
    made, model, first = start(2, INTERCTC, token_file=path, token_list=None)
    parts = {"encoder.conditioning_layer", "decoder", "ctc"}
    expected = {f"random: {part}: {reason}" for part in parts if reason}
    assert set(made.notes[1:]) == expected
    taken = {n for n in moved(model, first) if n.startswith(tuple(parts))}
    assert bool(taken) == (reason is None)


def test_smaller_decoder_starts_at_random(teacher, start):
    teacher(2, decoder_conf={**ATTENTION, "num_blocks": 2})
    made, model, first = start(2)
    assert made.notes[1:] == (
        "random: decoder: the teacher has none, or one of other sizes",
    )
    assert not any(name.startswith("decoder.") for name in moved(model, first))


def test_training_starts_from_the_teacher(teacher, write_training, tmp_path):
    """One epoch of ESPnet with the MVQ loss, whose steps have length 0."""
    from espnet2.tasks.asr import ASRTask

    espnet_mvq.register()
    source = teacher(4).state_dict()
    conf = {**CONFORMER, "encoder_conf": {**SIZES, "num_blocks": 2}}
    path = write_training(
        encoder=conf["encoder"],
        encoder_conf=conf["encoder_conf"],
        optim_conf={"lr": 0.0},
        max_epoch=1,
    )
    main(["--teacher_exp", f"{tmp_path}/asr_big", "--student_config", str(path)])
    ASRTask.main(cmd=["--config", f"{tmp_path}/train_init.yaml"])
    state = torch.load(tmp_path / "exp" / "1epoch.pth", weights_only=True)
    assert float(state["mvq.num_updates"]) == 2
    for name in ("self_attn.linear_q.weight", "norm_ff.bias"):
        for number, block in enumerate((1, 3)):
            trained = state[f"encoder.encoders.{number}.{name}"]
            assert torch.equal(trained, source[f"encoder.encoders.{block}.{name}"])
    for name in ("encoder.embed.out.0.weight", "ctc.ctc_lo.weight"):
        assert torch.equal(state[name], source[name])


@pytest.mark.parametrize(
    "options, blocks, message",
    [
        ({"conf": {"attention_heads": 4}}, None, "got attention_heads 4"),
        ({"conf": {"rel_pos_type": "latest"}}, None, "got rel_pos_type latest"),
        ({}, [4, 2], "--blocks: got 4 2, expected 2 ascending numbers from 1 to 4"),
        ({"decoder_conf": {"colour": 1}}, None, "the student cannot be built"),
    ],
)
def test_misuse_is_refused(teacher, start, tmp_path, options, blocks, message):
    """More rows are in tests/bad_inputs/table.yaml."""
    teacher()
    with pytest.raises(ValueError, match=message):
        start(blocks=blocks, **options)
    assert not (tmp_path / "small_init.yaml").exists()


def test_checkpoint_of_another_model_is_refused(teacher, start, tmp_path):
    teacher(conf={"output_size": 16, "linear_units": 16})
    path = tmp_path / "asr_big" / "config.yaml"
    path.write_text(path.read_text().replace("output_size: 16", "output_size: 8"))
    with pytest.raises(ValueError, match="no weight of the blocks has name and shape"):
        start()


def test_encoder_without_blocks_is_refused(teacher, start):
    recurrent = {"num_layers": 1, "hidden_size": 8, "output_size": 8}
    options = {"encoder": "rnn", "encoder_conf": recurrent}
    teacher(**options)
    with pytest.raises(ValueError, match="got an encoder without numbered blocks"):
        start(**options)
