"""``odis-mm verify --data DIR``: check every image, box and mask of a data set."""

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from shlex import quote
from typing import Any, Dict, List, Optional, Tuple

from ..utils.files import atomic_write_text
from ..utils.parser import Parser, at_least
from ..utils.paths import check_out
from .common import run


def verify_main(argv: Optional[List[str]] = None) -> None:
    """``tools/misc/verify_dataset.py --data DIR [--ann-file FILE] [--images DIR]``; exits with 1 if something is
    bad."""
    parser = Parser(
        prog='odis-mm verify', description='Decode every image of a data set and check its boxes and masks.'
    )
    parser.add_argument('--data', default='', metavar='DIR', help='folder of the annotations and images')
    parser.add_argument(
        '--ann-file', default='', help='json of objects, or list of images, below DIR; without: all images'
    )
    parser.add_argument('--images', default='', metavar='DIR', help='image folder, below --data')
    parser.add_argument(
        '--workers', type=at_least(0), default=os.cpu_count() or 1, help='processes; 0: none (default: one per core)'
    )
    add_reading(parser)
    parser.add_argument('--report', metavar='JSON', help='write what was found')
    parser.add_argument(
        '--clean', metavar='FILE', help='write the annotations (or the list of images) without what is bad'
    )
    args = parser.parse_args(argv)

    def check() -> None:
        for argument in ('report', 'clean'):
            if getattr(args, argument) is not None:
                check_out(getattr(args, argument), argument=f'--{argument}')

    if run(lambda: _verify(args), check):
        sys.exit(1)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how pixels are made of an image's values, as ``LoadObjectImage`` takes them."""
    parser.add_argument('--channels', type=at_least(1), default=3, help='of the images (default: 3)')
    ends = parser.add_mutually_exclusive_group()
    ends.add_argument(
        '--window', type=float, nargs=2, metavar=('LOW', 'HIGH'), help='values that become black and white'
    )
    ends.add_argument('--percentiles', type=float, nargs=2, metavar=('LOW', 'HIGH'), help='the same, of each file')


def reading_of(args: argparse.Namespace) -> Dict[str, Any]:
    """The options of :func:`add_reading` as arguments of ``read_image``."""
    from ..datasets import LoadObjectImage

    found = dict(channels=args.channels, window=args.window, percentiles=args.percentiles)
    LoadObjectImage(**found)  # says what is wrong with them
    return found


def _verify(args: argparse.Namespace) -> int:
    from ..datasets import verify
    from ..datasets.files import shown

    tasks, content = verify.tasks(args.data, args.ann_file, args.images)
    bad_images: List[Tuple[int, str]] = []
    bad_objects: List[Tuple[int, int, str]] = []
    start = last = time.monotonic()
    kinds: Counter = Counter()
    for i, found in enumerate(verify.check(tasks, args.workers, **reading_of(args))):
        if found.wrong:
            bad_images.append((i, found.wrong))
        elif found.kind:
            kinds[found.kind] += 1
        bad_objects += [(number, i, why) for number, why in found.objects]
        now = time.monotonic()
        if now - last > 2:
            last, done = now, i + 1
            print(
                f'{done}/{len(tasks)} images, {done / (now - start):.0f}/s, '
                f'{(now - start) * (len(tasks) - done) / done:.0f} s left, {len(bad_images)} bad',
                file=sys.stderr,
                flush=True,
            )
    count = sum(len(task[2]) for task in tasks)
    for _, wrong in bad_images[:50]:
        print(wrong)
    for number, i, why in bad_objects[:50]:
        print(f'object {number} of image {shown(tasks[i][0])}: {why}')
    if len(bad_images) > 50 or len(bad_objects) > 50:
        print('(the first 50 of each kind; --report writes them all)')
    print(
        f'{len(tasks)} images, {len(bad_images)} bad; {count} objects, {len(bad_objects)} bad (those of bad images not '
        'looked at)'
    )
    for line in verify.notes(content):
        print(line)
    if not args.ann_file:
        for file, folder in verify.annotations_beside(args.data):
            options = f'--ann-file {quote(file)} --images {quote(folder)}'
            print(f'boxes not looked at: {shown(file)}; to check them add {options}')
    if len(kinds) > 1 or any(kind != 'of 8 bits' for kind in kinds):
        print('kinds of images: ' + '; '.join(f'{count} {kind}' for kind, count in kinds.most_common()))
    if args.report:
        report = dict(
            images=len(tasks),
            objects=count,
            kinds=dict(kinds),
            bad_images=[dict(image=tasks[i][0], why=wrong) for i, wrong in bad_images],
            bad_objects=[dict(annotation=number, image=tasks[i][0], why=why) for number, i, why in bad_objects],
        )
        atomic_write_text(args.report, json.dumps(report, indent=1))
    if args.clean:
        text = verify.cleaned(
            content,
            tasks,
            (i for i, _ in bad_images),
            (number for number, *_ in bad_objects),
            Path(args.data, args.images),
        )
        atomic_write_text(args.clean, text)
        print(f'written: {shown(args.clean)}')
    return len(bad_images) + len(bad_objects)
