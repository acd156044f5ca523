"""Command lines about objects: find them, import them, look at them. Parsing and one call each."""

import argparse
import json
import sys
from pathlib import Path
from typing import List, Optional

from ..utils.errors import AnnotationError, BadImageError, ConfigError, FolderInUseError
from ..utils.files import atomic_write_text
from ..utils.parser import Parser, at_least, share
from ..utils.paths import WORK_DIRS, check_checkpoint, check_folder, check_json, check_out, find_config, of_other_images
from .common import FORMATS, device_or_best, run, views_datasets

_OF_SOURCE = {
    'attention': ('checkpoint', 'size', 'features', 'cut', 'heads', 'device', 'seed'),
    'detector': ('config', 'checkpoint', 'rpn', 'top', 'min_score', 'device'),
    'classic': ('size', 'top'),
    'import': ('annotations', 'format'),
}


def find_objects_main(argv: Optional[List[str]] = None) -> None:
    """``tools/find_objects.py IMAGES --out objects.json --source SOURCE``: objects for a folder of images."""
    parser = Parser(
        prog='odis-mm find-objects',
        description='Find objects in a folder of images, without labels or from what you have, and write a COCO-style '
        'json that '
        'pretraining takes as ann_file. Interrupted and started again, it continues.',
    )
    parser.add_argument('images', help='folder of images, nested as you like')
    parser.add_argument(
        '--out',
        required=True,
        metavar='JSON',
        help='to write; the report (.html and, outside the folder of images, two .png) comes beside it',
    )
    parser.add_argument('--source', required=True, choices=list(_OF_SOURCE))
    parser.add_argument(
        '--ann-file', default='', help='list or json of the images to take (default: all of the folder)'
    )
    parser.add_argument(
        '--truth', metavar='JSON', help='COCO-style annotations of these images, to compare with in the report'
    )
    parser.add_argument('--workers', type=at_least(0), help='processes; 0: none (default: one per core; on a GPU 0)')
    parser.add_argument(
        '--max-bad-share',
        type=share,
        help='share of images that may be unreadable; of three or more one always may (default: 0.01; 0: none)',
    )
    group = parser.add_argument_group('source attention')
    group.add_argument(
        '--checkpoint', help='ViT of any layout that odis-mm transfer reads; of source detector: its weights'
    )
    group.add_argument(
        '--size',
        type=at_least(1),
        help='longer side of the images in pixels (default: 30 patches, 480 for patches of 16; source classic: 320)',
    )
    group.add_argument('--features', choices=('key', 'qkv'), help='of the last block, or of all blocks (default: key)')
    group.add_argument('--cut', type=float, help='end of the cuts: the highest normalised cut (default: 0.8)')
    group.add_argument(
        '--heads', type=at_least(1), help="attention heads (default: from the file's meta, or those of ViT-T/S/B/L/H)"
    )
    group.add_argument('--seed', type=at_least(0), help="of the solver's start vector (default: 0)")
    group.add_argument('--device', help='of source detector, too (default: the GPU, if there is one)')
    group = parser.add_argument_group('source detector')
    group.add_argument('--config', help='of mmdet: a path, or the name of a shipped recipe')
    group.add_argument('--rpn', action='store_true', default=None, help='the proposals of its RPN alone')
    group.add_argument('--top', type=at_least(1), help='objects kept of an image (default: 100; source classic: 30)')
    group.add_argument('--min-score', type=share, help='(default: 0.05)')
    group = parser.add_argument_group('source import')
    group.add_argument('--annotations', metavar='PATH', help='file or folder of another tool')
    group.add_argument('--format', choices=('auto', *FORMATS), help='(default: auto)')
    args = parser.parse_args(argv)

    def check() -> None:
        check_folder(args.images)
        if args.checkpoint is not None:
            check_checkpoint(args.checkpoint)
        for file in (args.truth, args.annotations):
            if file is not None and Path(file).is_file():
                check_json(Path(file))

    run(lambda: _find(args), check, args.out)


