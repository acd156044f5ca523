"""``odis-mm pretrain | finetune | predict | views``: whole jobs on a user's own data."""

import argparse
from itertools import count, takewhile
from pathlib import Path
from shlex import quote
from typing import Any, Dict, List, Optional

from ..utils.errors import BadImageError, ConfigError, UserError
from ..utils.files import PathLike
from ..utils.origin import CONFIGS, resumed_start
from ..utils.parser import Parser, at_least
from ..utils.paths import (
    DETECTOR_SIZE,
    DETECTOR_STEPS,
    PRETRAINING_STEPS,
    WORK_DIRS,
    check_checkpoint,
    check_data,
    check_output,
    check_resumable,
    check_threshold,
    check_unused,
    default_work_dir,
    detector_name,
    find_config,
    find_detector,
    find_images,
)
from .common import AMP, METHODS, check_picture, run, views_datasets


def pretrain_main(argv: Optional[List[str]] = None) -> None:
    """Pretrain on a folder of images."""
    parser = Parser(
        prog='odis-mm pretrain',
        description='Pretrain a backbone on a folder of images. The recipe, the views, the batch and the length follow '
        'from what the folder holds; everything that was chosen is printed and written as a config for odis-mm train.',
    )
    parser.add_argument(
        '--data',
        required=True,
        metavar='DIR',
        help='images, nested as they are; annotations in it (COCO style, YOLO, Pascal VOC, ...) are found',
    )
    parser.add_argument(
        '--boxes',
        metavar='FILE',
        help="json of objects (default: the training annotations found in DIR; 'none': use no objects)",
    )
    parser.add_argument('--images', metavar='DIR', help='image folder, if it is not found near the annotations')
    parser.add_argument('--method', choices=METHODS, help='default: odis if there are objects, else gtsa')
    parser.add_argument(
        '--init',
        metavar='FILE',
        help='checkpoint to start from: ours, timm, DINO, iBOT, DINOv2, MAE, Hugging Face, ...',
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        '--steps',
        type=at_least(PRETRAINING_STEPS),
        help="length in iterations; recipes that accumulate take fewer optimizer steps (default: the recipe's)",
    )
    length.add_argument('--hours', type=float, help='length as time; the speed is measured first')
    parser.add_argument('--size', type=at_least(1), help="side of the global views in pixels (default: the recipe's)")
    _common(parser, 'pretrain')
    args = parser.parse_args(argv)

    def work() -> Path:
        from ..tasks import pretrain

        return pretrain(
            args.data,
            boxes=args.boxes,
            images=args.images,
            method=args.method,
            init=args.init,
            steps=args.steps,
            hours=args.hours,
            size=args.size,
            **_shared(args),
        )

    export = run(work, lambda: _check('pretrain', args, None if args.boxes == 'none' else args.boxes))
    print(f'pretrained backbone: {export}')
    print(f'config, to change and train with odis-mm train: {Path(export).parent / CONFIGS["pretrain"]}')
    pictures = sorted(path.name for path in Path(export).parent.glob('*.png'))
    if pictures:
        print(f'pictures in {Path(export).parent}: {", ".join(pictures)}')
    annotated = _annotated(args, Path(export).parent)
    data = quote(str(annotated or 'ANNOTATED'))
    print(f'next: odis-mm finetune --data {data} --init {quote(str(export))}')
    if not annotated:
        print('ANNOTATED stands for a folder with annotations, which a detector needs')


def _annotated(args: argparse.Namespace, work_dir: Path) -> Optional[PathLike]:
    """Return the folder with annotations for a detector: of COCO style in the data or above it, or others, which were
    imported into the work dir."""
    from ..datasets.layout import annotated_parent, find_splits

    try:
        if find_splits(args.data, ('train',), args.images) or (work_dir / 'annotations').is_dir():
            return args.data
        return annotated_parent(args.images or args.data)
    except UserError:
        return args.data  # there are some, with a fault that the detector's command names


