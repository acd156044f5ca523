"""Fixtures shared by all tests: the real sample data, and a tiny synthetic image with known objects."""

import functools
import gc
import inspect
import json
import os
import signal
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ['ODIS_MM_CACHE'] = ''  # nothing is left in the user's cache
# numbers are those of CPUs, on all machines: a GPU's last digits differ, and Adam's first steps make much of them. What
# is tested on GPUs, test_gpu.py, is by itself
if 'ODIS_MM_TEST_GPU' not in os.environ:
    os.environ['CUDA_VISIBLE_DEVICES'] = ''

import cv2
import numpy as np
import pytest

# torch, mmengine and the package are imported in what uses them: the process that only hands out the tests to others
# reads this file, too, and they start after it


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: started last, one of them would run while the other processes are done."""
    slow = {item.path for item in items if item.get_closest_marker('slow')}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """What the imports left is not looked through again, by mmengine's data sets each time that one is made."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def signals_are_put_back():
    """A training that ends by an error, too, leaves the handlers of signals as they were: a process that is forked
    later would not end when it is told to, and Ctrl-C in a notebook would not interrupt."""
    yield
    left = [n for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1) if inspect.ismethod(signal.getsignal(n))]
    for number in left:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    assert not left


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """Folder with ``coco/``, ``coco_boxes_256/`` and ``imagenette/``: ``$ODIS_MM_DATA``, else beside the checkout."""
    default = Path(__file__).resolve().parents[2] / 'shared' / 'data'
    root = Path(os.environ.get('ODIS_MM_DATA', default))
    if not (root / 'coco' / 'annotations').is_dir():
        message = f'no sample data at {root}: set ODIS_MM_DATA to the folder that holds coco/annotations'
        if os.environ.get('CI', '').lower() == 'true':
            pytest.fail(message)
        pytest.skip(message)
    return root


@pytest.fixture
def synthetic_sample():
    """The function :func:`make_sample`, for tests that need images with objects but no data."""
    from helpers import make_sample

    return make_sample


@pytest.fixture(scope='session')
def labelled_images(tmp_path_factory):
    """Three classes of stripes, told apart by their spacing, in images of several shapes."""
    root, rng = tmp_path_factory.mktemp('labelled'), np.random.default_rng(0)
    for part, count in (('train', 14), ('val', 6)):
        for label, spacing in (('wide', 9.0), ('narrow', 3.0), ('plain', 1e9)):
            (root / part / label).mkdir(parents=True)
            for i in range(count):
                height, width = rng.integers(40, 70, 2)
                stripes = (
                    128
                    + 60 * np.sin(np.arange(width) / spacing + rng.uniform(0, 6))
                    + rng.normal(0, 30, (height, width))
                )
                pixels = np.clip(np.repeat(stripes[..., None], 3, 2) * rng.uniform(0.5, 1, 3), 0, 255).astype(np.uint8)
                cv2.imwrite(str(root / part / label / f'{i}.png'), pixels)
    return root


@pytest.fixture(scope='session')
def coco_folder(tmp_path_factory):
    """Discs and bars on noise; the two classes differ by shape."""
    root, rng = tmp_path_factory.mktemp('coco'), np.random.default_rng(0)
    (root / 'annotations').mkdir()
    for part, count in (('train2017', 10), ('val2017', 7)):
        (root / part).mkdir()
        images, annotations = [], []
        for i in range(count):
            img = rng.integers(0, 90, (64, 64, 3)).astype(np.uint8)
            for x, kind in ((4, i % 2), (36, (i + 1) % 2)):
                y = int(rng.integers(4, 30))
                if kind:
                    cv2.circle(img, (x + 10, y + 10), 10, (250, 220, 40), -1)
                else:
                    img[y : y + 20 : 4, x : x + 20] = 240
                annotations.append(
                    dict(id=len(annotations), image_id=i, category_id=kind + 1, bbox=[x, y, 20, 20], iscrowd=0)
                )
            cv2.imwrite(str(root / part / f'{i}.png'), img)
            images.append(dict(id=i, file_name=f'{i}.png', height=64, width=64))
        content = dict(
            images=images, annotations=annotations, categories=[dict(id=1, name='bar'), dict(id=2, name='disc')]
        )
        (root / 'annotations' / f'instances_{part}.json').write_text(json.dumps(content))
    return root


@pytest.fixture(scope='session')
def demo(tmp_path_factory) -> str:
    """Sixteen images."""
    from odis_mm.datasets.demo import ensure_demo

    return ensure_demo(tmp_path_factory.mktemp('demo') / 'set', num_train=16, num_val=2, size=64)


@pytest.fixture(scope='session')
def installed_wheel(tmp_path_factory) -> Path:
    """A folder with the package as installed from a wheel of this tree."""
    from helpers import install_wheel

    return install_wheel(tmp_path_factory.mktemp('wheel'))


@pytest.fixture(scope='session', autouse=True)
def short_reports():
    """The environment is described once, and what no test looks at is left out."""
    from mmengine.runner import runner

    from helpers import shortcuts

    described = functools.cache(runner.collect_env)
    with pytest.MonkeyPatch.context() as patch, shortcuts():
        patch.setattr(runner, 'collect_env', lambda: dict(described()))
        yield


@pytest.fixture(autouse=True)
def no_default_scope():
    """A Runner sets mmengine's default scope for the whole process: no test may depend on which one ran before."""
    from mmengine.registry import DefaultScope

    DefaultScope._instance_dict.clear()
    yield
    DefaultScope._instance_dict.clear()
