"""The workflow that relates the proxy to AP: rank correlation, verdicts, its stages with the long parts replaced."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import spearmanr

from odis_mm.workflows import proxy


def test_rank_correlation_is_scipys():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 30), rng.integers(0, 6, 30)  # with ties
    assert proxy.spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert proxy.spearman([1, 2, 3], [10, 20, 21]) == 1 and proxy.spearman([1, 2, 3], [3, 2, 1]) == -1
    assert math.isnan(proxy.spearman([1, 1], [1, 2]))


@pytest.mark.parametrize(
    'ends, words',
    [
        ((60, 62), 'by more than the seeds differ'),
        ((51, 60), 'by less than the seeds differ'),
        ((49, 70), 'NOT above'),
        ((60,), 'with one seed'),
    ],
)
def test_the_verdict_follows_from_the_seeds(ends, words):
    records = [dict(random=dict(box_pool=50.0), history=[dict(box_pool=end)]) for end in ends]
    assert words in proxy._rise('ODIS', 'box_pool', records)


def test_all_stages_and_the_table(tmp_path, monkeypatch, capsys):
    seen = []

    def train(self, config, folder, options, env):
        seen.append((config, options))
        if config.startswith('mask_rcnn'):
            export = options.get('model.backbone.init_cfg.checkpoint')
            strength = 0 if export is None else int(export.stem.split('_')[1])
            (folder / 'a' / 'vis_data').mkdir(parents=True)
            (folder / 'a' / 'vis_data' / 'scalars.json').write_text(
                json.dumps({'coco/bbox_mAP': strength / 100, 'coco/segm_mAP': 0.1})
            )
            return
        for epoch in (options['train_cfg.max_epochs'] // 2, options['train_cfg.max_epochs']):
            (folder / f'epoch_{epoch}_backbone.pth').touch()
        values = dict(box_pool=60.0, object_auc=70.0, mask_miou=40.0)
        (folder / 'regions.json').write_text(
            json.dumps(
                dict(random=dict.fromkeys(values, 30.0), history=[dict(iteration=1, epoch=4, seconds=1, **values)])
            )
        )

    def load(config, export):  # what is measured grows with the length of pretraining, as the AP does
        return 0 if export is None else int(export.stem.split('_')[1]), SimpleNamespace(mean=None, std=None)

    monkeypatch.setattr(proxy.Stages, 'train', train)
    monkeypatch.setattr(proxy, 'ensure_demo', lambda *a, **k: tmp_path)
    monkeypatch.setattr(proxy, 'load_teacher', load)
    monkeypatch.setattr(
        proxy, 'FrozenBackbone', lambda backbone, mean, std: SimpleNamespace(patch=8, strength=backbone)
    )
    monkeypatch.setattr(proxy, 'demo_objects', lambda *a: [])
    monkeypatch.setattr(
        proxy,
        'region_proxy',
        lambda frozen, *a: dict(box_pool=10.0 + frozen.strength, object_auc=50.0 - frozen.strength),
    )
    monkeypatch.setattr(proxy, 'labelled_split', lambda *a, **k: ())
    monkeypatch.setattr(proxy, 'knn_images', lambda *a, **k: dict(token={20: 33.0}))
    arguments = [
        '--work-dir',
        str(tmp_path / 'work'),
        '--out',
        str(tmp_path / 'docs'),
        '--methods',
        'ODIS',
        'GTSA:4',
        '--epochs',
        '8',
        '--knn-root',
        'x',
    ]
    proxy.main(arguments)
    text = (tmp_path / 'docs' / 'proxy_demo.md').read_text()
    assert (
        len([line for line in text.splitlines() if ', epoch ' in line and line.startswith('| ')]) == 8
        and '(n = 9)' in text
    )
    assert '| box_pool | object_auc | image k-NN token | box AP | mask AP |' in text
    assert (
        '| +1.00 | -1.00 | +nan |' in text
        and '- GTSA, mask_miou: +10.0, +10.0 (above random weights in every seed' in text
    )
    assert len(seen) == 4 + 9 and all(
        options['+default_hooks.regions.type'] == 'RegionProxyHook' for config, options in seen if 'rcnn' not in config
    )
    proxy.main(arguments)  # everything was done before
    assert len(seen) == 13 and 'done before' in capsys.readouterr().out
    first = (tmp_path / 'docs' / 'proxy_demo.json').read_text()
    proxy.main([*arguments, '--jobs', '2'])  # in processes of their own, the same rows in the same order
    again = json.loads((tmp_path / 'docs' / 'proxy_demo.json').read_text())
    assert len(seen) == 13 and {**again, 'settings': 0} == {**json.loads(first), 'settings': 0}
    assert list(again['frozen']) == list(json.loads(first)['frozen'])
    given = tmp_path / 'epoch_7_backbone.pth'
    given.touch()
    proxy.main([*arguments, '--exports', f'another, epoch 7=dino_demo:{given}'])
    assert len(seen) == 14 and seen[-1][1]['model.backbone.init_cfg.checkpoint'] == given
    assert re.search(r'\| another, epoch 7 \| 17.0 \| .* \| 7.0 \|', (tmp_path / 'docs' / 'proxy_demo.md').read_text())


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['--methods', 'ODIS:8', '--checkpoints', '3'], 'ODIS: its 8 epochs must be a multiple'),
        (['--methods', 'odis'], '--methods odis: METHOD or METHOD:EPOCHS'),
        (['--methods', 'ODIS:many'], '--methods ODIS:many'),
        (['--exports', 'a=dino_demo:none.pth'], "there is no file 'none.pth'"),
        (['--exports', f'A b=dino_demo:{__file__}', f'a_b=dino_demo:{__file__}'], 'names the folder of another row'),
    ],
)
def test_methods_and_their_lengths_are_checked_first(arguments, words, capsys):
    with pytest.raises(SystemExit):
        proxy.main(arguments)
    assert words in capsys.readouterr().err
