"""The table of ALFM's losses."""

import argparse

from odis_mm import apis
from odis_mm.workflows import alfm_ablation
from odis_mm.workflows.demo import METHODS, RANDOM
from odis_mm.workflows.stages import AP_KEYS


def test_the_ablation_has_a_row_for_each_loss_and_one_for_none():
    rows = [*alfm_ablation.LOSSES, RANDOM]
    ap = {row: [dict.fromkeys(AP_KEYS, 10.0 * i + seed) for seed in (0, 1)] for i, row in enumerate(rows)}
    last = {
        'GMSR only': dict(loss_gmsr=-2.0, effective_rank=9.0),
        'CDLP only': dict(loss_cdlp=3.0),
        'GMSR + CDLP': dict(loss_gmsr=-1.5, loss_cdlp=4.0),
    }
    text = alfm_ablation.report(
        ap, last, argparse.Namespace(seeds=[0, 1], epochs=1, train_images=10, finetune_iters=5), []
    )
    table = [line for line in text.splitlines() if line.startswith('| ')]
    assert len(table) == 5 and 'our reconstruction' in text
    assert table[1] == '| GMSR only | ' + ' | '.join(['0.5 (0.0, 1.0)'] * 4) + ' | -2.00 | - | 9.00 |'
    assert table[4] == f'| {RANDOM} | ' + ' | '.join(['30.5 (30.0, 31.0)'] * 4) + ' | - | - | - |'
    for options in alfm_ablation.LOSSES.values():  # every option exists
        apis.load_config(METHODS['ALFM'], options)
    assert len({alfm_ablation.slug(row) for row in rows}) == 4


def test_the_ablation_resumes_and_reads_what_its_stages_left(tmp_path, monkeypatch, capsys):
    trained = []

    def train(self, config, folder, options, env=None):
        trained.append((config, folder.name))
        record = dict.fromkeys(AP_KEYS.values(), 0.25) if 'rcnn' in config else dict(loss_gmsr=-2.0, effective_rank=7.0)
        logs = folder / 'run' / 'vis_data'
        logs.mkdir(parents=True)
        (logs / 'scalars.json').write_text(str(record).replace("'", '"') + '\n')
        (folder / 'epoch_2_backbone.pth').touch()

    monkeypatch.setattr('odis_mm.workflows.stages.Stages.train', train)
    monkeypatch.setattr(alfm_ablation, 'ensure_demo', lambda root, num_train: root)
    argv = [
        '--work-dir',
        str(tmp_path / 'runs'),
        '--out',
        str(tmp_path / 'out'),
        '--data-root',
        str(tmp_path),
        '--seeds',
        '0',
        '1',
        '2',
    ]
    alfm_ablation.main(argv)
    assert len(trained) == 3 + 4 * 3
    assert '| GMSR only | 25.0 (25.0, 25.0, 25.0) |' in (tmp_path / 'out' / 'alfm_ablation.md').read_text()
    alfm_ablation.main(argv)
    assert len(trained) == 15 and 'done before' in capsys.readouterr().out
