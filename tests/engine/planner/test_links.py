"""Which links a group of ranks sends over: inside a node, across its border, and where a node is a mesh."""

from dataclasses import replace
from functools import partial

import pytest

from contentv.engine.hardware import hardware_of
from contentv.engine.planner import Shape
from contentv.engine.planner.prediction import block_times, device_rates
from contentv.launchers.recipes import contentv_8b

CLIP = Shape(frames=32, rows=54, columns=96, text_tokens=333)


def bandwidths(key: str, world: int = 256):
    """The planner's bandwidth and (link, network) of that hardware."""
    hardware, config = hardware_of(key), contentv_8b()
    times = block_times(config, world, hardware, CLIP, device_rates(config, hardware))
    return partial(times.bandwidth, size=1e9), times.rates.link["sums"].best, times.rates.network["sums"].best


@pytest.mark.parametrize("ranks, stride", [(2, 1), (8, 1), (4, 2), (2, 4)])
def test_a_group_inside_a_node_has_its_switch(ranks, stride):
    bandwidth, link, _ = bandwidths("h100-80g")
    assert bandwidth("sums", ranks, stride) == bandwidth("neighbours", ranks, stride) == link


@pytest.mark.parametrize("ranks, stride", [(3, 1), (3, 2), (16, 1), (2, 8)])
def test_a_group_that_leaves_a_node_or_straddles_two_has_the_network(ranks, stride):
    bandwidth, _, network = bandwidths("h100-80g")
    assert bandwidth("neighbours", ranks, stride) == bandwidth("exchanges", ranks, stride) == network


def test_a_world_of_one_node_has_no_network():
    bandwidth, link, _ = bandwidths("h100-80g", world=6)
    assert bandwidth("sums", 3, 2) == link


def test_a_ring_leaves_a_node_by_the_ports_of_all_its_ranks_there():
    bandwidth, link, network = bandwidths("h100-80g")
    assert bandwidth("sums", 256, 1) == min(link, 8 * network)
    assert bandwidth("sums", 64, 4) == 2 * network
    assert bandwidth("sums", 32, 8) == network


def test_in_a_mesh_few_devices_have_few_links():
    bandwidth, link, _ = bandwidths("ascend-910b-64g")
    assert bandwidth("sums", 2, 1) == pytest.approx(link / 7)
    assert bandwidth("sums", 8, 1) == pytest.approx(link)
    assert bandwidth("neighbours", 8, 1) == pytest.approx(link / 7)


def test_gradients_of_images_leave_by_all_ports():
    """Data parallel alone sends 8B fp32 gradients and bf16 weights by eight ports a node."""
    from contentv.engine.planner import predict

    config, hardware = contentv_8b(), hardware_of("ascend-910b-64g")
    image = replace(CLIP, frames=1)
    _, link, network = bandwidths("ascend-910b-64g")
    sent = 6 * 8.06e9 * 255 / 256
    hidden = predict(config, 256, hardware, image).time_seconds["gradients"]
    assert hidden < sent / min(link, 8 * network) < 0.5
