"""Tokens: any bytes round-trip, the same bytes are tested whatever the tokens, and bits are per byte."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import likely
from likely import families
from likely.checks import Room, check_model
from likely.cli import app
from likely.dataset import Data, Split
from likely.errors import DataError, UsageError
from likely.evaluation.gallery import gallery
from likely.evaluation.measure import held_out_bits
from likely.evaluation.stretch import stretch_bits
from likely.families.autoregressive import Autoregressive
from likely.logprob import LogProb, bits
from likely.nets.causal.inputs import Subwords, hashed_grams
from likely.sources import describe, load, read, rebuild, write
from likely.sources.tokens import BYTES, decode, encode, learn
from likely.space import Space

SHARED = Path(__file__).parents[2] / "shared/data"
VERSE = b"the cat sat on the mat; the rat sat on the cat. caf\xc3\xa9 99 times!\n\n"
VOCABULARIES = {"bytes": (), "pairs": learn(VERSE * 9, 270), "words": learn(VERSE * 9, "words")}


@settings(max_examples=40)
@given(text=st.binary(max_size=300) | st.text().map(str.encode), kind=st.sampled_from(sorted(VOCABULARIES)))
@example(text=b"", kind="pairs")
@example(text=b"\xff", kind="words")
@example(text=bytes(range(256)) * 2, kind="pairs")
@example(text=b"a" * 5000 + b" " * 5000 + b"\n" * 300, kind="pairs")
def test_any_bytes_round_trip(text, kind):
    vocabulary = VOCABULARIES[kind]
    ids = encode(text, vocabulary)
    assert ids.dtype == torch.int64
    assert decode(ids, vocabulary) == text


def test_vocabulary_is_the_bytes_and_then_what_was_learnt_and_is_learnt_alike_again():
    for kind, size in (("pairs", 270), ("words", "words")):
        vocabulary = VOCABULARIES[kind]
        assert vocabulary[:256] == BYTES
        assert len(set(vocabulary)) == len(vocabulary)
        assert " the" in vocabulary
        assert learn(VERSE * 9, size) == vocabulary
    assert len(VOCABULARIES["pairs"]) == 270
    assert {" sat", " caf\xc3\xa9", " times"} <= set(VOCABULARIES["words"])


def test_text_is_merged_by_rank_as_its_vocabulary_says():
    vocabulary = (*BYTES, "ab", "bc", "cd", "abcd")
    assert [vocabulary[i] for i in encode(b"abcd", vocabulary)] == ["abcd"]  # a piece that is a token is that token
    assert [vocabulary[i] for i in encode(b"abc", vocabulary)] == ["ab", "c"]  # "ab" ranks before "bc"
    assert [vocabulary[i] for i in encode(b"xbcd", vocabulary)] == ["x", "bc", "d"]
    assert [vocabulary[i] for i in encode(b"xabcd", vocabulary)] == ["x", "abcd"]  # ab, cd, abcd
    assert decode(torch.tensor([259, 97, -1, -1]), vocabulary) == b"abcda"


def test_segmentation_is_that_of_the_library_that_learnt_it():
    """The merges are not stored: they are told from the order of the vocabulary alone."""
    from tokenizers import Tokenizer, models, trainers

    from likely.sources.tokens import _pieces

    text = Path(__file__).read_bytes()
    reference = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=600, min_frequency=2, initial_alphabet=list(BYTES), show_progress=False)
    reference.train_from_iterator(_pieces(text), trainer)
    expected = [token.id for piece in _pieces(text) for token in reference.model.tokenize(piece)]
    assert encode(text, learn(text, 600)).tolist() == expected


def test_same_bytes_are_tested_and_nothing_of_them_is_learnt(tmp_path):
    text = VERSE * 20 + b"zyzzyva zyzzyva zyzzyva " * 8  # only in the last tenth
    path = tmp_path / "verse.txt"
    path.write_bytes(text)
    plain = load(path, window=16)
    for size in (270, "words"):
        data = load(path, tokens=size, window=16)
        for part in ("train", "valid", "test"):
            assert decode(data.splits[part].stream, data.space.vocabulary) == bytes(plain.splits[part].stream.tolist())
        assert not any("zyz" in spelling for spelling in data.space.vocabulary)
        assert data.card["tokens"] == len(data.space.vocabulary)
        again = rebuild(json.loads(json.dumps(data.card)))
        assert again.space == data.space
        assert torch.equal(again.test.x, data.test.x)
    assert Space.from_json(json.loads(json.dumps(data.space.to_json()))) == data.space


@pytest.mark.parametrize("size", [255, 0, -1, "sentences"])
def test_sizes_that_cannot_be_learnt_are_refused(size):
    with pytest.raises(UsageError, match="tokens"):
        load(VERSE * 9, tokens=size)


def test_only_texts_have_tokens():
    with pytest.raises(UsageError, match="parts of texts"):
        load(torch.zeros(9, 4, 4, dtype=torch.uint8), tokens=270)


def test_bits_are_per_byte_whatever_the_tokens_and_bound_from_below():
    """A uniform model of V tokens costs log2 V bits a token; per byte that is divided by the bytes a token spells."""
    data = load(VERSE * 40, tokens=270, window=8)
    model = Autoregressive(data.space, size="tiny", adapt=False).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    found, blocks = stretch_bits(model, data)
    tokens, spelt = len(data.test.stream), len(decode(data.test.stream, data.space.vocabulary))
    assert found.value == pytest.approx(math.log2(270) * tokens / spelt, rel=1e-5)
    assert (found.unit, found.kind, found.n, blocks.kind) == ("bits/byte", "lower bound", spelt, "lower bound")
    assert found.how.endswith("one segmentation (270 tokens)")
    window = read(b"the cat", data.space)
    scored = bits(model.log_prob(window), data.space, window)
    assert scored.value == pytest.approx(math.log2(270) * int((window >= 0).sum()) / 7, rel=1e-5)
    assert str(scored).startswith("<= ")
    rows = likely.score(model, window)
    assert rows[0]["bits"] == pytest.approx(scored.value)
    assert (rows[0]["kind"], rows[0]["unit"]) == ("lower bound", "bits/byte")
    with pytest.raises(DataError, match="differ in bytes"):
        bits(model.log_prob(window), data.space)


@pytest.mark.parametrize("family", [name for name in families.names() if "sequence" in families.family_class(name).layouts])
def test_every_family_of_texts_is_scored_by_the_bytes(family):
    data = load(VERSE * 40, tokens=270, window=8)
    model = likely.fit(data, family, size="tiny", steps=2, progress=False).model
    found = held_out_bits(model, data)
    assert (found.unit, found.kind, found.n) == ("bits/byte", "lower bound", len(decode(data.test.stream, data.space.vocabulary)))
    assert 0 < found.value < 9
    drawn = gallery(data.space, model.sample(2))["excerpts"]
    assert all(isinstance(text, str) for text in drawn)


def test_other_segmentations_add_to_the_mass_of_the_bytes():
    """By brute force on a space of two bytes: log p(bytes) is the log of a sum, of which encode gives one term."""
    vocabulary = (*BYTES, "ab")
    p = torch.tensor([0.5 / 256] * 256 + [0.5], dtype=torch.float64).log()
    one = p[encode(b"ab", vocabulary)].sum()
    spellings = [t for t in ([256], [97, 98]) if decode(torch.tensor(t), vocabulary) == b"ab"]
    every = torch.stack([p[torch.tensor(t)].sum() for t in spellings]).logsumexp(0)
    assert len(spellings) == 2
    assert one < every
    assert likely.logprob.of_text(LogProb(one[None], "exact"), Space.tokens(2, vocabulary)).kind == "lower bound"
    assert likely.logprob.of_text(LogProb(one[None], "estimate"), Space.tokens(2, vocabulary)).kind == "estimate"
    assert likely.logprob.of_text(LogProb(one[None], "exact"), Space.sequence(2)).kind == "exact"


def test_trivial_code_lengths_are_per_byte():
    data = load(VERSE * 40, tokens=270)
    facts = describe(data)
    size = len(decode(data.test.stream, data.space.vocabulary)) / len(data.test.stream)
    assert facts["trivial"]["uniform"] == pytest.approx(math.log2(270) / size)
    assert (facts["unit"], facts["counted_in"], facts["entropy"][0]["name"]) == ("bits/byte", "tokens", "token")
    assert data.nats_per_unit == pytest.approx(math.log(2) * data.space.dims * data.card["bytes_per_token"], rel=0.02)


def test_samples_are_written_and_shown_as_the_text_they_spell(tmp_path):
    space = Space.tokens(4, VOCABULARIES["pairs"])
    x = read(b"the cat sat", space)
    write(x, space, tmp_path / "x.txt")
    assert (tmp_path / "x.txt").read_bytes().replace(b"\n", b"") == b"the cat sat"
    assert "".join(gallery(space, x)["excerpts"]) == "the cat sat"


@pytest.mark.parametrize("tokens", ["270", "words"])
def test_command_line_fits_scores_and_draws_tokens(tmp_path, tokens):
    from typer.testing import CliRunner

    def run(*args):
        result = CliRunner().invoke(app, [*map(str, args)])
        assert result.exit_code == 0, result.output
        return result.output

    text = tmp_path / "verse.txt"
    text.write_bytes(VERSE * 40)
    out = tmp_path / "run"
    fit = ("fit", text, "autoregressive", "--tokens", tokens, "--window", 8, "--size", "tiny", "--steps", 2, "--seed", 0, "--out", out)
    run(*fit)
    assert json.loads((out / "run.json").read_text())["test"]["kind"] == "lower bound"
    assert "bits/byte" in run("score", out, text)
    run("sample", out, "--n", 2, "--out", tmp_path / "drawn.txt")
    assert (tmp_path / "drawn.txt").stat().st_size > 2
    assert "bytes per token" in run("data", text, "--tokens", tokens)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared benchmark data are not here")
def test_shakespeare_is_cut_as_stated():
    data = load(SHARED / "text/tinyshakespeare.txt.gz", tokens=512)
    assert data.card["bytes_per_token"] == pytest.approx(1.937, abs=0.0005)


# -- embeddings by spelling ---------------------------------------------------------------------

INPUTS = [
    {"net": "dilated"},
    {"net": "rnn"},
    {"net": "rnn", "ngrams": 2},
    {"net": "transformer"},
    {"net": "transformer", "ngrams": 1},
]


def test_marks_are_no_bytes_and_blanks_before_a_word_do_not_count():
    assert hashed_grams(" the") == hashed_grams("the")
    assert len(hashed_grams("the")) == 3 + 2 + 1  # <th the he>, <the the>, <the>
    assert len(set(hashed_grams("the")) & set(hashed_grams("then"))) == 3  # <th the <the
    assert hashed_grams("") == ()
    assert len(hashed_grams("-" * 64)) == 64


def test_tokens_that_training_never_met_are_embedded_by_their_spelling():
    """Stems are told apart by a linear map of the embeddings; "-er" and "-ers" forms are held out."""
    stems, ends = ["walk", "jump", "climb", "whisper"], ["", "s", "ed", "ing", "er", "ers"]
    vocabulary = (*BYTES, *(" " + stem + end for stem in stems for end in ends))
    stem_of = torch.arange(len(stems)).repeat_interleave(len(ends))
    ids, seen = 256 + torch.arange(len(stem_of)), torch.tensor([end not in ("er", "ers") for end in ends]).repeat(len(stems))
    spelt, plain, last = Subwords(vocabulary, len(vocabulary), 16), torch.nn.Embedding(len(vocabulary), 16), torch.nn.Linear(16, 4)
    for table in (spelt, plain):
        optimiser = torch.optim.Adam([*table.parameters(), *last.parameters()], lr=0.05)
        for _ in range(60):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(last(table(ids[seen])), stem_of[seen]).backward()
            optimiser.step()

    def nearest_is_kin(table):
        known = torch.nn.functional.normalize(table(ids[seen]), dim=1)
        unknown = torch.nn.functional.normalize(table(ids[~seen]), dim=1)
        return (stem_of[seen][(unknown @ known.T).argmax(1)] == stem_of[~seen]).float().mean().item()

    assert not spelt.own.weight[ids[~seen]].any()
    assert nearest_is_kin(spelt) == 1.0
    assert nearest_is_kin(plain) < 0.7


@pytest.mark.parametrize("options", INPUTS, ids=lambda o: "-".join(map(str, o.values())))
def test_nets_embed_by_spelling_step_by_step_and_learn_all_of_it(options):
    space = Space.tokens(6, (*"abcd", "abc", "bcd", " abcd", "ab"))
    model = Autoregressive(space, size="tiny", subwords=True, **options).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    x = torch.randint(8, (5, 6))
    model(x).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
    net = model.eval().net
    with torch.no_grad():
        whole, state, last = net(x), net.init_state(5), None
        for i in range(6):
            state, parameters = net.step(state, last)
            torch.testing.assert_close(parameters, whole[:, i])
            last = x[:, i]
    later = x.clone()
    later[:, 3] = (later[:, 3] + 1) % 8
    with torch.no_grad():
        changed = (net(later) - whole).abs().amax((0, 2)) > 0
    assert changed.tolist()[:4] == [False] * 4
    assert changed[4]


def test_tokens_keep_the_contract():
    vocabulary = ("a", "b", "ab")
    x = torch.randint(3, (60, 4))
    data = Data(Space.tokens(4, vocabulary), Split(x[:40]), Split(x[40:50]), Split(x[50:]), name="tokens")
    found = check_model("autoregressive", data, room=Room(steps=10, samples=500), net="transformer", subwords=True)
    assert {"mass is one", "samples follow", "store keeps"} <= {f.law for f in found}


def test_only_tokens_have_spellings():
    with pytest.raises(UsageError, match="no spellings"):
        Autoregressive(Space.sequence(4), size="tiny", subwords=True)