def _find(args: argparse.Namespace) -> None:
    from ..objects.attention import Attention
    from ..objects.classic import Classic
    from ..objects.detector import Detector
    from ..objects.finding import find_objects
    from ..objects.recall import read_result, read_truth
    from ..objects.report import write_report

    searched = ('max_bad_share', 'workers')
    given = {
        name: getattr(args, name)
        for name in sorted({*searched, *sum(_OF_SOURCE.values(), ())})
        if getattr(args, name) is not None
    }
    known = _OF_SOURCE[args.source]
    foreign = [name for name in given if name not in (known if args.source == 'import' else (*known, *searched))]
    if foreign:
        raise ConfigError(
            f'--source {args.source} has no option {", ".join("--" + name.replace("_", "-") for name in foreign)}.'
        )
    options = {name: value for name, value in given.items() if name in known}
    if 'device' in known:
        options['device'] = device_or_best(args.device)
    needed = {'attention': ['checkpoint'], 'detector': ['config', 'checkpoint'], 'import': ['annotations']}.get(
        args.source, []
    )
    missing = [name for name in needed if name not in options]
    if missing:
        raise ConfigError(f'--source {args.source} needs {", ".join("--" + name for name in missing)}.')
    truth = None
    if args.truth:  # before the search, which may take hours
        truth = read_truth(args.truth)
        other = of_other_images(args.truth, [image['file_name'] for image in truth['images']], args.images)
        if other:
            raise AnnotationError(other)
    if args.source == 'import':
        _import(args, **options)
    else:
        if args.source == 'detector':
            options['config'] = str(find_config(options['config']))
        source = {'attention': Attention, 'detector': Detector, 'classic': Classic}[args.source](**options)
        find_objects(
            args.images,
            args.out,
            source,
            ann_file=args.ann_file,
            workers=args.workers,
            max_bad_share=0.01 if args.max_bad_share is None else args.max_bad_share,
        )
    content = read_result(args.out)
    page = Path(args.out).with_suffix('.html')
    numbers, measures = write_report(content, args.images, page, truth)
    lines = [
        f'written: {args.out}, {numbers["objects"]} objects in {numbers["images"]} images ({numbers["empty"]} '
        f'without); {page}'
    ]
    info = content.get('info') or {}
    if info.get('images_at_top'):
        lines.append(
            f'{info["images_at_top"]} of {numbers["images"]} images have the {info["settings"]["top"]} objects that '
            '--top keeps of an image at most: they may show more'
        )
    bad = [why for _, why in info.get('bad_images') or ()]
    if bad:
        more = f', and {len(bad) - 10} more' if len(bad) > 10 else ''
        lines.append(f'{len(bad)} images cannot be read and are left out: {" ".join(bad[:10])}{more}')
    for name, row in (measures or {}).items():
        told = ', '.join(f'{key} {"-" if value is None else f"{value:.1f}"}' for key, value in row.items())
        lines.append(f'{name}: {told}')
    print('\n'.join(lines))


def _import(args: argparse.Namespace, annotations: str, format: str = 'auto') -> None:
    from ..objects import load_annotations
    from ..objects.finding import image_names

    content = load_annotations(annotations, args.images, format)
    known = {image['file_name'] for image in content['images']}
    bare = 0
    if args.ann_file:
        chosen = set(image_names(args.images, args.ann_file))
        kept = {image['id'] for image in content['images'] if image['file_name'] in chosen}
        content['images'] = [image for image in content['images'] if image['id'] in kept]
        content['annotations'] = [entry for entry in content['annotations'] if entry['image_id'] in kept]
        bare = len(chosen - known)
    else:
        bare = len(set(image_names(args.images)) - known)
    content['info'].update(
        source='import',
        settings=dict(annotations=Path(annotations).name, format=format),
        objects=len(content['annotations']),
    )
    if bare:
        print(f'{bare} images of {args.images} have no annotation and are not listed', file=sys.stderr)
    text, out = json.dumps(content), Path(args.out)
    if not out.is_file():
        atomic_write_text(out, text)
    elif out.read_bytes() != text.encode():  # else an earlier call was ended before its report
        raise FolderInUseError(f'{out} exists and is not what this command writes: name another --out.')


def inspect_main(argv: Optional[List[str]] = None) -> None:
    """``odis-mm inspect CONFIG``: a page of what a recipe makes of its images; exits with 1 if a drawn number differs
    from the pixels."""
    parser = Parser(
        prog='odis-mm inspect',
        description='Draw what a pretraining recipe makes of its images, as one html page and PNGs, and check every '
        'drawn number against pixels.',
    )
    parser.add_argument('config', help='path, or the name of a shipped recipe')
    parser.add_argument(
        '--images', type=at_least(1), default=6, help='how many of each data set, evenly spread (default: 6)'
    )
    parser.add_argument(
        '--out',
        default=f'{WORK_DIRS}/inspection',
        metavar='DIR',
        help=f'to write into (default: {WORK_DIRS}/inspection)',
    )
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='as of odis-mm train')
    args = parser.parse_args(argv)

    def check() -> None:
        find_config(args.config)
        check_out(args.out, folder=True)

    if run(lambda: _inspect(args), check):
        sys.exit(1)


def _inspect(args: argparse.Namespace) -> int:
    from ..datasets.transforms import SampleViews
    from ..engine.hooks.views import samples_of
    from ..visualization import write_inspection

    samples, rules = [], []
    for dataset in views_datasets(args.config, args.cfg_options, args.out):
        sampler = next((step for step in dataset.pipeline.transforms if isinstance(step, SampleViews)), None)
        cover = sampler.min_cover.tolist() if sampler is not None and sampler.object_aware else []
        for sample in samples_of(dataset, args.images):
            samples.append(sample)
            rules.append((sampler.region if sampler else 'box', cover))
    if not samples:
        raise BadImageError(f'none of the images of {args.config} that were looked at can be read: see odis-mm verify.')
    title = f'What {Path(args.config).stem} makes of images'
    differ, total, faults = write_inspection(samples, args.out, title, rules)
    for line in faults[:10]:
        print(line)
    print(f'{differ} of {total} drawn numbers differ from the pixels; written: {Path(args.out) / "inspection.html"}')
    return differ
