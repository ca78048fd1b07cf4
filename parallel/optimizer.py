"""megatron-core's distributed optimizer around the engine's AdamW and its average of the weights (EMA).

Every data-parallel rank owns a contiguous piece of the fp32 masters, of both moments and of the average, updates it in
one pass of the `adamw` operation, and megatron gathers the new weights. The average is a sharded state of our own: the
distributed optimizer's saved keys are fixed, and anything else in the inner optimizer's state is silently not saved.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as distributed

from ..kernels.adamw import AdamWUpdate
from ..kernels.registry import KernelSet
from .megatron import DistributedOptimizer, MegatronOptimizerConfig
from .training import DataParallel


@dataclass(frozen=True, kw_only=True)
class AdamWSettings:
    """Constants of AdamW; the learning rate comes with every step."""

    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    decay_biases_and_gains: bool
    clip: float
    """Largest global gradient norm; 0: no clipping."""
    ema_decay: float | None
    """None: no average is kept, and no checkpoint can be saved."""


class MasterAdamW(torch.optim.AdamW):
    """AdamW on the fp32 pieces a rank owns. A torch AdamW by type, since the distributed optimizer insists on one."""

    def __init__(self, groups: list[dict], settings: AdamWSettings, kernels: KernelSet):
        super().__init__(groups, lr=0.0, betas=(settings.beta1, settings.beta2), eps=settings.epsilon)
        self.settings = settings
        self.kernels = kernels
        self.update_number = 0
        self.clip_factor: torch.Tensor | None = None
        self.averages: dict[torch.Tensor, torch.Tensor] = {}
        self.copies: dict[torch.Tensor, torch.Tensor] = {}
        """Master -> the model's own piece in 16 bits; none where the model computes with the masters."""

    def prepare_state(self) -> None:
        """Zero moments, and averages (where they are kept) that start as the weights themselves."""
        for group in self.param_groups:
            for master in group["params"]:
                if not self.state[master]:
                    self.state[master]["step"] = torch.tensor(0.0)
                    self.state[master]["exp_avg"] = torch.zeros_like(master)
                    self.state[master]["exp_avg_sq"] = torch.zeros_like(master)
                    if self.settings.ema_decay is not None:
                        self.averages[master] = master.detach().clone()

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        assert closure is None and self.clip_factor is not None and self.update_number > 0
        for group in self.param_groups:
            masters = group["params"]
            states = [self.state[master] for master in masters]
            for state in states:
                # For megatron's eyes only, which wants a step beside the moments: what it restores depends on
                # whether apex or transformer-engine is installed.
                state["step"] = torch.tensor(float(self.update_number))
            update = AdamWUpdate(
                lr=group["lr"], beta1=self.settings.beta1, beta2=self.settings.beta2, epsilon=self.settings.epsilon,
                weight_decay=group["weight_decay"], step=self.update_number, clip_factor=self.clip_factor,
                ema_decay=self.settings.ema_decay or 0.0,
            )  # fmt: skip
            self.kernels.adamw(
                masters,
                [master.grad for master in masters],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [self.averages[master] for master in masters] if self.averages else None,
                [self.copies[master] for master in masters] if self.copies else None,
                update,
            )


STATES = ("param", "exp_avg", "exp_avg_sq", "ema")
"""What is stored of the optimizer for each parameter: the fp32 master, both moments, the average."""


