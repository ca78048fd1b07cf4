"""Sharing tokens out: counts of 0 to 40 by 1 to 8 context ranks and up to 4 tensor ranks, nothing lost or twice."""

import itertools

import pytest
import torch

from contentv.parallel.tokens import Share, Sharing

COUNTS = range(41)
RANKS = range(1, 9)
PIECES = range(1, 5)


def shares(tokens: int, contexts: int, pieces: int) -> list[list[Share]]:
    """By context rank, by piece."""

    def share(rank: int, piece: int) -> Share:
        return Sharing(contexts=contexts, context_rank=rank, pieces=pieces, piece=piece).share(tokens)

    return [[share(rank, piece) for piece in range(pieces)] for rank in range(contexts)]


@pytest.mark.parametrize("contexts", RANKS)
def test_ranks_cut_a_stream_into_its_tokens_in_order(contexts):
    for tokens, pieces in itertools.product(COUNTS, PIECES):
        whole = 1.0 + torch.arange(tokens)[:, None]
        table = shares(tokens, contexts, pieces)
        rows = [share.drop_filling(share.cut(whole)) for group in table for share in group]
        assert torch.equal(torch.cat(rows), whole)
        assert [token for group in table for share in group for token in share.own] == list(range(tokens))
        counts = table[0][0].counts
        assert sum(counts) == tokens and max(counts) - min(counts) <= 1 and list(counts) == sorted(counts)[::-1]


@pytest.mark.parametrize("contexts", RANKS)
def test_pieces_are_equal_and_gather_into_a_context_ranks_tokens(contexts):
    for tokens, pieces in itertools.product(COUNTS, PIECES):
        whole = 1.0 + torch.arange(tokens)[:, None]
        for group in shares(tokens, contexts, pieces):
            gathered = torch.cat([share.cut(whole) for share in group])  # as megatron's collective would
            for share in group:
                assert share.cut(whole).shape == (share.rows, 1) and share.rows * pieces - share.count < pieces
                assert torch.equal(share.trim(gathered), whole[share.gathered.start : share.gathered.stop])
                assert torch.equal(share.fill(share.trim(gathered)), gathered)
                places = torch.arange(share.own.start, share.own.stop)
                assert torch.equal(share.drop_filling(share.fill_rows(places)), places)
            assert not gathered[group[0].count :].any()


@pytest.mark.parametrize("contexts", RANKS)
def test_filling_takes_no_gradient(contexts):
    for tokens in COUNTS:
        for share in itertools.chain(*shares(tokens, contexts, 3)):
            whole = torch.ones(tokens, 2, requires_grad=True)
            gathered = torch.ones(share.rows * 3, 2, requires_grad=True)
            (share.cut(whole).sum() + share.trim(gathered).sum() + share.fill(share.trim(gathered)).sum()).backward()
            assert whole.grad[:, 0].tolist() == [token in share.own for token in range(tokens)]
            assert gathered.grad[:, 0].tolist() == [2.0 * (row < share.count) for row in range(share.rows * 3)]


@pytest.mark.parametrize("contexts", RANKS)
def test_what_a_stage_packs_the_next_unpacks(contexts):
    for video, text, pieces in itertools.product((0, 1, 7, 40), (0, 1, 5, 33), PIECES):
        for rank, piece in itertools.product(range(contexts), range(pieces)):
            sharing = Sharing(contexts=contexts, context_rank=rank, pieces=pieces, piece=piece)
            tokens = sharing.tokens(video=video, text=text)
            streams = [torch.randn(rows, 2, 3) for rows in (tokens.video.rows, tokens.text.rows)]
            condition = torch.randn(2, 3)
            packed = tokens.pack(*streams, condition)
            assert packed.shape == (tokens.packed_rows, 2, 3)
            for found, expected in zip(tokens.unpack(packed), (*streams, condition), strict=True):
                assert torch.equal(found, expected)
            assert sum(tokens.joint_counts) == video + text
            assert tokens.joint_counts[rank] == tokens.video.count + tokens.text.count


def test_contentvs_own_clip():
    """41,472 video and 333 text tokens on four context ranks of two tensor ranks each."""
    tokens = Sharing(contexts=4, context_rank=1, pieces=2, piece=1).tokens(video=41_472, text=333)
    assert tokens.video.counts == (10_368,) * 4 and tokens.text.counts == (84, 83, 83, 83)
    assert (tokens.text.rows, len(tokens.text.own), tokens.text.own.stop) == (42, 41, 167)
    assert tokens.packed_rows == 5184 + 42 + 1
