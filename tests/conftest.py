"""Fixtures shared by all tests: the real sample data, and a tiny synthetic image with known objects."""

import os
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np
import pytest


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


def make_sample(height=120, width=160, num_objects=3, seed=0, masks=True) -> dict:
    """A dataset item after loading: a textured RGB image with ellipses on it.

    Returns:
        dict: ``img`` uint8 [H, W, 3], ``height``, ``width``, ``bboxes`` float32 [n, 4] xyxy in pixels, ``masks`` list
        of n COCO polygon lists (or None), ``labels`` int64 [n], ``img_id``, ``img_path``, ``rng`` seeded by ``seed``.
    """
    rng = np.random.default_rng(seed)
    ys, xs = np.mgrid[:height, :width]
    waves = [np.sin(xs / rng.uniform(3, 20) + rng.uniform(0, 6)) * np.cos(ys / rng.uniform(3, 20)) for _ in range(3)]
    img = (110 + 60 * np.stack(waves, -1)).astype(np.uint8)
    boxes, polygons = [], []
    for _ in range(num_objects):
        rx, ry = rng.uniform(0.06, 0.25, 2) * (width, height)
        cx, cy = rng.uniform(rx, width - rx), rng.uniform(ry, height - ry)
        img[((xs + 0.5 - cx) / rx) ** 2 + ((ys + 0.5 - cy) / ry) ** 2 <= 1] = rng.integers(0, 256, 3)
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        polygons.append([np.stack([cx + rx * np.cos(angles), cy + ry * np.sin(angles)], 1).reshape(-1).tolist()])
        boxes.append([cx - rx, cy - ry, cx + rx, cy + ry])
    return dict(
        img=img,
        height=height,
        width=width,
        img_id=seed,
        img_path=f'synthetic_{seed}.png',
        bboxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        masks=polygons if masks else None,
        labels=np.zeros(num_objects, np.int64),
        epoch=0,
        sample_idx=seed,
        rng=np.random.default_rng((seed, 0, 1)),
    )


@pytest.fixture
def synthetic_sample():
    """The function :func:`make_sample`, for tests that need images with objects but no data."""
    return make_sample


@pytest.fixture(autouse=True)
def no_default_scope():
    """A Runner sets mmengine's default scope for the whole process: no test may depend on which one ran before."""
    from mmengine.registry import DefaultScope

    DefaultScope._instance_dict.clear()
    yield
    DefaultScope._instance_dict.clear()
