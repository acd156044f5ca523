"""Rotation accuracy on images: a classifier that knows, one that guesses, and files that hold none."""

import cv2
import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS

from helpers import arrow, make_gtsa
from odis_mm.cli.rotation import rotation_main
from odis_mm.config import load_config
from odis_mm.evaluation.rotation import rotation_accuracy
from odis_mm.utils.errors import ConfigError


def brightest_side(images):
    """Logits by the half of a picture of an arrow that its head lies in: right, up, left, down."""
    x = images.mean(1)
    half = x.shape[1] // 2
    return torch.stack(
        [x[:, :, half:].sum((1, 2)), x[:, :half].sum((1, 2)), x[:, :, :half].sum((1, 2)), x[:, half:].sum((1, 2))], 1
    )


def test_accuracy_is_that_of_the_answers(monkeypatch):
    model, wide = make_gtsa(), np.zeros((64, 100, 3), np.uint8)
    wide[:, 18:82] = arrow()
    upside_down = np.ascontiguousarray(np.rot90(arrow(), 2))  # never right
    images = [dict(img=image) for image in (arrow(), wide, upside_down)]
    monkeypatch.setattr(model, 'predict_rotation', brightest_side)
    result = rotation_accuracy(model, images, 40, batch_size=2)
    assert result['accuracy'] == pytest.approx(200 / 3) and result['images'] == 3
    assert result['standard_error'] == pytest.approx(np.std([100, 100, 0], ddof=1) / 3**0.5, rel=1e-4)
    monkeypatch.setattr(model, 'predict_rotation', lambda x: torch.eye(4)[torch.ones(len(x), dtype=torch.int64)])
    assert rotation_accuracy(model, images, 40)['accuracy'] == 25
    with pytest.raises(ConfigError, match='60 pixels cannot be cut into patches of 8'):
        rotation_accuracy(model, images, 60)


def test_command(tmp_path, capsys, monkeypatch):
    folder = tmp_path / 'images'
    folder.mkdir()
    for i in range(3):
        cv2.imwrite(str(folder / f'{i}.png'), arrow())
    cfg = load_config('gtsa_demo')
    model = MODELS.build(cfg.model)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'epoch_1.pth')
    torch.save(dict(state_dict=model.teacher_backbone_state()), tmp_path / 'epoch_1_backbone.pth')
    rotation_main(['gtsa_demo', str(tmp_path / 'epoch_1.pth'), '--data-root', str(folder)])
    assert '3 images in four orientations; chance 25 %' in capsys.readouterr().out
    deep = tmp_path / 'deep'
    deep.mkdir()
    for i in range(2):  # read as the config reads the images of the training: else refused, as no window is told
        cv2.imwrite(str(deep / f'{i}.png'), arrow().astype(np.float32).mean(-1).astype(np.uint16) * 4 + 900)
    scans = tmp_path / 'scans.py'
    scans.write_text(cfg.pretty_text)
    text = scans.read_text().replace("type='LoadObjectImage'", "type='LoadObjectImage', window=[900, 1920]")
    scans.write_text(text)
    seen = []
    monkeypatch.setattr('odis_mm.evaluation.rotation.rotation_accuracy', lambda model, data, size: seen.append(data[0]))
    with pytest.raises(TypeError):  # of the report of what measured nothing
        rotation_main([str(scans), str(tmp_path / 'epoch_1.pth'), '--data-root', str(deep)])
    assert seen[0]['img'].max() == 255 and seen[0]['img'].min() == 0
    for config, name, told in (
        ('gtsa_demo', 'epoch_1_backbone.pth', 'take the epoch_N.pth'),
        ('odis_demo', 'epoch_1.pth', 'no rotation classifier'),
    ):
        with pytest.raises(SystemExit):
            rotation_main([config, str(tmp_path / name), '--data-root', str(folder)])
        assert told in capsys.readouterr().err
