"""``odis-mm rotation CONFIG CHECKPOINT``: does GTSA's classifier read the rotation of images that it has not seen?"""

from typing import TYPE_CHECKING, List, Optional

from ..utils.errors import ConfigError
from ..utils.parser import Parser, at_least
from ..utils.paths import check_checkpoint, find_config
from .common import run

if TYPE_CHECKING:
    from torch import nn


def load_model(config: str, checkpoint: str) -> 'nn.Module':
    """The whole model of a pretraining config with the weights of its ``epoch_N.pth``.

    Raises:
        ConfigError: the config is not GTSA's, has no rotation classifier, or the file holds another model.
    """
    from mmengine.registry import init_default_scope
    from mmpretrain.registry import MODELS

    from ..config import load_config
    from ..transfer import read_checkpoint

    cfg = load_config(config)
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    if not getattr(getattr(model, 'head', None), 'lambda_rotation', 0):
        raise ConfigError(f'{config} has no rotation classifier: take a GTSA config with head.lambda_rotation above 0.')
    state, own = read_checkpoint(checkpoint), model.state_dict()
    wrong = [key for key in own if key not in state or state[key].shape != own[key].shape]
    if wrong:
        raise ConfigError(
            f'{checkpoint} does not hold {wrong[0]} as {config} has it: take the epoch_N.pth of a run of this config '
            '(the *_backbone.pth beside it has no classifier).'
        )
    model.load_state_dict(state)
    return model


def rotation_main(argv: Optional[List[str]] = None) -> None:
    parser = Parser(prog='odis-mm rotation', description=__doc__.partition(': ')[2])
    parser.add_argument('config', help='of the pretraining: path, or name of a shipped one')
    parser.add_argument('checkpoint', help='epoch_N.pth of the pretraining')
    parser.add_argument('--data-root', required=True, help='of images that were not trained on')
    parser.add_argument('--data-prefix', default='', help='image folder below it')
    parser.add_argument(
        '--ann-file', default='', help='json or list below it that names the images; default: all of the folder'
    )
    parser.add_argument('--size', type=at_least(1), help="pixels per side (default: that of the config's global views)")
    args = parser.parse_args(argv)

    def check() -> None:
        find_config(args.config)
        check_checkpoint(args.checkpoint)

    def work() -> None:
        from mmpretrain.registry import DATASETS

        from ..config import load_config
        from ..engine.hooks.export import reading_meta
        from ..evaluation.rotation import rotation_accuracy
        from ..utils.noise import import_quietly

        import_quietly('mmpretrain.datasets')
        model = load_model(args.config, args.checkpoint)
        dataset = DATASETS.build(
            dict(
                type='ObjectDataset',
                data_root=args.data_root,
                data_prefix=args.data_prefix,
                ann_file=args.ann_file,
                with_masks=False,
                pipeline=[dict(type='LoadObjectImage', **reading_meta(load_config(args.config)).get('reading', {}))],
            )
        )
        result = rotation_accuracy(model, dataset, args.size or model.backbone.img_size[0])
        print(
            f'rotation accuracy {result["accuracy"]:.1f} % +- {result["standard_error"]:.1f} (standard error), '
            f'{result["images"]} images in four orientations; chance 25 %'
        )

    run(work, check)
