"""The product against numpy in float64: orientations, odd sizes, bias and sum, and what a matrix unit may lose."""

import numpy as np
import pytest
import torch

from contentv.kernels.matrix_product.cases import CASES, inputs
from contentv.kernels.ranks import backend_names
from tests.kernels.conftest import distances

NAMES = backend_names("matrix_product")
SMALL = [case for case in CASES if not case.large and case.count("SBDM") < 2**31]


def drawn(rows: int, columns: int, seed: int, *, transposed: bool = False, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if transposed:
        return torch.randn(columns, rows, generator=generator).to(dtype).t()
    return torch.randn(rows, columns, generator=generator).to(dtype)


def exact(left, right) -> torch.Tensor:
    return torch.from_numpy(left.double().numpy() @ right.double().numpy())


def allowed(left, right, truth) -> float:
    """Twice the error of a plain chain of fp32 multiply-adds, the slowest way of adding, in the L2 norm."""
    chain = np.zeros(truth.shape, np.float32)
    for index in range(left.shape[1]):
        chain += np.outer(left[:, index].float().numpy(), right[index].float().numpy())
    return 2 * distances(torch.from_numpy(chain).double(), truth)[0] + 2.0**-23


@pytest.fixture(params=NAMES)
def product(request, backend):
    return backend("matrix_product", request.param)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_agrees_with_float64(case, product):
    given = inputs(case)
    truth = exact(given["left_NI"], given["right_IO"]) + given["bias_O"].double()
    got = product(**given)
    assert (got.dtype, got.shape, got.is_contiguous()) == (torch.float32, truth.shape, True)
    assert distances(got.double(), truth)[0] < 1e-6


@pytest.mark.parametrize("turned", [(False, False), (False, True), (True, False), (True, True)], ids=str)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (77, 33, 50), (130, 700, 260), (33, 1, 17), (64, 513, 64), (16, 31, 16)],
                         ids=str)  # fmt: skip
def test_any_size_and_orientation(sizes, turned, product, poisoned):
    """Tiles end inside a matrix on every side; the depth of 513 and 700 is more than is packed at once."""
    rows, depth, columns = sizes
    left, right = drawn(rows, depth, 1, transposed=turned[0]), drawn(depth, columns, 2, transposed=turned[1])
    bias, total = drawn(1, columns, 3)[0], drawn(rows, columns, 4)
    truth = exact(left, right)
    bound = allowed(left, right, truth)
    assert distances(product(left, right).double(), truth)[0] <= bound
    assert distances(product(left, right, bias).double() - bias.double(), truth)[0] <= bound + 2.0**-22
    before = total.clone()
    assert product(left, right, sum_NO=total) is total
    assert distances(total.double() - before.double(), truth)[0] <= bound + 2.0**-22
    total.fill_(torch.nan)
    assert product(left, right, sum_NO=total, is_first=True) is total
    assert torch.equal(total, product(left, right)), "what was there is written over, unread"


def test_gaps_between_values(product):
    left, right = drawn(40, 90, 1)[::2, ::3], drawn(30, 70, 2)[:, ::2]
    truth = exact(left, right)
    assert distances(product(left, right).double(), truth)[0] <= allowed(left, right, truth)


def test_nothing_to_multiply(product):
    left, right, bias = torch.zeros(3, 0), torch.zeros(0, 2), torch.tensor([1.0, 2.0])
    assert product(left, right).tolist() == [[0, 0]] * 3
    assert product(left, right, bias).tolist() == [[1, 2]] * 3
    assert product(left, right, sum_NO=torch.ones(3, 2)).tolist() == [[1, 1]] * 3
    assert product(left, right, sum_NO=torch.ones(3, 2), is_first=True).tolist() == [[0, 0]] * 3
    assert product(torch.zeros(0, 5), torch.zeros(5, 2)).shape == (0, 2)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12, 1e18])
