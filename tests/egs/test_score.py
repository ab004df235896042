"""Error rates and the results page."""

import json

import pytest
import sentencepiece
from corpus_builders import load_script

score = load_script("egs/TEMPLATE/asr1/pyscripts/score.py")
results_table = load_script("egs/TEMPLATE/asr1/pyscripts/results_table.py")

REFS = {"u1": "the cat sat", "u2": "a dog", "u3": "on the mat"}
HYPS = {"u1": "the hat sat down", "u2": "", "u3": "on the mat"}


def write_text(path, texts):
    path.write_text("".join(f"{u} {words}\n" for u, words in texts.items()))
    return str(path)


@pytest.fixture
def run(tmp_path):
    def run_main(refs, hyps, *options, outdir="score"):
        ref = write_text(tmp_path / "ref", refs)
        hyp = write_text(tmp_path / "hyp", hyps)
        out = tmp_path / outdir
        score.main(["--ref", ref, "--hyp", hyp, "--outdir", str(out), *options])
        results = sorted(out.glob("score_*/result.json"))
        return {p.parent.name: json.loads(p.read_text()) for p in results}

    return run_main


def test_word_error_rate_counted_by_hand(run):
    result = run(REFS, HYPS)["score_wer"]
    assert result == {
        "metric": "wer",
        "num_sentences": 3,
        "num_tokens": 8,
        "correct": 5,
        "substitutions": 1,
        "deletions": 2,
        "insertions": 1,
        "errors": 4,
        "sentence_errors": 2,
        "error_rate": 50.0,
        "sentence_error_rate": pytest.approx(200 / 3),
    }


def test_a_space_is_a_character(run):
    result = run({"u": "a b"}, {"u": "ab"})["score_cer"]
    assert (result["num_tokens"], result["deletions"]) == (3, 1)


def edit_distance(a, b):
    """Levenshtein distance, the plain way."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(row[-1] + 1, previous[j] + 1, previous[j - 1] + (x != y)))
    return row[-1]


def test_errors_are_the_edit_distance(run):
    results = run(REFS, HYPS)
    assert list(results) == ["score_cer", "score_wer"]
    for name, split in [("score_wer", str.split), ("score_cer", list)]:
        errors = sum(edit_distance(split(REFS[u]), split(HYPS[u])) for u in REFS)
        assert results[name]["errors"] == errors


def test_token_error_rate(run, tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(REFS.values()),
        model_prefix=str(tmp_path / "bpe"),
        vocab_size=16,
        minloglevel=2,
    )
    model = str(tmp_path / "bpe.model")
    encode = sentencepiece.SentencePieceProcessor(model).encode_as_pieces
    result = run(REFS, HYPS, "--bpemodel", model)["score_ter"]
    assert result["num_tokens"] == sum(len(encode(words)) for words in REFS.values())
    errors = sum(edit_distance(encode(REFS[u]), encode(HYPS[u])) for u in REFS)
    assert result["errors"] == errors


def test_alignment_can_be_read(run, tmp_path):
    run(REFS, HYPS)
    text = (tmp_path / "score" / "score_wer" / "result.txt").read_text()
    assert text.startswith("wer: 50.00 % = 4 of 8 (1 S, 2 D, 1 I); 2 of 3 sentences")
    assert (
        "u1 C=2 S=1 D=0 I=1\n"
        "REF:  the cat sat ****\n"
        "HYP:  the hat sat down\n"
        "EDIT:     S       I\n"
    ) in text
    assert "REF:  a dog\nHYP:  * ***\nEDIT: D D\n" in text


def test_missing_hypothesis_counts_as_empty(run, caplog):
    result = run(REFS, {"u1": REFS["u1"], "u3": REFS["u3"]})["score_wer"]
    assert result["deletions"] == 2
    assert "1 of 3 utterances have no hypothesis" in caplog.text
    assert "count as empty: u2" in caplog.text


def test_empty_reference_counts_insertions(run):
    result = run({"u1": "", "u2": "a"}, {"u1": "b c", "u2": "a"})["score_wer"]
    assert (result["insertions"], result["error_rate"]) == (2, 200.0)


def test_refusals(run, ends_with_error, tmp_path):
    assert "no reference: u9" in ends_with_error(run, REFS, {"u9": "x"})
    assert "have no words" in ends_with_error(run, {"u1": ""}, {"u1": "a"})
    model = str(tmp_path / "no.model")
    assert f"{model}: " in ends_with_error(run, REFS, HYPS, "--bpemodel", model)
    with pytest.raises(FileNotFoundError, match="no such file"):
        score.read_text(tmp_path / "nowhere")
    (tmp_path / "twice").write_text("u1 a\nu1 b\n")
    with pytest.raises(ValueError, match="twice:2: got utterance u1 again"):
        score.read_text(tmp_path / "twice")


def test_results_page(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(REFS, HYPS, outdir="exp/asr_x/decode/test/score")
    run(REFS, REFS, outdir="exp/asr_x/decode/dev")
    results_table.main(["--exp", "exp/asr_x", "--title", "RESULTS of a test"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["# RESULTS of a test", "## Environments"]
    for item in ["date", "python version", "espnet version", "pytorch version"]:
        assert sum(line.startswith(f"- {item}: `") for line in lines) == 1
    start = lines.index("## exp/asr_x")
    assert lines[start + 1 : start + 8] == [
        "### WER",
        "",
        "|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|",
        "|---|---|---|---|---|---|---|---|---|",
        "|decode/dev|3|8|100.0|0.0|0.0|0.0|0.0|0.0|",
        "|decode/test|3|8|62.5|12.5|25.0|12.5|50.0|66.7|",
        "",
    ]
    assert lines[start + 8] == "### CER" and "### TER" not in lines


@pytest.mark.parametrize("content", [None, "", "{", "{}"])
def test_results_page_without_results(tmp_path, ends_with_error, content):
    folder = tmp_path / "exp" / "decode" / "score_wer"
    folder.mkdir(parents=True)
    if content is not None:
        (folder / "result.json").write_text(content)
    for exp in [tmp_path / "exp", tmp_path / "nowhere"]:
        error = ends_with_error(results_table.main, ["--exp", str(exp)])
        assert str(exp) in error
