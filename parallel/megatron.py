"""The door to megatron-core: every name of it that the engine uses, in one list.

All other files of parallel/ import megatron's names from here, so that the accelerator is always prepared first and a
newer megatron is one file to read. Everything above parallel/ sees none of it.
"""

import logging
import warnings

from . import accelerator, weight_gradient

accelerator.prepare(accelerator.present())

with warnings.catch_warnings():
    # Without transformer-engine and apex megatron says at import that it uses torch's own kernels; ours replace them.
    warnings.simplefilter("ignore")
    from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
    from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
    from megatron.core.dist_checkpointing.mapping import (
        LocalNonpersistentObject,
        ShardedTensor,
        ShardedTensorFactory,
    )
    from megatron.core.dist_checkpointing.strategies import filesystem_async
    from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
    from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
    from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
    from megatron.core.dist_checkpointing.validation import StrictHandling
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.enums import ModelType
    from megatron.core.model_parallel_config import ModelParallelConfig
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
    from megatron.core.optimizer.optimizer_config import OptimizerConfig as MegatronOptimizerConfig
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.tensor_parallel import layers as _linears
    from megatron.core.tensor_parallel.layers import (
        ColumnParallelLinear,
        RowParallelLinear,
        set_tensor_model_parallel_attributes,
    )
    from megatron.core.tensor_parallel.mappings import (
        all_gather_last_dim_from_tensor_parallel_region,
        copy_to_tensor_model_parallel_region,
        gather_from_tensor_model_parallel_region,
    )
    from megatron.core.transformer.module import MegatronModule
    from megatron.core.transformer.transformer_config import TransformerConfig

# Only layers whose gradient_accumulation_fusion is set reach for it; training.py sets it where there are buffers.
_linears.fused_weight_gradient_mlp_cuda = weight_gradient

# Notes of megatron and torch.distributed to their own developers (renamed collectives, absent apex): nothing a user of
# this engine can act on. Errors and warnings from everywhere else pass.
for source in ("megatron", "torch.distributed"):
    warnings.filterwarnings("ignore", module=source)
# dist_checkpointing announces deprecations of its own callers at every save; they are not the user's to act on.
logging.getLogger("megatron.core").setLevel(logging.ERROR)

__all__ = [
    "AsyncRequest",
    "CheckpointingConfig",
    "ColumnParallelLinear",
    "DistributedDataParallel",
    "DistributedDataParallelConfig",
    "DistributedOptimizer",
    "FileSystemWriterAsync",
    "FullyParallelSaveStrategyWrapper",
    "LocalNonpersistentObject",
    "MegatronModule",
    "MegatronOptimizerConfig",
    "ModelParallelConfig",
    "ModelType",
    "RowParallelLinear",
    "ShardedTensor",
    "ShardedTensorFactory",
    "StrictHandling",
    "TorchDistSaveShardedStrategy",
    "TransformerConfig",
    "all_gather_last_dim_from_tensor_parallel_region",
    "copy_to_tensor_model_parallel_region",
    "dist_checkpointing",
    "filesystem_async",
    "finalize_model_grads",
    "gather_from_tensor_model_parallel_region",
    "get_forward_backward_func",
    "parallel_state",
    "save_config",
    "set_tensor_model_parallel_attributes",
    "tensor_parallel",
]