def finetune_main(argv: Optional[List[str]] = None) -> None:
    """Train a detector on annotated images."""
    parser = Parser(
        prog='odis-mm finetune',
        description='Train a detector on annotated images, evaluate it per class, and draw what it finds.',
    )
    parser.add_argument(
        '--data', required=True, metavar='DIR', help='annotated images: COCO style, YOLO, Pascal VOC, ...'
    )
    parser.add_argument(
        '--init', metavar='FILE', help='backbone to start from: an export of a pretraining (default: random weights)'
    )
    parser.add_argument(
        '--detector',
        metavar='NAME',
        help='mask-rcnn (default where each object has a mask), faster-rcnn (else), or the config of another detector',
    )
    for name in ('train', 'val'):
        parser.add_argument(f'--{name}', metavar='FILE', help=f'{name} annotations in place of those found in DIR')
    parser.add_argument('--images', metavar='DIR', help='image folder, if it is not found near the annotations')
    parser.add_argument(
        '--steps', type=at_least(DETECTOR_STEPS), help='default: ten passes over the data, at least 300 steps'
    )
    parser.add_argument(
        '--size',
        type=at_least(DETECTOR_SIZE),
        help='shortest side of the images in pixels (default: as the objects need; of a config, its own)',
    )
    _common(parser, 'finetune')
    args = parser.parse_args(argv)

    def check() -> None:
        _check('finetune', args, args.train, args.val)
        if args.detector is not None:
            find_config(detector_name(args.detector))

    def work() -> Any:
        from ..tasks import finetune

        return finetune(
            args.data,
            init=args.init,
            detector=args.detector,
            train=args.train,
            val=args.val,
            images=args.images,
            steps=args.steps,
            size=args.size,
            **_shared(args),
        )

    done = run(work, check)
    print('\n'.join(_report(done.metrics, args.steps)))
    print(f'detector: {done.checkpoint}')
    print(f'config, to change and train with odis-mm train: {done.config}')
    print(f'pictures: {done.checkpoint.parent / "predictions" / "vis"}, {done.drawn}')
    print(f'next: odis-mm predict {quote(str(done.checkpoint.parent))} IMAGES --out DIR')


def _report(metrics: Dict[str, float], steps: Optional[int]) -> List[str]:
    from ..tasks.finetune import SHORTEST

    lines = ['on the validation split, in percent (without sizes of objects that it lacks):']
    lines += [f'{name:24s} {value:6.1f}' for name, value in metrics.items()]
    of_classes = [value for name, value in metrics.items() if name.startswith('AP of ')]
    zero = sum(value < 0.05 for value in of_classes)
    if steps is not None and steps < SHORTEST:
        lines.append(f'{steps} steps tell little of data or start: without --steps a training has {SHORTEST} or more')
    elif zero:
        lines.append(
            f'AP is 0.0 for {zero} of {len(of_classes)} classes: too few steps or objects to learn from, or objects '
            'of a few pixels (--size)'
        )
    return lines


def predict_main(argv: Optional[List[str]] = None) -> None:
    """Run a detector on images."""
    parser = Parser(prog='odis-mm predict', description='Run a detector on images: pictures and a COCO-style json.')
    parser.add_argument('run', metavar='CONFIG_OR_DIR', help='config of the detector, or the work dir of its training')
    parser.add_argument(
        'checkpoint', nargs='?', metavar='CHECKPOINT', help='weights, a .pth (default: the newest of the work dir)'
    )
    parser.add_argument('images', nargs='+', metavar='IMAGES', help='files and folders')
    parser.add_argument('--out', required=True, metavar='DIR', help='a folder without predictions, outside IMAGES')
    parser.add_argument(
        '--threshold', type=float, default=0.3, help='least score of a box that is drawn (default: 0.3)'
    )
    parser.add_argument('--batch', type=at_least(1), default=8)
    parser.add_argument('--device', help='default: the GPU, if there is one')
    args = parser.parse_args(argv)
    images = [*([args.checkpoint] if args.checkpoint else []), *args.images]
    checkpoint = images.pop(0) if images[0].endswith('.pth') else None

    def check() -> None:
        if not images:
            raise ConfigError('no images are named: odis-mm predict CONFIG_OR_DIR [CHECKPOINT] IMAGES --out DIR.')
        find_detector(args.run, checkpoint)
        find_images(images)
        check_output(args.out, images)
        check_threshold(args.threshold)

    def work() -> Path:
        from ..tasks import predict

        return predict(
            args.run, checkpoint, images, args.out, threshold=args.threshold, batch=args.batch, device=args.device
        )

    target = run(work, check)
    print(f'written: {target}, pictures in {target.parent / "vis"}')


