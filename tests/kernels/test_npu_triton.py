"""What is special about the Triton-Ascend kernels: random words made of halves, loops that go round, tiles that the
formula allows. Whether they compute the right thing is asked in test_<op>.py, strides and sizes in
test_gpu_triton.py.
"""

from importlib import import_module

import pytest
import torch

from contentv.kernels import philox, toolchains
from contentv.kernels.ascend_memory import CHIPS, EVERY, Live, Tile, check_product, tile
from contentv.kernels.registry import TABLE

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402  after the line that skips where Triton is not

from contentv.kernels.ascend_philox import first_words, normal  # noqa: E402
from tests.kernels.test_gpu_triton import assert_near, odd_inputs, results, ulps  # noqa: E402

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted only where no GPU is")


@triton.jit
def _draw(counters, seeds, drawn, made, count, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = place < count
    element = tl.load(counters + place, mask=there).to(tl.int32)
    sample = tl.load(counters + count + place, mask=there).to(tl.int32)
    step = tl.load(counters + 2 * count + place, mask=there).to(tl.int32)
    low, high = tl.load(seeds).to(tl.int32), tl.load(seeds + 1).to(tl.int32)
    word0, word1 = first_words(low, high, element, sample, step, STREAM)
    tl.store(drawn + place, word0, mask=there)
    tl.store(drawn + count + place, word1, mask=there)
    tl.store(made + place, normal(word0, word1), mask=there)


@triton.jit
def _normals(given, made, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    word0 = tl.load(given + place, mask=place < count).to(tl.int32)
    word1 = tl.load(given + count + place, mask=place < count).to(tl.int32)
    tl.store(made + place, normal(word0, word1), mask=place < count)


@pytest.mark.parametrize("seed", [0, 0x1234_5678_9ABC_DEF0, 2**64 - 1])
def test_words_are_those_of_the_reference_bit_by_bit(seed):
    generator = torch.Generator().manual_seed(seed % 2**32)
    count = 4099
    counters = torch.randint(0, 2**32, (3, count), generator=generator)
    counters[:, 0], counters[:, 1] = 0, 2**32 - 1
    expected = philox.words(seed, *counters, philox.Stream.NOISE)
    seeds = torch.tensor([seed & 0xFFFFFFFF, seed >> 32])
    drawn, made = torch.empty(2, count, dtype=torch.int32), torch.empty(count)
    _draw[triton.cdiv(count, 1024),](counters, seeds, drawn, made, count, int(philox.Stream.NOISE), 1024)
    assert torch.equal(drawn.long() & 0xFFFFFFFF, torch.stack(expected[:2]))
    assert ulps(made, philox.normal(expected[0], expected[1])) <= 4


def test_normals_are_near_where_logarithm_and_cosine_are_difficult():
    """u1 next to 1 and to 0; angles around the cosine's zeros, where a small error is many ULP."""
    ends = [0, 255, 256, 2**31, 2**32 - 512, 2**32 - 256, 2**32 - 1]
    quarters = [(quarter << 30) + (off << 8) for quarter in range(4) for off in range(-40, 41)]
    given = torch.cartesian_prod(torch.tensor(ends), torch.tensor(quarters) % 2**32).T.contiguous()
    made = torch.empty(given.shape[1])
    _normals[triton.cdiv(len(made[:1024]) * 3, 1024),](given, made, len(made), 1024)
    assert ulps(made, philox.normal(*given)) <= 4


@pytest.mark.parametrize(
    ("op", "name", "most", "sizes"),
    [
        ("modulated_norm", "_MOST_ROWS", 2, {"S": 23, "B": 1, "D": 70}),
        ("gated_residual", "_MOST_ROWS", 2, {"S": 23, "B": 1, "D": 70}),
        ("gated_residual_norm", "_MOST_ROWS", 2, {"S": 23, "B": 1, "D": 70}),
        ("mlp_gelu", "_MOST_ROWS", 2, {"S": 23, "B": 1, "M": 70}),
        ("qk_norm_rope", "_MOST_ROWS", 2, {"S": 15, "B": 1, "H": 2}),
        ("flow_loss", "_MOST_PATCHES", 2, {}),
        ("flow_noise", "_MOST_COLUMNS", 64, {"C": 2}),
        ("gradient_norm", "_COLUMNS", 64, {}),
        ("adamw", "_MOST_COLUMNS", 64, {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_loops_that_go_round(monkeypatch, poisoned, op, name, most, sizes):
    """Small tiles: every program has several of them, and the last one is not whole."""
    module = import_module(f"contentv.kernels.{op}.npu_triton")
    monkeypatch.setattr(module, name, most)
    arguments, others = odd_inputs(op, "cpu", **sizes), odd_inputs(op, "cpu", **sizes)
    expected = results(TABLE[op, "reference"].load(), others)
    got = results(TABLE[op, "npu_triton"].load(), arguments)
    if op == "adamw":
        got, expected = ([each for name in arguments for each in flat(which[name])] for which in (arguments, others))
    assert_near(got, expected, ulps=64)


@pytest.mark.parametrize("sizes", [{"Q": 22, "S": 41}, {"Q": 37, "S": 35, "R": 7}], ids=["unrotated", "rotated"])
def test_attention_over_several_blocks(monkeypatch, poisoned, sizes):
    """Tiles of 16 rows: programs take several of them and walk over several more, the last ones not whole. Where the
    video tokens rotate, they end within a tile of queries and of keys."""
    module = import_module("contentv.kernels.joint_attention.npu_triton")
    monkeypatch.setattr(module, "_EXACT_TILE", (16, 16))
    arguments = odd_inputs("joint_attention", "cpu", B=1, H=2, J=41, **sizes)
    expected = results(TABLE["joint_attention", "reference"].load(), arguments)
    found = results(TABLE["joint_attention", "npu_triton"].load(), arguments)
    assert len(found) == 5, "out, lse and three gradients"
    assert_near(found, expected, ulps=64)


def flat(value):
    return [each for each in value if isinstance(each, torch.Tensor)] if isinstance(value, list) else []


def test_a_tile_is_cut_to_the_unified_buffer():
    live = Live(streamed=2, work=2, once=1)
    cut = tile("some kernel", live, 2560, torch.bfloat16, most=64)
    assert cut.rows == 4 and cut.bytes <= EVERY.unified_buffer
    assert live.bytes(8, 2560, 2) > EVERY.unified_buffer
    assert tile("some kernel", live, 64, torch.float32, most=9).rows == 8
    one = Live(streamed=1)
    assert one.bytes(1, 1, 2) == one.bytes(1, 16, 2) < one.bytes(1, 17, 2), "a row takes multiples of 32 bytes"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: Tile(kernel="some kernel", rows=64, columns=2560, live=Live(streamed=2), item=4),
            ["some kernel: 64 rows of 2560 values", "a core has 196608", "take fewer rows or columns"],
        ),
        (
            lambda: tile("some kernel", Live(streamed=9), 16384, torch.float32, most=64),
            ["1 rows of 16384", "another backend for rows this wide"],
        ),
        (
            lambda: check_product("some kernel", 256, 64, 128, torch.bfloat16, operands=1),
            ["256 x 128 and 128 x 64 values of 2 bytes", "131072 bytes of L0A", "a core has 65536", "fewer rows"],
        ),
        (
            lambda: check_product("some kernel", 256, 256, 64, torch.bfloat16, operands=1),
            ["262144 bytes of L0C", "a core has 131072"],
        ),
        (
            lambda: check_product("some kernel", 128, 128, 128, torch.bfloat16, operands=9),
            ["589824 bytes of L1", "a core has 524288"],
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_what_was_given_and_what_is_allowed(make, words):
    with pytest.raises(ValueError) as refused:
        make()
    assert all(each in str(refused.value) for each in words), str(refused.value)


def test_rows_too_wide_for_a_core_are_refused():
    arguments = odd_inputs("gated_residual_norm", "cpu", S=1, B=1, D=4096)
    with pytest.raises(ValueError, match="another backend for rows this wide"):
        results(TABLE["gated_residual_norm", "npu_triton"].load(), arguments)


def test_a_tile_fits_every_chip():
    assert EVERY.vector_cores == 40 and EVERY.cube_cores == 20 and EVERY.unified_buffer == 192 * 1024
    assert all(getattr(EVERY, name) <= getattr(chip, name) for chip in CHIPS.values() for name in vars(EVERY))


def test_the_refusal_says_what_is_missing(monkeypatch, tmp_path):
    """Here triton is there and triton-ascend is not; with it, an NPU is missing."""
    assert "triton-ascend is not installed" in toolchains.npu_triton_refusal()
    assert "triton-ascend" in TABLE["mlp_gelu", "npu_triton"].refuses("npu")
    (tmp_path / "backends" / "ascend").mkdir(parents=True)
    found = type("Found", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(toolchains, "find_spec", lambda _name: found)
    assert "no NPU is there" in toolchains.npu_triton_refusal()
    npu = type("Npu", (), {"is_available": staticmethod(lambda: True)})
    monkeypatch.setattr(torch, "npu", npu, raising=False)
    assert toolchains.npu_triton_refusal() is None
