"""Fully sharded training (FSDP): each rank keeps its part of every parameter, gradient and optimizer state, student and
teacher alike."""

from typing import Callable, Optional

from mmengine._strategy import DDPStrategy  # mmengine gives it no public name
from mmengine.device import get_device
from mmengine.dist import get_world_size, is_main_process
from mmengine.logging import MMLogger
from mmengine.registry import STRATEGIES
from mmengine.runner.checkpoint import save_checkpoint
from torch import nn

from ..utils.distributed import gather, part
from ..utils.noise import quiet_console


@STRATEGIES.register_module()
class FullyShardedStrategy(DDPStrategy):
    """torch's ``fully_shard`` (FSDP2) for mmengine's ``FlexibleRunner``, on GPUs (nccl) and CPUs (gloo).

    A block of a ViT is gathered while it runs, what is outside the blocks for the whole iteration. Teacher and student
    are cut alike, so that the EMA is elementwise on the parts; the gradient's norm is that of all parts together.
    (mmengine's own ``FSDPStrategy`` on FSDP1 clips each rank by the norm of its own parts, and its checkpoints of parts
    fit one number of ranks.)

    Checkpoints are those of an unsharded run, whole tensors under the same names, in files that are whole or not there:
    any number of ranks, sharded or not, resumes from them, and the export and the transfer read them as ever. While one
    is written the first rank holds all of it in host memory.
    """

    def build_logger(self, *args, **kwargs) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        quiet_console(logger)
        return logger

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard  # torch >= 2.6

        model, name = self.convert_model(model.to(get_device())), type(model).__name__
        mesh = init_device_mesh(get_device(), (get_world_size(),))
        for module in list(model.modules()):
            if hasattr(module, 'shard_blocks'):
                module.shard_blocks(mesh=mesh)
        fully_shard(model, mesh=mesh)
        type(model).__name__ = name  # it is a class of torch's making now, and exports tell its name
        return model

    def model_state_dict(self) -> dict:
        """Return whole tensors on the first rank's CPU; empty on the others, which must call it, too."""
        return gather(self.model.state_dict())

    def optim_state_dict(self) -> dict:
        """Return the optimizer's as :meth:`model_state_dict` does, in the form of an unsharded run."""
        return gather(self.optim_wrapper.state_dict())

    def load_checkpoint(self, filename: str, **kwargs) -> dict:
        # on a GPU, as mmengine resumes, all ranks' parts of parameters and optimizer would not fit
        return super().load_checkpoint(filename, **{**kwargs, 'map_location': 'cpu'})

    def load_model_state_dict(
        self, state_dict: dict, *, strict: bool = False, revise_keys: list = [(r'^module.', '')]
    ) -> None:
        own = self.model.state_dict()
        state_dict = {name: part(value, own.get(name)) for name, value in state_dict.items()}
        super().load_model_state_dict(state_dict, strict=strict, revise_keys=revise_keys)

    def load_optim_state_dict(self, state_dict: dict) -> None:
        parameters = [p for group in self.optim_wrapper.optimizer.param_groups for p in group['params']]
        state_dict['state'] = {
            index: {key: part(value, parameters[index]) for key, value in entry.items()}
            for index, entry in state_dict['state'].items()
        }
        super().load_optim_state_dict(state_dict)

    def save_checkpoint(
        self,
        filename: str,
        *,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        extra_ckpt: Optional[dict] = None,
        callback: Optional[Callable] = None,
    ) -> None:
        """Gather on all ranks; the first one writes."""
        content = dict(state_dict=self.model_state_dict())
        if save_optimizer:
            content['optimizer'] = self.optim_state_dict()
        if save_param_scheduler and hasattr(self, 'param_schedulers'):
            content['param_schedulers'] = self.scheduler_state_dict()
        content.update(extra_ckpt or {})
        content.setdefault('meta', {}).update(seed=self.seed)
        if is_main_process():
            if callback is not None:
                callback(content)
            save_checkpoint(content, filename, backend_args=dict(backend='odis_mm.atomic'))
