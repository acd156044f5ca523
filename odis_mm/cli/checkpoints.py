"""Command lines of what is done with a checkpoint: transfer and frozen evaluation. Parsing and one call each."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, List, Optional, Tuple

from ..utils.errors import ConfigError
from ..utils.parser import Parser, at_least
from ..utils.paths import check_checkpoint, check_out
from .common import KS, LAYOUTS, check_picture, device_or_best, run

if TYPE_CHECKING:
    from ..evaluation import FrozenBackbone


def transfer_main(argv: Optional[List[str]] = None) -> None:
    """``tools/transfer.py SOURCE [OUT --to LAYOUT]``: bring the ViT of a file into another library's layout, and prove
    it."""
    parser = Parser(
        prog='odis-mm transfer',
        description='Bring the ViT of a checkpoint (ours, timm, DINO, iBOT, DINOv2, MAE, GTSA, Hugging Face, '
        'mmpretrain, mmseg, '
        'detectron2) into the layout of a library, and prove that it arrived. Without OUT: say what the file holds.',
    )
    parser.add_argument('source', help='.pth of tensors, or .safetensors')
    parser.add_argument('out', nargs='?', help='.pth, .safetensors, or a folder for huggingface')
    parser.add_argument('--to', choices=LAYOUTS, help='layout of OUT (default: odis_mm)')
    parser.add_argument(
        '--grid',
        type=_grid,
        metavar='ROWSxCOLUMNS',
        help='patch grid to resample the position embedding to, e.g. 32x32',
    )
    parser.add_argument(
        '--source-grid', type=_grid, metavar='ROWSxCOLUMNS', help='patch grid of SOURCE, if it is no square'
    )
    parser.add_argument(
        '--heads', type=at_least(1), help="attention heads (default: from the file's meta, or those of ViT-T/S/B/L/H)"
    )
    parser.add_argument(
        '--drop',
        nargs='+',
        default=[],
        metavar='NAME',
        help='tensors to leave out knowingly: names or their beginnings',
    )
    args = parser.parse_args(argv)

    def work() -> None:
        if args.out is None:
            print(_describe(args))
            return
        from ..transfer import transfer

        for part in transfer(
            args.source,
            args.out,
            args.to or 'odis_mm',
            grid=args.grid,
            source_grid=args.source_grid,
            heads=args.heads,
            drop=args.drop,
        ):
            print(part)
        print(f'written: {args.out}')

    def check() -> None:
        check_checkpoint(args.source)
        if args.out is not None:
            ends = args.out.endswith(('.pth', '.safetensors'))
            check_out(args.out, folder='huggingface' in (args.to or '') and not ends, argument='OUT')
            return
        given = [f'--{name}' for name in ('to', 'grid', 'heads') if getattr(args, name) is not None]
        if given:
            verb = 'are' if len(given) > 1 else 'is'
            raise ConfigError(
                f'{" and ".join(given)} {verb} about the file to write: name it as OUT, behind {args.source}.'
            )

    run(work, check)


def _describe(args: argparse.Namespace) -> str:
    from ..transfer import VitShape, read_checkpoint, read_meta, read_vit, told_grid

    told = args.source_grid or told_grid(read_meta(args.source))
    source = read_vit(read_checkpoint(args.source), args.source, source_grid=told, drop=args.drop)
    shape = VitShape.of(source.state)
    if shape.patches is None:
        positions = 'rotary positions'
    else:
        grid = told or shape.square
        positions = f'{grid[0]} x {grid[1]} positions' if grid else f'{shape.patches} positions'
    parts = [f'{shape.depth} blocks', f'{shape.width} wide', f'patch {shape.patch_size}', positions]
    parts += ['layer scale'] * shape.layer_scale + ['gated MLPs'] * shape.gated
    parts += [f'{shape.registers} registers'] * (shape.registers > 0)
    lines = [
        f'{args.source}: {source.dialect}' + (f', under {source.prefix}*' if source.prefix else ''),
        f'  {", ".join(parts)}',
    ]
    lines += [f'  beside it: {count} tensors under {part}' for part, count in source.outside.items()]
    lines += [f'  no target gets {name}: {why}' for name, why in source.dropped.items()]
    return '\n'.join(lines)


def _grid(text: str) -> Tuple[int, int]:
    rows, cross, columns = text.partition('x')
    if not cross or not rows.isdigit() or not columns.isdigit() or not int(rows) * int(columns):
        raise argparse.ArgumentTypeError(f'{text!r} is not ROWSxCOLUMNS, such as 14x14')
    return int(rows), int(columns)


def knn_main(argv: Optional[List[str]] = None) -> None:
    """``tools/knn.py CHECKPOINT --data DIR``: k-NN accuracy on a labelled folder."""
    parser = _frozen_parser(
        'knn', 'k-NN accuracy of frozen features on a labelled folder: DIR/train/<class>/, DIR/val/<class>/.'
    )
    parser.add_argument('--data', required=True, metavar='DIR')
    parser.add_argument('--ks', type=at_least(1), nargs='+', default=list(KS))
    parser.add_argument('--temperature', type=float, default=0.07)
    parser.add_argument(
        '--boxes',
        nargs=2,
        default=('', ''),
        metavar=('TRAIN', 'VAL'),
        help='json files of objects, which [OBJ] is told at inference',
    )
    parser.add_argument(
        '--max-images',
        type=at_least(1),
        nargs=2,
        default=(None, None),
        metavar=('TRAIN', 'VAL'),
        help='at most so many, evenly spread',
    )
    args = parser.parse_args(argv)

    def work() -> None:
        from ..evaluation import knn_images, labelled_split

        frozen = _frozen(args)
        split = labelled_split(args.data, frozen, args.size, args.boxes, args.max_images)
        found = knn_images(frozen, *split, args.ks, args.temperature, args.batch_size, args.workers)
        ks = list(next(iter(found.values())))
        lines = [f'| feature | {" | ".join(f"k = {k}" for k in ks)} |', '|---|' + '---|' * len(ks)]
        lines += [
            f'| {name} | ' + ' | '.join(f'{accuracy[k]:.1f}' for k in ks) + ' |' for name, accuracy in found.items()
        ]
        print(
            '\n'.join(
                [f'k-NN accuracy in percent, {len(split[0])} images to vote, {len(split[1])} to classify', *lines]
            )
        )
        _save(args, accuracy=found)

    run(work, lambda: check_checkpoint(args.checkpoint), args.out)


def regions_main(argv: Optional[List[str]] = None) -> None:
    """``tools/regions.py CHECKPOINT --data DIR``: the proxy for detection, beside that of random weights."""
    parser = _frozen_parser(
        'regions',
        'A proxy for detection from frozen features of annotated objects, beside the values of random weights.',
    )
    parser.add_argument('--data', required=True, metavar='DIR', help='folder of the annotations and images')
    parser.add_argument(
        '--ann-files',
        nargs=2,
        metavar=('TRAIN', 'VAL'),
        help='COCO-style json, below DIR (default: those of COCO)',
        default=('annotations/instances_train2017.json', 'annotations/instances_val2017.json'),
    )
    parser.add_argument(
        '--images', nargs=2, metavar=('TRAIN', 'VAL'), default=('train2017', 'val2017'), help='image folders, below DIR'
    )
    parser.add_argument(
        '--scales',
        type=at_least(1),
        nargs='+',
        metavar='SIZE',
        help='several sizes in place of --size: their features side by side',
    )
    parser.add_argument(
        '--max-images',
        type=at_least(1),
        nargs=2,
        default=(800, 400),
        metavar=('TRAIN', 'VAL'),
        help='at most so many, evenly spread',
    )
    parser.add_argument('--k', type=at_least(1), default=20)
    args = parser.parse_args(argv)

    def work() -> None:
        from ..evaluation import region_proxy, region_split

        rows = {}
        for name, random in (('checkpoint', False), ('random weights', True)):
            frozen = _frozen(args, random)
            split = region_split(
                frozen, args.data, args.ann_files, args.images, args.scales or (args.size,), args.max_images
            )
            rows[name] = region_proxy(frozen, *split, args.k, batch_size=args.batch_size, num_workers=args.workers)
        names = list(rows['checkpoint'])
        lines = [f'| weights | {" | ".join(names)} |', '|---|' + '---|' * len(names)]
        lines += [
            f'| {name} | ' + ' | '.join(f'{values[key]:.1f}' for key in names) + ' |' for name, values in rows.items()
        ]
        print('\n'.join([f'in percent; {len(split[0])} train and {len(split[1])} val images', *lines]))
        _save(args, metrics=rows['checkpoint'], random=rows['random weights'])

    run(work, lambda: check_checkpoint(args.checkpoint), args.out)


def features_main(argv: Optional[List[str]] = None) -> None:
    """``tools/extract_features.py CHECKPOINT --ann-file FILE --out FILE.npz``: features of all objects of a data
    set."""
    parser = _frozen_parser(
        'features',
        'Features of all annotated objects of a data set: [OBJ] tokens and pooled boxes or masks, as .npz.',
        out='the .npz to write',
    )
    parser.add_argument('--data', default='', metavar='DIR', help='folder of the annotations and images')
    parser.add_argument('--ann-file', required=True, help='any json of objects that ObjectDataset reads, below DIR')
    parser.add_argument('--images', default='', metavar='DIR', help='image folder, below --data')
    parser.add_argument('--sheet', metavar='PNG', help='draw nearest neighbours of some objects')
    args = parser.parse_args(argv)

    def work() -> None:
        from ..datasets import ObjectDataset
        from ..evaluation.object_features import extract_dataset

        frozen = _frozen(args)
        dataset = ObjectDataset(
            data_root=args.data,
            ann_file=args.ann_file,
            data_prefix=args.images,
            pipeline=[dict(type='LoadObjectImage', **frozen.reading)],
        )
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        found = extract_dataset(frozen, dataset, args.out, args.size, args.sheet, args.batch_size, args.workers)
        print(
            f'written: {args.out}, {len(found.image)} objects of {len(dataset)} images, {found.pooled.shape[1]} '
            'channels' + (f'; {args.sheet}' if args.sheet else '')
        )

    def check() -> None:
        check_checkpoint(args.checkpoint)
        if args.sheet is not None:
            check_picture(args.sheet, '--sheet')

    run(work, check, args.out)


def _frozen_parser(command: str, description: str, out: str = '') -> argparse.ArgumentParser:
    parser = Parser(prog=f'odis-mm {command}', description=description)
    parser.add_argument('checkpoint', help='of any layout that odis-mm transfer reads, or a ResNet')
    parser.add_argument('--size', type=at_least(1), default=224, help='side of the images in pixels')
    parser.add_argument(
        '--heads', type=at_least(1), help="attention heads (default: from the file's meta, or those of ViT-T/S/B/L/H)"
    )
    parser.add_argument(
        '--source-grid', type=_grid, metavar='ROWSxCOLUMNS', help='patch grid of CHECKPOINT, if it is no square'
    )
    parser.add_argument(
        '--student', action='store_true', help='of a training checkpoint take the student, not the teacher'
    )
    parser.add_argument('--batch-size', type=at_least(1), default=64)
    parser.add_argument('--workers', type=at_least(0), default=2, help='processes that decode images')
    parser.add_argument('--device', help='default: the GPU, if there is one')
    parser.add_argument('--out', required=bool(out), help=out or 'write the result to this json file')
    return parser


def _frozen(args: argparse.Namespace, random: bool = False) -> 'FrozenBackbone':
    from mmengine.registry import init_default_scope

    from ..evaluation import FrozenBackbone
    from ..evaluation.frozen import frozen_from

    init_default_scope('mmpretrain')
    frozen = frozen_from(args.checkpoint, args.heads, args.source_grid, args.student, random)
    backbone = frozen.backbone.to(device_or_best(args.device))
    frozen = FrozenBackbone(backbone, frozen.mean, frozen.std, frozen.reading)
    frozen.check_size(args.size)
    return frozen


def _save(args: argparse.Namespace, **result) -> None:
    if args.out:
        record = dict(checkpoint=args.checkpoint, size=args.size, **result)
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(json.dumps(record, indent=1) + '\n')
        print(f'written: {args.out}')