def test_parts_of_a_value_lose_nothing_at_any_scale(scale, product):
    """Values that 8 bits cannot hold: integers of 24 bits, whose products by powers of two are exact in fp32."""
    values = torch.randint(2**23, 2**24, (50, 40), generator=torch.Generator().manual_seed(5)).float()
    values *= torch.where(torch.rand(50, 40, generator=torch.Generator().manual_seed(6)) < 0.5, -1.0, 1.0)
    factor = 2.0 ** round(float(np.log2(scale)))
    left, right = values * 2.0**-24 * factor, torch.eye(40) * 4
    assert torch.equal(product(left, right), left * 4)
    assert torch.equal(product(right, left.t()), 4 * left.t())


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_bad_values_show(bad, product):
    left = drawn(40, 40, 1)
    left[3, 5] = bad
    assert not product(left, drawn(40, 40, 2))[3].isfinite().any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes_are_rounded_once_and_added_up_in_fp32(name, dtype, backend):
    product = backend("matrix_product", name, dtype)
    left, right = drawn(70, 300, 1, dtype=dtype), drawn(300, 45, 2, transposed=True, dtype=dtype)
    truth = exact(left, right)
    precision = torch.finfo(dtype).eps if dtype != torch.float64 else 2.0**-46
    got = product(left, right)
    assert got.dtype == dtype and distances(got.double(), truth)[0] <= precision / 2
    wide = torch.float32 if dtype.itemsize == 2 else dtype
    total = product(left, right, sum_NO=torch.ones(70, 45, dtype=wide))
    # torch rounds a 16-bit product on a CPU before it is added.
    assert total.dtype == wide and distances(total.double() - 1, truth)[0] <= precision / 2 + 2.0**-20
    total = product(left, right, sum_NO=torch.full((70, 45), torch.nan, dtype=wide), is_first=True)
    assert total.dtype == wide and distances(total.double(), truth)[0] <= precision / 2 + 2.0**-20


def test_a_bias_and_a_sum_are_refused(product):
    with pytest.raises(ValueError, match="a bias and a sum: add the bias to the sum, or leave one out"):
        product(torch.ones(2, 2), torch.ones(2, 2), torch.ones(2), torch.ones(2, 2))


def test_the_matrix_unit_takes_fp32_alone(backend):
    product = backend("matrix_product", "cpu_amx")
    with pytest.raises(ValueError, match="takes float32, not torch.bfloat16: choose torch_blas"):
        product(torch.ones(2, 2).bfloat16(), torch.ones(2, 2).bfloat16())
    with pytest.raises(ValueError, match="takes float32, not torch.float64"):
        product(torch.ones(2, 2), torch.ones(2, 2), sum_NO=torch.ones(2, 2).double())


def test_the_matrix_unit_is_closer_than_a_chain_of_multiply_adds(backend):
    product = backend("matrix_product", "cpu_amx")
    left, right = drawn(64, 2048, 1), drawn(2048, 64, 2)
    truth = exact(left, right)
    assert distances(product(left, right).double(), truth)[0] < allowed(left, right, truth) / 2


@pytest.mark.parametrize("name", ["cpu_amx", "cpu_native"])
def test_any_number_of_threads_gives_the_same_bits(name, backend):
    product, before = backend("matrix_product", name), torch.get_num_threads()
    left, right = drawn(300, 700, 1), drawn(700, 260, 2, transposed=True)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(product(left, right))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("name", ["cpu_amx", "cpu_native"])
def test_opcheck(name, backend):
    backend("matrix_product", name)
    left, right = drawn(5, 7, 1), drawn(7, 3, 2)
    multiply, add = (getattr(torch.ops.contentv, f"matrix_product_{name}{suffix}").default for suffix in ("", "_add"))
    torch.library.opcheck(multiply, (left, right, torch.ones(3)))
    for is_first in (False, True):
        torch.library.opcheck(add, (left, right, torch.ones(5, 3), is_first))
