"""ODIS on a folder of images without objects: a teacher that needs none, its objects, ODIS with them.

    python -m odis_mm.workflows.bootstrap DIR --work-dir work_dirs/bootstrap

It types the commands ``odis-mm pretrain``, ``odis-mm find-objects --source attention`` and ``odis-mm pretrain
--boxes``; started again with the same arguments it continues where it stopped.
"""

import hashlib
import os
from argparse import RawDescriptionHelpFormatter
from pathlib import Path
from typing import Dict, List, Optional

from ..utils.errors import run_command
from ..utils.parser import Parser, at_least
from ..utils.paths import PRETRAINING_STEPS, check_out, check_work_dir, walk_images
from .stages import Stage, Stages, Worker, exports


def main(argv: Optional[List[str]] = None) -> None:
    parser = Parser(
        prog='python -m odis_mm.workflows.bootstrap', description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument('images', metavar='DIR', help='folder of images')
    parser.add_argument('--work-dir', default='work_dirs/bootstrap')
    parser.add_argument(
        '--teacher', default='gtsa', choices=('gtsa', 'alfm', 'ibot'), help='method of the first pretraining'
    )
    parser.add_argument('--steps', type=at_least(PRETRAINING_STEPS), help='of each pretraining (default: by the data)')
    parser.add_argument('--size', type=at_least(1), help='longer side of the images in the search, in pixels')
    parser.add_argument(
        '--rounds', type=at_least(1), default=1, help='2: the ODIS teacher searches again, and ODIS is trained anew'
    )
    args = parser.parse_args(argv)
    run_command(lambda: bootstrap(**vars(args)))


def bootstrap(
    images: str,
    work_dir: str,
    teacher: str = 'gtsa',
    steps: Optional[int] = None,
    size: Optional[int] = None,
    rounds: int = 1,
) -> Path:
    """Run the chain; see :func:`main` for the arguments.

    Returns:
        The export of the last ODIS.

    Raises:
        ConfigError: the work dir lies among the images, or cannot be written.
        StageError: of a command that failed.
    """
    images = str(Path(images).resolve())
    check_work_dir(work_dir, images)
    check_out(work_dir, folder=True, argument='--work-dir')
    files = hashlib.sha256()  # with other images all is done anew
    for name in walk_images(images)[0]:
        files.update(os.fsencode(name) + hashlib.sha256(Path(name).read_bytes()).digest())
    stages = Stages(work_dir, jobs=1)

    def training(name: str, method: str, objects: Optional[Stage] = None) -> Stage:
        def work(worker: Worker, folder: Path, results: Dict[str, dict]) -> dict:
            boxes = results[objects.name]['objects'] if objects else 'none'
            run = folder / 'run'
            command = ['pretrain', '--data', images, '--boxes', boxes, '--method', method, '--work-dir', run]
            command += ['--steps', steps] if steps else []
            command += ['--resume'] if list(run.glob('epoch_*.pth')) else []
            worker.command(command, folder)
            return dict(export=str(exports(run)[-1]))

        settings = dict(images=images, files=files.hexdigest(), method=method, steps=steps)
        return Stage(name, settings, work, (objects,) if objects else ())

    def searching(name: str, trained: Stage) -> Stage:
        def work(worker: Worker, folder: Path, results: Dict[str, dict]) -> dict:
            out = folder / 'objects.json'
            export = results[trained.name]['export']
            command = ['find-objects', images, '--out', out, '--source', 'attention', '--checkpoint', export]
            command += ['--size', size] if size else []
            worker.command(command, folder)
            return dict(objects=str(out))

        return Stage(name, dict(images=images, size=size), work, (trained,))

    last = training('teacher', teacher)
    for number in range(1, rounds + 1):
        last = training(f'odis-{number}', 'odis', searching(f'objects-{number}', last))
    export = Path(stages.run([last])[last.name]['export'])
    stages.say(f'done: {export}')
    return export


if __name__ == '__main__':
    main()
