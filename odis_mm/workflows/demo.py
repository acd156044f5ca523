"""What quickstart and evidence share: pretraining, frozen measure and fine-tuning on the embedded demo set."""

from pathlib import Path
from typing import Optional

import torch
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS, MODELS

from ..config import load_config
from ..evaluation import region_knn
from ..transfer import load_backbone
from ..utils.errors import ConfigError
from .stages import Stages, detector_ap, newest_export

SIZE = 128  # pixels of a demo image
METHODS = {  # label to pretraining config
    'ODIS': 'odis_demo',
    'iBOT': 'ibot_demo',
    'DINO': 'dino_demo',
    'GTSA': 'gtsa_demo',
    'ALFM': 'alfm_demo',
}
RANDOM = 'random initialisation'
FULL_LR = 'random initialisation, backbone at full learning rate'  # the small rate of all other rows may suit pretrained weights
DETECTOR = 'mask_rcnn/mask-rcnn_demo'


def warmup_options(config: str, length: int, unit: str) -> dict:
    """Options that end the warm-up where the config does, or half-way through a run (of ``length`` epochs or iterations) too short for that.

    Raises:
        ConfigError: for a length below 2; ``unit`` names what was asked for.
    """
    if length < 2:
        raise ConfigError(f'{length} {unit} are no run: ask for two or more.')
    usual = load_config(config).param_scheduler[1].begin
    end = usual if usual < length else length // 2
    return {'param_scheduler.0.end': end, 'param_scheduler.1.begin': end}


def pretrain(stages: Stages, name: str, config: str, root: Path, epochs: int, options: Optional[dict] = None) -> Path:
    """Pretrains and returns the exported backbone."""
    settings = dict(config=config, root=str(root), epochs=epochs, **(options or {}))
    warmup = warmup_options(config, epochs, 'epochs of pretraining')

    def work(folder: Path) -> dict:
        stages.train(
            config,
            folder,
            {'train_cfg.max_epochs': epochs, **warmup, **(options or {})},
            env={'ODIS_DEMO_ROOT': str(root)},
        )
        return dict(export=str(newest_export(folder)))

    return Path(stages.run(name, settings, work)['export'])


def finetune(
    stages: Stages,
    name: str,
    root: Path,
    export: Optional[Path],
    iters: int,
    seed: int,
    backbone_lr: Optional[float] = None,
) -> dict:
    """Trains the demo Mask R-CNN, from an export or from random weights, and returns its COCO AP in percent.

    ``backbone_lr`` replaces the config's factor on the backbone's learning rate.
    """
    settings = dict(
        export=str(export),
        root=str(root),
        iters=iters,
        seed=seed,
        **({} if backbone_lr is None else dict(backbone_lr=backbone_lr)),
    )
    warmup = warmup_options(DETECTOR, iters, 'iterations of the detector')
    options = {
        'randomness.seed': seed,
        'train_cfg.max_iters': iters,
        'train_cfg.val_interval': iters,
        'param_scheduler.1.end': iters,
        'param_scheduler.1.T_max': iters - warmup['param_scheduler.1.begin'],
        'default_hooks.checkpoint.interval': iters,
        **warmup,
    }
    if export is not None:
        options['model.backbone.init_cfg.checkpoint'] = export
    if backbone_lr is not None:
        options['optim_wrapper.paramwise_cfg.backbone_lr_mult'] = backbone_lr

    def work(folder: Path) -> dict:
        stages.train(DETECTOR, folder, options, env={'ODIS_DEMO_ROOT': str(root)})
        return detector_ap(folder)

    return stages.run(name, settings, work)


def load_teacher(config: str, export: Optional[Path]):
    """``ObjectViT`` of a config with an export's weights (None: as initialised from seed 0) and the preprocessor."""
    init_default_scope('mmpretrain')
    cfg = load_config(config)
    torch.manual_seed(0)
    backbone = MODELS.build(cfg.model.backbone)
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')  # mmengine lists every parameter
    backbone.init_weights()
    logger.setLevel(level)
    if export is not None:
        load_backbone(backbone, str(export))
    backbone.eval()
    return backbone, MODELS.build(cfg.model.data_preprocessor)


def demo_objects(root: Path, split: str, images: Optional[int] = None):
    """Annotated images of a split, whole."""
    init_default_scope('mmpretrain')
    return DATASETS.build(
        dict(
            type='ObjectDataset',
            data_root=str(root),
            ann_file=f'annotations/instances_{split}2017.json',
            data_prefix=f'{split}2017',
            indices=images,
            pipeline=[dict(type='LoadObjectImage')],
        )
    )


def frozen_measure(
    stages: Stages, name: str, config: str, root: Path, export: Optional[Path], train_images: int = 400
) -> dict:
    """20-NN class accuracy of val objects among those of ``train_images`` training images, in percent."""

    def work(folder: Path) -> dict:
        backbone, preprocessor = load_teacher(config, export)
        return region_knn(
            backbone, demo_objects(root, 'train', train_images), demo_objects(root, 'val'), preprocessor, SIZE
        )

    return stages.run(name, dict(config=config, root=str(root), export=str(export), train_images=train_images), work)