class ShardedOptimizer(DistributedOptimizer):
    """megatron's distributed optimizer; its reshardable checkpoint carries the average as one more key."""

    def get_parameter_state_dp_zero(self, use_gloo_comm=True, empty_data=False, return_on_all_ranks=False):
        """In megatron's form, and with the average; gathered without its detours, which copy every state six times."""
        assert return_on_all_ranks, "every rank writes its share: the gather-on-rank-0 format is not used"
        state = {"buckets_coalesced": True}
        for index, ranges in enumerate(self.gbuf_ranges):
            (dtype,) = ranges
            state[index] = {dtype: {kind: self.gathered(kind, index, empty=empty_data) for kind in STATES}}
            state[index][dtype]["numel_unpadded"] = self.buffers[index].numel_unpadded
        return state

    @torch.no_grad()
    def gathered(self, kind: str, index: int, *, empty: bool = False) -> torch.Tensor:
        """One of STATES of a whole gradient buffer, padding between its buckets left out, fp32 on the host.

        `empty`: zeros, for a load to fill.
        """
        assert self.optimizer.settings.ema_decay is not None, "this optimizer keeps no average"
        buffer, group = self.buffers[index], self.data_parallel_group
        if empty:
            return torch.zeros(buffer.numel_unpadded)
        gathered, begin = torch.empty(buffer.numel_unpadded), 0
        (buckets,) = self.gbuf_ranges[index].values()
        for bucket, ranges in zip(buffer.buckets, buckets, strict=True):
            whole = torch.zeros(bucket.grad_data.numel(), device=bucket.grad_data.device)
            mine = whole.chunk(group.size())[group.rank()]
            for parameter, where in ranges["param_map"].items():
                local = where["gbuf_local"]
                mine[local.start : local.end] = self._state(kind, parameter)
            if group.size() > 1:
                distributed.all_gather_into_tensor(whole, mine.clone(), group=group)
            gathered[begin : begin + bucket.numel_unpadded] = whole[: bucket.numel_unpadded]
            begin += bucket.numel_unpadded
        return gathered

    def _set_main_param_and_optimizer_states(self, model_param, tensors):
        # megatron's own looks for "step" among the tensors, which torch's AdamW keeps beside the moments.
        for kind in STATES:
            self._state(kind, model_param).copy_(tensors[kind])

    def low_precision_copies(self) -> dict[torch.Tensor, torch.Tensor]:
        """fp32 master -> the piece of the model's 16-bit weights that it is the master of."""
        groups = zip(self.shard_fp32_from_float16_groups, self.shard_float16_groups, strict=True)
        return {master: piece for group in groups for master, piece in zip(*group, strict=True)}

    def _copy_main_params_to_model_params(self):
        """Called after the update, which has written them: to `copies`, or as the masters that the model shares."""

    def pieces(self, parameter: torch.nn.Parameter) -> list[torch.Tensor]:
        """Master and, where it is kept, average of what this rank owns of a parameter; none where it owns nothing."""
        if parameter not in self.model_param_group_index_map:
            return []
        master = self._master(parameter)
        average = self.optimizer.averages.get(master)
        return [master] if average is None else [master, average]

    def _state(self, kind: str, parameter: torch.nn.Parameter) -> torch.Tensor:
        """What this rank owns of one of STATES of a parameter."""
        master = self._master(parameter)
        if kind == "param":
            return master
        return self.optimizer.averages[master] if kind == "ema" else self.optimizer.state[master][kind]

    def _master(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        group, order = self.model_param_group_index_map[parameter]
        return self.optimizer.param_groups[group]["params"][order]


class Optimizer:
    """One update of the weights: global norm, agreement of all ranks that it is finite, clipped AdamW, average."""

    def __init__(self, model: DataParallel, settings: AdamWSettings, kernels: KernelSet):
        self.model = model
        self.settings = settings
        self.kernels = kernels
        inner = MasterAdamW(_groups(model, settings), settings, kernels)
        config = model.config
        self.sharded = ShardedOptimizer(
            inner,
            MegatronOptimizerConfig(
                optimizer="adam",
                use_distributed_optimizer=True,
                bf16=config.bf16,
                params_dtype=config.params_dtype,
                overlap_param_gather=model.chunks[0].ddp_config.overlap_param_gather,
            ),
            None,
            lambda optimizer, _config=None: optimizer.prepare_state(),
            model_chunks=model.chunks,
            per_model_buffers={number: chunk.buffers for number, chunk in enumerate(model.chunks)},
            data_parallel_group=model.mesh.states,
            data_parallel_group_gloo=None,
            data_parallel_group_idx=model.mesh.model.rank(),
            distributed_optimizer_instance_id=0,
        )
        self.copies = model.mesh.data_and_context.size() // model.mesh.states.size()
        self.sharded.grad_stats_parallel_group = distributed.group.WORLD
        self.sharded.tp_group = model.mesh.tensor
        inner.prepare_state()
        inner.copies = self.sharded.low_precision_copies()

    @torch.no_grad()
    def start_from(self, weights: Iterable[tuple[torch.nn.Parameter, torch.Tensor]]) -> None:
        """Sets parameters, and this rank's masters and averages, which keep what a parameter of 16 bits rounds off."""
        for parameter, tensor in weights:
            parameter.copy_(tensor)
            for state in self.sharded.pieces(parameter):
                part = self.sharded._get_model_param_range_map(parameter)["param"]
                state.copy_(tensor.flatten()[part.start : part.end])

    @torch.no_grad()
    def gradient_norm(self) -> torch.Tensor:
        """Global norm of the reduced gradients, before clipping, 0-D fp32 on the device. Call once a step."""
        self.sharded.prepare_grads()
        squared = self.kernels.gradient_norm(self.sharded.get_main_grads_for_grad_norm())
        distributed.all_reduce(squared)
        # Where states are not divided, each of their holders has added the whole.
        return (squared / self.copies).sqrt()

    @torch.no_grad()
    def update(self, number: int, learning_rate: float, grad_norm: torch.Tensor) -> None:
        """Update `number` of the run, counted from 1: clips by `grad_norm`, updates masters, moments and average, and
        gathers the new weights. The number decides the bias correction; no state of the optimizer does."""
        for group in self.sharded.param_groups:
            group["lr"] = learning_rate
        one = torch.ones_like(grad_norm)
        self.sharded.optimizer.update_number = number
        self.sharded.optimizer.clip_factor = torch.minimum(one, self._clip_factor(grad_norm))
        self.sharded.step_with_ready_grads()

    def _clip_factor(self, grad_norm: torch.Tensor) -> torch.Tensor:
        if self.settings.clip == 0:
            return torch.ones_like(grad_norm)
        # The 1e-6 is that of torch.nn.utils.clip_grad_norm_ and of megatron.
        return self.settings.clip / (grad_norm + 1e-6)

    @torch.no_grad()
    def averaged(self) -> dict[str, torch.Tensor]:
        """Parameter name -> averaged tensor of its shape, gathered from all ranks, on the host."""
        averages = {}
        sharded = self.sharded
        for index, buffer in enumerate(sharded.buffers):
            whole = sharded.gathered("ema", index)
            for parameter, (start, end, _) in buffer.param_index_map.items():
                averages[parameter] = whole[start:end].view(parameter.shape)
        return {name: averages[parameter] for name, parameter in self.model.named_parameters()}


def _groups(model: DataParallel, settings: AdamWSettings) -> list[dict]:
    """The decayed parameters and the others; megatron tells groups apart by these keys when it loads."""
    marks = {"lr_mult": 1.0, "is_expert_parallel": False, "is_decoupled_lr": False}
    decayed, spared = [], []
    for _, parameter in model.named_parameters():
        is_spared = parameter.dim() == 1 and not settings.decay_biases_and_gains
        (spared if is_spared else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay, "wd_mult": 1.0, **marks},
        {"params": spared, "weight_decay": 0.0, "wd_mult": 0.0, **marks},
    ]
    return [group for group in groups if group["params"]]
