"""Whether a detector starts from the weights that its config names."""

import copy

import torch
from mmdet.registry import HOOKS
from mmengine.hooks import Hook

from ..models.linear import take_linears
from ..transfer import fingerprint, load_backbone
from ..utils.distributed import unwrap
from ..utils.errors import CheckpointError


@HOOKS.register_module()
class DetectorInit(Hook):
    """Compares the backbone with its file after everything that initialises it, before the first iteration.

    mmdet calls ``init_weights`` after building a model: weights that were loaded in a constructor are drawn anew there,
    without a word. The log gets one line: that the backbone equals the file, with the fingerprint of the file, as in
    its card; or that no file was named, with the fingerprint of the backbone. A resumed or finetuned detector
    (``--resume``, ``load_from``) has weights of its own and is not compared, nor is one whose weights mmengine fetches
    (``torchvision://``).

    From then on the detector's linear layers take the faster library (:mod:`~odis_mm.models.linear`).

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
        take_linears(unwrap(runner.model))
        backbone = unwrap(runner.model).backbone
        init_cfg = runner.cfg.get('model', {}).get('backbone', {}).get('init_cfg') or {}
        path, started = self.checkpoint or init_cfg.get('checkpoint'), runner.iter or runner._load_from
        if started or path is None or '://' in path:
            kind = 'random weights, as no checkpoint is named'
            if started:
                kind = f'weights of the checkpoint {runner._load_from}'
            elif path is not None:
                kind = f'weights of {path}, which are not compared'
            runner.logger.info(
                f'DetectorInit: {kind}; fingerprint of the backbone {fingerprint(backbone.state_dict())}'
            )
            return
        device = next(backbone.parameters()).device
        reference = copy.deepcopy(backbone).cpu()
        allowed = {key: init_cfg.get(key, ()) for key in ('allow_missing', 'allow_unexpected')}
        # mmengine's own 'Pretrained' takes what fits: then only that is compared
        strict = self.checkpoint is not None or init_cfg.get('type') == 'VerifiedPretrained'
        report = load_backbone(reference, path, strict=strict, logger='silent', **allowed)
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
        resized = f', {", ".join(report.resized)} brought to the size of the model' if report.resized else ''
        runner.logger.info(
            f'DetectorInit: the backbone equals {path} in {len(wanted)} tensors{resized}; fingerprint of the weights '
            f'in the file {report.fingerprint}'
        )
