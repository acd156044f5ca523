"""What a large annotation file costs: CPU seconds and a process's own memory to read it, seconds until a training by it
makes its first iteration, without a cache, for the first time and again."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Sequence

import numpy as np

from .startup import seconds_to_first_iteration

_READ = """
import json, os, resource, sys, time
from odis_mm.datasets import ObjectDataset

def own():  # private memory: what no other process shares and no file stands for
    return sum(int(line.split()[1]) for line in open('/proc/self/smaps_rollup') if line.startswith('Private_Dirty'))

folder, masks = sys.argv[1], sys.argv[2] == 'masks'
before, start, wall = own(), time.process_time(), time.monotonic()
data = ObjectDataset(folder, 'annotations/instances_train2017.json', 'train2017', with_masks=masks)
result = dict(cpu=time.process_time() - start, seconds=time.monotonic() - wall, own_mb=(own() - before) / 1024)
start = time.process_time()
for index in range(0, len(data), max(1, len(data) // 2000)):
    list(data.get_data_info(index)['masks'] or ())
result['read_us'] = 1e6 * (time.process_time() - start) / len(range(0, len(data), max(1, len(data) // 2000)))
result['peak_mb'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps(result))
"""


def write_annotations(folder: Path, images: int, objects: int, points: int = 26, seed: int = 0) -> Path:
    """Write a COCO-style ``annotations/instances_train2017.json`` of random objects with polygons, and one image under
    all names in ``train2017``; returns the json."""
    import cv2

    rng = np.random.default_rng(seed)
    path, photos = folder / 'annotations' / 'instances_train2017.json', folder / 'train2017'
    path.parent.mkdir()
    photos.mkdir()
    cv2.imwrite(str(photos / f'{0:012d}.jpg'), rng.integers(0, 256, (480, 640, 3), dtype=np.uint8))
    for i in range(1, images):
        (photos / f'{i:012d}.jpg').symlink_to(f'{0:012d}.jpg')
    shapes = []
    for _ in range(512):  # each many times
        xy = rng.uniform(0, 480, (max(3, int(rng.exponential(points))), 2)).round(2)
        low, size = xy.min(0), (xy.max(0) - xy.min(0)).round(2)
        box = [*low.tolist(), *size.tolist()]
        area = float((size[0] * size[1]).round(4))
        shapes.append(json.dumps(dict(segmentation=[xy.ravel().tolist()], area=area, iscrowd=0, bbox=box))[:-1])
    with open(path, 'w') as file:
        file.write('{"info": {}, "licenses": [], "images": [')
        url = 'http://images.cocodataset.org/train2017/'
        file.write(
            ', '.join(
                f'{{"license": 3, "file_name": "{i:012d}.jpg", "coco_url": "{url}{i:012d}.jpg", "height": 480, '
                f'"width": 640, "id": {i}}}'
                for i in range(images)
            )
        )
        file.write('], "annotations": [')
        owners = rng.integers(0, images, objects).tolist()
        for i, owner in enumerate(owners):
            shape = shapes[i % len(shapes)]
            file.write(f'{", " if i else ""}{shape}, "image_id": {owner}, "category_id": {1 + i % 80}, "id": {i}}}')
        categories = [dict(supercategory='thing', id=i, name=f'class {i}') for i in range(1, 81)]
        file.write('], "categories": ' + json.dumps(categories) + '}')
    return path


def annotations_benchmark(
    images: int = 118_287, objects: int = 860_001, masks: bool = True, repeats: int = 3, train: Sequence[str] = ()
) -> Dict[str, Any]:
    """Times of a synthetic file (default: of the size of COCO train2017) in processes of their own.

    Args:
        train: The command in front of a config, to start ``odis_vits_coco`` with two images a batch; () to leave that
            out.

    Returns:
        'first' (no cache yet) and 'again': of each process ``cpu`` and ``seconds`` to build the data set, ``own_mb`` of
        memory that it did not have before and does not share, ``peak_mb`` in all, ``read_us`` to read one image's
        objects with their masks. 'start_first' and 'start_again': seconds from the command to the first iteration.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = write_annotations(Path(folder), images, objects)
        cache = Path(folder, 'cache')
        environment = {'ODIS_MM_CACHE': str(cache), 'COCO_ROOT': folder}

        def read() -> dict:
            command = [sys.executable, '-c', _READ, folder, 'masks' if masks else 'boxes']
            done = subprocess.run(
                command, env={**os.environ, **environment}, capture_output=True, text=True, check=True
            )
            return json.loads(done.stdout.splitlines()[-1])

        def start() -> float:
            few = ['train_dataloader.batch_size=2', 'train_dataloader.num_workers=1']
            return seconds_to_first_iteration('odis_vits_coco', few, train, environment=environment)

        result: Dict[str, Any] = dict(json_mb=path.stat().st_size / 1e6)
        for prefix, measure in (('', read), ('start_', start)):
            if prefix and not train:
                continue
            result[f'{prefix}first'] = [_anew(measure, cache) for _ in range(repeats)]
            result[f'{prefix}again'] = [measure() for _ in range(repeats)]
        return dict(result, cache_mb=sum(file.stat().st_size for file in cache.glob('*')) / 1e6)


def _anew(measure: Callable[[], Any], cache: Path) -> Any:
    for file in cache.glob('*'):
        file.unlink()
    return measure()
