"""Sentencepiece models and token lists of the recipes."""

import pytest
import sentencepiece

SENTENCES = ["THE CAT SAT", "THE HAT", "A CAT AND A HAT", "SHE SAT", "THAT"] * 3


@pytest.fixture
def train_bpe(load_script):
    return load_script("egs/TEMPLATE/asr1/pyscripts/train_bpe.py")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text"
    path.write_text("".join(f"utt{i} {s}\n" for i, s in enumerate(SENTENCES)))
    return path


def arguments(text, outdir, nbpe=16, mode="unigram"):
    options = ["--text", text, "--outdir", outdir, "--nbpe", nbpe, "--mode", mode]
    return [str(option) for option in options]


@pytest.mark.parametrize("mode", ["unigram", "bpe"])
def test_token_list_is_espnets(train_bpe, text, tmp_path, mode):
    outdir = tmp_path / "data" / "bpe"
    train_bpe.main(arguments(text, outdir, mode=mode))
    names = {p.name for p in outdir.iterdir()}
    assert names == {"bpe.model", "bpe.vocab", "tokens.txt"}
    vocab = [row.split("\t")[0] for row in (outdir / "bpe.vocab").open()]
    assert vocab[:3] == ["<unk>", "<s>", "</s>"] and len(vocab) == 16
    tokens = (outdir / "tokens.txt").read_text().splitlines()
    assert tokens == ["<blank>", "<unk>", *vocab[3:], "<sos/eos>"]
    processor = sentencepiece.SentencePieceProcessor(str(outdir / "bpe.model"))
    assert set(processor.encode_as_pieces("THE CAT SAT")) <= set(tokens)
    assert [p.name for p in outdir.parent.iterdir()] == ["bpe"]


def test_utterance_ids_are_not_trained_on(train_bpe, text, tmp_path):
    train_bpe.main(arguments(text, tmp_path / "out"))
    tokens = (tmp_path / "out" / "tokens.txt").read_text()
    assert not any(c.isdigit() for c in tokens)


def test_files_equal_those_of_spm_train(train_bpe, text, tmp_path):
    (tmp_path / "words").write_text("".join(f"{s}\n" for s in SENTENCES))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "words"),
        model_prefix=str(tmp_path / "ref"),
        vocab_size=16,
        minloglevel=2,
    )
    train_bpe.main(arguments(text, tmp_path / "out"))
    vocab = (tmp_path / "out" / "bpe.vocab").read_text()
    assert vocab == (tmp_path / "ref.vocab").read_text()


def test_equal_text_gives_equal_bytes(train_bpe, text, tmp_path):
    for name in "ab":
        train_bpe.main(arguments(text, tmp_path / name))
    first, second = ((tmp_path / n / "bpe.model").read_bytes() for n in "ab")
    assert first == second


@pytest.mark.parametrize("mode", ["unigram", "bpe"])
def test_too_many_pieces_names_the_largest_number(
    train_bpe, text, tmp_path, caplog, mode
):
    with pytest.raises(SystemExit) as error:
        train_bpe.main(arguments(text, tmp_path / "out", 500, mode))
    assert error.value.code == 1 and len(caplog.records) == 1
    assert "--nbpe 500 is too high for this text" in caplog.text
    assert not (tmp_path / "out").exists()
    largest = int(caplog.messages[0].split()[-1])
    train_bpe.main(arguments(text, tmp_path / "out", largest, mode))
    with pytest.raises(SystemExit):
        train_bpe.main(arguments(text, tmp_path / "out", largest + 1, mode))


def test_too_few_pieces(train_bpe, text, tmp_path, caplog):
    with pytest.raises(SystemExit):
        train_bpe.main(arguments(text, tmp_path / "out", 4))
    assert "--nbpe 4 is too low for this text" in caplog.text


@pytest.mark.parametrize("content", [None, "", "utt1\nutt2 \n"])
def test_no_words(train_bpe, tmp_path, caplog, content):
    text = tmp_path / "text"
    if content is not None:
        text.write_text(content)
    with pytest.raises(SystemExit) as error:
        train_bpe.main(arguments(text, tmp_path / "out"))
    assert error.value.code == 1 and len(caplog.records) == 1
    assert str(text) in caplog.text
