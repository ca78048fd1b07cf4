"""Faults that a layout may have without an error: planted in a rank's process, each must turn the matrix red."""

import torch

from contentv.parallel import attention, layers, tokens, training
from contentv.parallel.layers import HeadGain, LayerFactory
from contentv.parallel.megatron import parallel_state
from contentv.parallel.tokens import Tokens


def plant(fault: str) -> None:
    """Before the model is built; the process is spoilt from here on."""
    if fault:
        FAULTS[fault]()


def lose_keys_in_the_ring() -> None:
    """What context rank 1 passes on of its keys and values arrives as zeros."""
    whole = attention._travelling

    def travelling(kv_2BHJE, blocks, group):
        for hop, block in enumerate(whole(kv_2BHJE, blocks, group)):
            is_lost = hop > 0 and (group.rank() - hop) % group.size() == 1
            yield torch.zeros_like(block) if is_lost else block

    attention._travelling = travelling


def lose_keys_in_the_exchange() -> None:
    """What Ulysses rank 1 sends of its keys and values arrives at rank 0 as zeros."""
    whole = attention._Exchange.forward

    def forward(ctx, x_SBHE, tokens, heads, group):
        found = whole(ctx, x_SBHE, tokens, heads, group)
        if len(forward.calls) % 2 and group.rank() == 0:  # keys and values follow the queries
            found[tokens[0] : tokens[0] + tokens[1]] = 0
        forward.calls.append(1)
        return found

    forward.calls = []
    attention._Exchange.forward = staticmethod(forward)


def scale_by_the_context() -> None:
    """Gradients times the context's size: megatron's schedule has done so already, to undo an average."""
    whole = training._reported

    def reported(loss):
        loss, report = whole(loss)
        return loss * parallel_state.get_context_parallel_world_size(), report

    training._reported = reported


def leave_gains_unreduced() -> None:
    """A QK-norm gain's gradient stays that of its tensor rank's heads."""
    HeadGain.forward = lambda self: self.weight


def leave_adaln_unreduced() -> None:
    """AdaLN's gradient under sequence parallelism stays that of its tensor rank's tokens: megatron's stock gather."""
    layers.all_gather_last_dim_from_tensor_parallel_region = layers.gather_from_tensor_model_parallel_region


def swap_streams() -> None:
    """A stage takes the text it was sent for video, and the other way round."""

    def unpack(self, packed):
        text, video, condition_1BD = packed.split([self.text.rows, self.video.rows, 1])
        return video, text, condition_1BD[0]

    Tokens.unpack = unpack


def forget_marks() -> None:
    """A matrix every rank holds whole is not marked as seeing a part of the tokens only."""
    whole = LayerFactory.replicated
    LayerFactory.replicated = lambda self, *sizes, on_sequence=True: whole(self, *sizes, on_sequence=False)


def batch_sends() -> None:
    """Interleaved stages on two ranks with megatron's batched sends, which nothing there refuses."""
    whole = training._transformer_config

    def config(*arguments):
        made = whole(*arguments)
        made.overlap_p2p_comm, made.batch_p2p_comm = False, True
        return made

    training._transformer_config = config


def fill_with_garbage() -> None:
    """No fault: what fills pieces up to equal length is 7 instead of 0, which nothing may ever see."""

    def filled(rows, count):
        missing = count - rows.shape[0]
        return rows if not missing else torch.cat([rows, rows.new_full((missing, *rows.shape[1:]), 7.0)])

    tokens._filled = filled


FAULTS = {
    fault.__name__: fault
    for fault in (
        lose_keys_in_the_ring, lose_keys_in_the_exchange, scale_by_the_context, leave_gains_unreduced,
        leave_adaln_unreduced, swap_streams, forget_marks, batch_sends, fill_with_garbage,
    )
}  # fmt: skip
