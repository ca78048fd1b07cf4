"""KernelConfig: every wrong wish is refused in words, without torch."""

import subprocess
import sys

import pytest

from contentv.kernels.config import KernelConfig
from contentv.kernels.ranks import OPERATIONS


def test_defaults_wish_for_auto():
    assert KernelConfig().wishes() == dict.fromkeys(OPERATIONS, "auto")


def test_a_single_wish_overrides_the_common_one():
    wishes = KernelConfig(backend="reference", wish=("adamw=auto",)).wishes()
    assert wishes == dict.fromkeys(OPERATIONS, "reference") | {"adamw": "auto"}


def test_a_name_is_for_the_operations_that_have_it():
    wishes = KernelConfig(backend="gpu_triton").wishes()
    assert wishes.pop("matrix_product") == "auto" and set(wishes.values()) == {"gpu_triton"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"backend": "triton"}, ["'triton'", "auto", "gpu_triton", "reference"]),
        ({"wish": ("adamw",)}, ["'adamw'", "op=backend"]),
        ({"wish": ("=reference",)}, ["op=backend"]),
        ({"wish": ("adamw=",)}, ["op=backend"]),
        ({"wish": ("adam=reference",)}, ["'adam'", "adamw"]),
        ({"wish": ("adamw=triton",)}, ["adamw=triton", "auto", "gpu_triton", "reference"]),
        ({"wish": ("adamw=auto", "adamw=reference")}, ["adamw twice"]),
    ],
)
def test_wrong_wishes_are_refused(given, words):
    with pytest.raises(ValueError) as refusal:
        KernelConfig(**given)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


def test_config_and_ranks_import_no_torch():
    program = "import sys; sys.modules['torch'] = None; import contentv.kernels.config"
    subprocess.run([sys.executable, "-c", program], check=True)
