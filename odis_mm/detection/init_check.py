"""Whether a detector starts from the weights that its config names."""

import copy

import torch
from mmdet.registry import HOOKS
from mmengine.hooks import Hook

from ..transfer import fingerprint, load_backbone
from ..utils.distributed import unwrap
from ..utils.errors import CheckpointError


@HOOKS.register_module()
class DetectorInit(Hook):
    """Compares the backbone with its file after everything that initialises it, before the first iteration.

    mmdet calls ``init_weights`` after building a model: weights that were loaded in a constructor are drawn anew there,
    without a word. The log gets one line: the fingerprint of the backbone, and that it equals the file's, or that no
    file was named. A resumed or finetuned detector (``--resume``, ``load_from``) has weights of its own and is not
    compared, nor is one whose weights mmengine fetches (``torchvision://``).

    Args:
        checkpoint: The file; None: ``model.backbone.init_cfg.checkpoint`` of the config.

    Raises:
        CheckpointError: the backbone differs from the file; names the tensors.
    """

    priority = 'VERY_HIGH'

    def __init__(self, checkpoint=None):
        self.checkpoint = checkpoint

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Have the checkpoint tell what the tensors of its backbone do not."""
        arch = getattr(unwrap(runner.model).backbone, 'arch_settings', None)
        if isinstance(arch, dict) and 'num_heads' in arch:
            checkpoint.setdefault('meta', {}).update(num_heads=arch['num_heads'])

    def before_train(self, runner) -> None:
        model = unwrap(runner.model)
        backbone = model.backbone
        mark = fingerprint(backbone.state_dict())
        if runner.iter or runner._load_from:
            runner.logger.info(f'DetectorInit: backbone {mark}, from the checkpoint {runner._load_from}')
            return
        init_cfg = runner.cfg.get('model', {}).get('backbone', {}).get('init_cfg') or {}
        path = self.checkpoint or init_cfg.get('checkpoint')
        if path is None:
            runner.logger.info(f'DetectorInit: backbone {mark}, no checkpoint named: random weights')
            return
        if '://' in path:
            runner.logger.info(f'DetectorInit: backbone {mark}, from {path}, which is not compared')
            return
        device = next(backbone.parameters()).device
        reference = copy.deepcopy(backbone).cpu()
        allowed = {key: init_cfg.get(key, ()) for key in ('allow_missing', 'allow_unexpected')}
        # mmengine's own 'Pretrained' takes what fits: then only that is compared
        strict = self.checkpoint is not None or init_cfg.get('type') == 'VerifiedPretrained'
        load_backbone(reference, path, strict=strict, logger='silent', **allowed)
        wanted, own = reference.state_dict(), backbone.state_dict()
        differ = [name for name, tensor in wanted.items() if not torch.equal(tensor.to(device), own[name])]
        if differ:
            raise CheckpointError(
                f'the detector does not start from {path}: {len(differ)} of {len(wanted)} backbone tensors differ from '
                f'the file ({", ".join(differ[:4])}), so '
                "they were initialised anew after loading; load by init_cfg=dict(type='VerifiedPretrained', "
                'checkpoint=FILE) on the '
                'backbone.'
            )
        runner.logger.info(f'DetectorInit: backbone {mark} equals {path}, {len(wanted)} tensors')
