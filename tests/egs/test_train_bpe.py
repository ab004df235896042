"""Sentencepiece models and token lists of the recipes."""

import pytest
import sentencepiece
from corpus_builders import load_script

train_bpe = load_script("egs/TEMPLATE/asr1/pyscripts/train_bpe.py")

SENTENCES = ["THE CAT SAT", "THE HAT", "A CAT AND A HAT", "SHE SAT", "THAT"] * 3


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text"
    path.write_text("".join(f"utt{i} {s}\n" for i, s in enumerate(SENTENCES)))
    return path


def arguments(text, outdir, nbpe=16, mode="unigram"):
    options = ["--text", text, "--outdir", outdir, "--nbpe", nbpe, "--mode", mode]
    return [str(option) for option in options]


@pytest.mark.parametrize("mode", ["unigram", "bpe"])
def test_token_list_is_espnets(text, tmp_path, mode):
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


def test_utterance_ids_are_not_trained_on(text, tmp_path):
    train_bpe.main(arguments(text, tmp_path / "out"))
    tokens = (tmp_path / "out" / "tokens.txt").read_text()
    assert not any(c.isdigit() for c in tokens)


def test_files_equal_those_of_spm_train(text, tmp_path):
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


def test_equal_text_gives_equal_bytes(text, tmp_path):
    for name in "ab":
        train_bpe.main(arguments(text, tmp_path / name))
    first, second = ((tmp_path / n / "bpe.model").read_bytes() for n in "ab")
    assert first == second


@pytest.mark.parametrize("mode", ["unigram", "bpe"])
def test_too_many_pieces_names_the_largest_number(
    text, tmp_path, ends_with_error, mode
):
    outdir = tmp_path / "out"
    error = ends_with_error(train_bpe.main, arguments(text, outdir, 500, mode))
    assert "--nbpe 500 is too high for this text" in error
    assert not outdir.exists()
    largest = int(error.split()[-1])
    train_bpe.main(arguments(text, outdir, largest, mode))
    ends_with_error(train_bpe.main, arguments(text, outdir, largest + 1, mode))


def test_too_few_pieces(text, tmp_path, ends_with_error):
    error = ends_with_error(train_bpe.main, arguments(text, tmp_path / "out", 4))
    assert "--nbpe 4 is too low for this text" in error


@pytest.mark.parametrize("content", [None, "", "utt1\nutt2 \n"])
def test_no_words(tmp_path, ends_with_error, content):
    text = tmp_path / "text"
    if content is not None:
        text.write_text(content)
    error = ends_with_error(train_bpe.main, arguments(text, tmp_path / "out"))
    assert str(text) in error
