"""The chain that finds its own objects, and the plan that compares boxes: the commands typed, the files written."""

import json

import pytest

from odis_mm.config import load_config
from odis_mm.objects import recall_of
from odis_mm.objects.recall import read_result
from odis_mm.utils.errors import ConfigError
from odis_mm.workflows import stages
from odis_mm.workflows.bootstrap import bootstrap
from odis_mm.workflows.plan import load_plan
from odis_mm.workflows.worth import DEGRADED, VARIANTS, make_plan


def test_chain_types_the_documented_commands(tmp_path, monkeypatch):
    typed = []

    def command(self, arguments, folder):
        words = list(map(str, arguments))
        typed.append(words)
        if words[0] == 'pretrain':
            run = folder / 'run'
            run.mkdir(exist_ok=True)
            (run / 'epoch_2_backbone.pth').touch()
        return {}

    monkeypatch.setattr(stages.Worker, 'command', command)
    export = bootstrap(str(tmp_path), str(tmp_path / 'work'), teacher='alfm', steps=5, rounds=2)
    assert [words[0] for words in typed] == ['pretrain', 'find-objects', 'pretrain', 'find-objects', 'pretrain']
    first, search, second, again, last = typed
    assert first[first.index('--boxes') + 1] == 'none' and first[first.index('--method') + 1] == 'alfm'
    assert search[search.index('--checkpoint') + 1].startswith(first[first.index('--work-dir') + 1])
    assert second[second.index('--boxes') + 1] == search[search.index('--out') + 1]
    assert again[again.index('--checkpoint') + 1].startswith(second[second.index('--work-dir') + 1])
    assert str(export).startswith(last[last.index('--work-dir') + 1])
    typed.clear()
    assert bootstrap(str(tmp_path), str(tmp_path / 'work'), teacher='alfm', steps=5, rounds=2) == export and not typed


def test_plan_differs_in_boxes_alone(tmp_path):
    settings = dict(
        data_root=str(tmp_path / 'demo'), train_images=12, iterations=4, finetune_iters=2, teacher=[], workers=0
    )
    text = make_plan(str(tmp_path / 'worth'), **settings)
    plan, _ = load_plan(tmp_path / 'worth' / 'plan.yaml')
    rows = {start.name: start for start in plan.starts}
    assert (
        set(rows) == {'random weights', 'annotated boxes', 'classic', *DEGRADED, *VARIANTS}
        and plan.reference == 'annotated boxes'
    )
    for name, start in rows.items():
        for step in start.steps:
            assert step.recipe == 'odis_demo'
            load_config('odis_demo', step.options)  # every key is one that something reads
            if name in (*DEGRADED, 'classic'):
                assert read_result(step.options['train_dataloader.dataset.ann_file'])['images']
    assert '| 60 percent false |' in text and 'odis-mm compare' in text
    root = next((tmp_path).glob('demo*'))
    truth = json.loads((root / 'annotations' / 'instances_train2017.json').read_text())
    jittered = read_result(tmp_path / 'worth' / 'boxes_at_IoU_0.7.json')
    for entry in jittered['annotations']:
        entry['score'] = 1.0
    assert recall_of(jittered, truth)['AR@100'] == pytest.approx(45, abs=6)  # thresholds 0.5 to 0.7: 4 or 5 of 10
    with pytest.raises(ConfigError, match='--teacher takes NAME=FILE'):
        make_plan(str(tmp_path / 'other'), **{**settings, 'teacher': ['x.pth']})
