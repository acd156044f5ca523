"""Damaged images under detectors: replaced and named in training, an error in validation."""

import json
import re

import pytest

from helpers import SMALL_DETECTOR, write_noise_coco
from odis_mm.cli.tasks import finetune_main
from odis_mm.datasets import BadImageError

pytest.importorskip('mmcv._ext')


def data(tmp_path, bad=(), train=8):
    """Training images 1 to ``train``, two more for validation; the files of the ``bad`` ones are cut short."""
    root = write_noise_coco(tmp_path / 'data', (('train', train), ('val', 2)))
    for number in bad:
        path = root / 'images' / f'{number}.png'
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return root


def command(root, tmp_path, *options):
    options = [f'{key}={value}' for key, value in SMALL_DETECTOR.items()] + list(options)
    finetune_main(
        f'--data {root} --work-dir {tmp_path / "run"} --steps 2 --batch 8 --size 32 --cfg-options'.split() + options
    )


@pytest.mark.parametrize('workers', [0, 2])
def test_training_replaces_a_damaged_image_and_names_it_once(tmp_path, workers, capsys):
    root = data(tmp_path, bad=[3])
    command(root, tmp_path, f'train_dataloader.num_workers={workers}', 'default_hooks.bad_images.interval=1')
    log = next((tmp_path / 'run').rglob('*.log')).read_text()
    assert re.findall(r'bad image replaced by another one \((.*)\): image (\S+) ', log) == [
        ('1 of 8 so far', str(root / 'images' / '3.png'))
    ]


@pytest.mark.parametrize('bad, part', [([3], 'train'), ([3, 5], 'train'), ([10], 'val')])
def test_images_whose_size_is_told_neither_by_the_json_nor_by_the_file(tmp_path, bad, part, capsys):
    root = data(tmp_path)
    path = root / f'annotations/{part}.json'
    content = json.loads(path.read_text())
    for image in content['images']:
        del image['width'], image['height']
    path.write_text(json.dumps(content))
    for number in bad:
        (root / 'images' / f'{number}.png').write_bytes(b'none')
    if bad == [3]:
        command(root, tmp_path)
        log = next((tmp_path / 'run').rglob('*.log')).read_text()
        assert f'1 unreadable images left out ({root}/images/3.png)' in log and 'bad image replaced' not in log
    else:
        with pytest.raises(SystemExit):
            command(root, tmp_path)
        said = capsys.readouterr().err
        assert ('2 of 8 images are bad, above max_bad_share=0.01' if part == 'train' else '10.png cannot') in said


@pytest.mark.parametrize(
    'bad, sentence',
    [([3, 5], r'2 of 8 images are bad, above max_bad_share=0.01: \S*[35].png, .*'), ([10], r'image \S*10.png cannot')],
    ids=['too many to train on', 'in validation'],
)
def test_what_cannot_be_replaced_ends_in_a_sentence(tmp_path, bad, sentence, capsys):
    root = data(tmp_path, bad)
    with pytest.raises(SystemExit) as stop:
        command(root, tmp_path, 'train_dataloader.num_workers=1', 'val_dataloader.num_workers=1')
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error')]
    assert stop.value.code == 2 and len(errors) == 1 and re.match(f'error: {sentence}', errors[0])


def test_a_data_set_for_tests_replaces_nothing(tmp_path):
    from odis_mm.detection import DetectionDataset, LoadDetectionImage

    root = data(tmp_path, bad=[3])
    options = dict(
        ann_file=str(root / 'annotations/train.json'),
        data_prefix=dict(img=f'{root}/images/'),
        metainfo=dict(classes=('box',)),
        pipeline=[LoadDetectionImage()],
    )
    training = DetectionDataset(max_bad_share=0.2, **options)
    assert training[2]['img_id'] != 3 and training.bad_images() == [str(root / 'images/3.png')]
    for other in (dict(max_bad_share=0), dict(test_mode=True)):
        dataset = DetectionDataset(**options, **other)
        with pytest.raises(BadImageError, match='3.png cannot be decoded'):
            dataset[2]


MMDET = [f'{part}_dataloader.dataset.pipeline.0.type=LoadImageFromFile' for part in ('train', 'val', 'test')]


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize(
    'content, sentence', [(b'', 'is empty'), (b'none', 'cannot be decoded'), (None, 'does not exist')]
)
def test_a_data_set_and_a_loading_step_of_mmdet(tmp_path, content, sentence, workers, capsys):
    root = data(tmp_path)
    path = root / 'images/3.png'
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        command(
            root,
            tmp_path,
            *MMDET,
            'train_dataloader.dataset.type=CocoDataset',
            f'train_dataloader.num_workers={workers}',
        )
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error')]
    assert stop.value.code == 2 and len(errors) == 1 and errors[0].startswith(f'error: image {path} {sentence}')


def test_a_loading_step_of_mmdet_in_our_data_set(tmp_path, capsys):
    root = data(tmp_path, bad=[3])
    command(root, tmp_path, *MMDET, 'default_hooks.bad_images=None')
    log = next((tmp_path / 'run').rglob('*.log')).read_text()
    assert f'bad image replaced by another one (1 of 8 so far): image {root}/images/3.png' in log
    written = next((tmp_path / 'run').glob('*.py')).read_text()
    assert 'LoadImageFromFile' in written and 'LoadNamedImage' not in written, 'mmdet alone can read the config'