def views_main(argv: Optional[List[str]] = None) -> None:
    """Draw the views of some images."""
    parser = Parser(prog='odis-mm views', description='Draw the views that a pretraining config makes of some images.')
    parser.add_argument('config', help='path of a config, or name of a shipped one')
    parser.add_argument(
        '--out',
        default=f'{WORK_DIRS}/views.png',
        help=f'several images: views_1.png, views_2.png, ... (default: {WORK_DIRS}/views.png)',
    )
    parser.add_argument('--images', type=at_least(1), default=1, help='how many images of each data set, evenly spread')
    parser.add_argument('--epoch', type=at_least(0), default=0, help='each epoch draws other views')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', action='extend')
    args = parser.parse_args(argv)

    def work() -> None:
        from ..engine.hooks.views import samples_of
        from ..visualization import draw_views

        datasets = views_datasets(args.config, args.cfg_options, args.out)
        out, path = Path(args.out), None
        out.parent.mkdir(parents=True, exist_ok=True)
        samples = (sample for dataset in datasets for sample in samples_of(dataset, args.images, args.epoch))
        numbered = (out.with_name(f'{out.stem}_{i}{out.suffix}') for i in count(1))
        for sample, number in zip(samples, numbered):
            path = out if args.images * len(datasets) == 1 else number
            draw_views(sample, str(path))
            print(f'written: {path}')
        earlier = [str(number) for number in takewhile(Path.exists, numbered)]
        if path not in (None, out) and earlier:
            print(f'there before, of an earlier call: {", ".join(earlier)}')
        if path is None:
            raise BadImageError(
                f'none of the images of {args.config} that were looked at can be read: see odis-mm verify.'
            )

    def check() -> None:
        find_config(args.config)
        check_picture(args.out, '--out')

    run(work, check)


def _check(command: str, args: argparse.Namespace, *files: Optional[str]) -> None:
    check_data(args.data, args.images, files)
    if args.init is not None:
        check_checkpoint(args.init)
    work_dir = Path(args.work_dir or default_work_dir(command, args.data))
    if args.resume:
        check_resumable(work_dir)
        resumed_start(work_dir / CONFIGS[command], args.init, args.cfg_options)
    else:
        check_unused(work_dir, args.data)


def _common(parser: argparse.ArgumentParser, command: str) -> None:
    parser.add_argument('--batch', type=at_least(1), help="images per step (default: the recipe's)")
    parser.add_argument(
        '--work-dir',
        metavar='DIR',
        help=f'everything is written here (default: work_dirs/{command}/NAME, by the name of the data)',
    )
    parser.add_argument('--resume', action='store_true', help='continue what is in the work dir')
    parser.add_argument('--seed', type=at_least(0), default=0)
    parser.add_argument(
        '--amp', nargs='?', const=True, choices=AMP, help='mixed precision (default: bf16; detectors: fp16, on GPUs)'
    )
    parser.add_argument('--quiet', action='store_true', help='warnings only')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        action='extend',
        help='changes of the config, applied last',
    )


def _shared(args: argparse.Namespace) -> dict:
    from ..config import parse_options

    return dict(
        batch=args.batch,
        work_dir=args.work_dir,
        resume=args.resume,
        seed=args.seed,
        amp=args.amp,
        quiet=args.quiet,
        options=parse_options(args.cfg_options),
    )
