"""ODIS on a folder of images without objects: a teacher that needs none, its objects, ODIS with them.

    python -m odis_mm.workflows.bootstrap DIR --work-dir work_dirs/bootstrap

Started again with the same arguments it continues where it stopped.
"""

import argparse
from pathlib import Path
from typing import List, Optional

from ..objects import Attention, find_objects, write_report
from ..objects.recall import read_result
from ..tasks import pretrain
from ..utils.errors import run_command
from .stages import Stages, newest_export


def main(argv: Optional[List[str]] = None) -> None:
    parser = argparse.ArgumentParser(prog='python -m odis_mm.workflows.bootstrap', description=__doc__)
    parser.add_argument('images', metavar='DIR', help='folder of images')
    parser.add_argument('--work-dir', default='work_dirs/bootstrap')
    parser.add_argument(
        '--teacher', default='gtsa', choices=('gtsa', 'alfm', 'ibot'), help='method of the first pretraining'
    )
    parser.add_argument('--steps', type=int, help='of either pretraining (default: by the data)')
    parser.add_argument('--size', type=int, default=480, help='longer side of the images in the search, in pixels')
    parser.add_argument(
        '--rounds',
        type=int,
        default=1,
        help='2: the objects are searched again by the ODIS teacher, and ODIS is trained anew',
    )
    parser.add_argument('--workers', type=int, help='processes of the search')
    parser.add_argument('--seed', type=int, default=0)
    run_command(lambda: bootstrap(**vars(parser.parse_args(argv))))


def bootstrap(
    images: str,
    work_dir: str,
    teacher: str = 'gtsa',
    steps: Optional[int] = None,
    size: int = 480,
    rounds: int = 1,
    workers: Optional[int] = None,
    seed: int = 0,
) -> Path:
    """Run the chain; see :func:`main` for the arguments. Returns the export of the last ODIS."""
    stages = Stages(work_dir, total=1 + 2 * rounds)

    def train(name: str, method: str, boxes: Optional[str]) -> str:
        def work(folder: Path) -> dict:
            begun = bool(list(folder.glob('*.pth')))
            pretrain(
                images, boxes=boxes or 'none', method=method, steps=steps, work_dir=folder, resume=begun, seed=seed
            )
            return dict(export=str(newest_export(folder)))

        return stages.run(name, dict(images=str(images), method=method, boxes=boxes, steps=steps, seed=seed), work)[
            'export'
        ]

    export = train('teacher', teacher, None)
    for number in range(1, rounds + 1):

        def search(folder: Path, export: str = export) -> dict:
            out = folder / 'objects.json'
            find_objects(images, out, Attention(export, size=size, seed=seed), workers=workers, say=stages.say)
            write_report(read_result(out), images, folder / 'objects.html')
            return dict(objects=str(out))

        found = stages.run(f'objects_{number}', dict(images=str(images), export=export, size=size, seed=seed), search)[
            'objects'
        ]
        export = train(f'odis_{number}', 'odis', found)
    stages.say(f'done: {export}')
    return Path(export)


if __name__ == '__main__':
    main()
