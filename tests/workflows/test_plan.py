"""Plans: what is accepted, what is refused in one sentence, and the plans that come with the package."""

import pytest
import yaml

from odis_mm.config import load_config
from odis_mm.utils.errors import ConfigError
from odis_mm.workflows.plan import dump_plan, load_plan, parse_plan, select_starts, shipped_plans

SMALLEST = dict(data=dict(root='x'), starts={'random weights': {}, 'ODIS': dict(recipe='odis_demo')})


def test_a_plan_is_what_it_says():
    plan = parse_plan(
        {
            **SMALLEST,
            'starts': {
                'random': None,
                'chain': dict(chain=[dict(file='a.pth'), dict(recipe='alfm_demo', options={'model.lambda_cdlp': 0})]),
            },
            'labels': 10,
            'pretraining': dict(minutes=3),
        }
    )
    assert plan.labels == (10.0,) and plan.pretraining.minutes == 3.0 and plan.reference == 'random'
    first, second = plan.start('chain').steps
    assert (
        first.file == 'a.pth' and second.options == {'model.lambda_cdlp': 0} and len(plan.start('chain').recipes) == 1
    )


@pytest.mark.parametrize('name', ['plan', *shipped_plans()])
def test_written_and_read_again_it_is_the_same(name, tmp_path):
    plan = parse_plan(SMALLEST) if name == 'plan' else load_plan(name)[0]
    assert parse_plan(yaml.safe_load(dump_plan(plan))) == plan


@pytest.mark.parametrize('name', shipped_plans())
def test_shipped_plans_name_configs_that_exist(name):
    plan, _ = load_plan(name)
    for start in plan.starts:
        for step in start.recipes:
            load_config(step.recipe, dict(step.options))


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(stars={}), "no key 'stars'; did you mean 'starts'"),
        (dict(starts={}), '"starts" must name at least one start'),
        (dict(starts=dict(a=dict(recpe='x'))), "starts.a has no key 'recpe'; did you mean 'recipe'"),
        (dict(starts=dict(a=dict(recipe='x', file='y'))), 'starts.a: each step has either a recipe or a file'),
        (dict(starts=dict(a=dict(chain=[dict(recipe='x'), dict(file='y')]))), 'a file can only be the first step'),
        (dict(starts={'a b': {}, 'a-b': {}, 'c': {}}), "must differ in .*: rename 'a b' or 'a-b'"),
        (
            dict(starts={'a': dict(recipe='x'), 'a p1': {}}, pretraining=dict(iterations=9)),
            "runs of the starts 'a' and 'a p1' have one name: rename one",
        ),
        (dict(starts={'星': {}}), "must differ in letters .a to z. and digits: rename '星'"),
        (dict(starts=dict(a=dict(recipe='x', detector='faster-rcnn_small'))), 'starts.a.detector must be a mapping'),
        (dict(starts=dict(a=dict(chain=[]))), 'starts.a: a chain is a list of steps'),
        (dict(starts=dict(a=dict(chain=[dict(recipe='x', share=0)]))), 'a share .* must be above 0'),
        (dict(pretraining=dict(iterations=0)), 'pretraining.iterations must be 4 or more'),
        (dict(pretraining=dict(minutes=-1)), 'pretraining.minutes must be above 0'),
        (dict(detector=dict(iterations=0)), 'detector.iterations must be 2 or more'),
        (dict(tuning=dict(trials=-1)), 'tuning.trials and pictures must be 0 or more'),
        (dict(data=dict(demo=0)), 'data needs a root, or a number of demo images'),
        (dict(labels=['many']), "labels must be a number, not 'many'"),
        (dict(labels=[0]), 'labels are percentages'),
        (dict(seeds=dict(detector=1.5)), 'seeds.detector must be a whole number, not 1.5'),
        (dict(seeds=dict(detector=0)), 'seeds must be 1 or more'),
        (dict(pretraining=dict(iterations=5, minutes=1)), 'either iterations or minutes'),
        (dict(pretraining=dict(iterations=5, lengths=[2])), 'lengths are shares'),
        (dict(data=dict(root='x', demo=5)), 'data needs a root, or a number of demo images'),
        (dict(data=dict(root='x', duplicates='maybe')), 'data.duplicates must be one of refuse, drop, allow'),
        (dict(evaluate='train'), 'evaluate must be val or test'),
        (dict(baseline='none'), "baseline 'none' is no start"),
    ],
)
def test_what_is_wrong_is_named(change, words):
    with pytest.raises(ConfigError, match=words):
        parse_plan({**SMALLEST, **change})


def test_a_plan_is_changed_by_options(tmp_path):
    path = tmp_path / 'p.yaml'
    path.write_text(yaml.safe_dump(SMALLEST))
    plan, folder = load_plan(
        path, ['seeds.detector=3', 'labels=[5, 50]', 'data.root=y', 'starts.ODIS.options={a.b: 1}']
    )
    assert plan.seeds.detector == 3 and plan.labels == (5.0, 50.0) and plan.data.root == 'y' and folder == tmp_path
    assert plan.start('ODIS').recipes[0].options == {'a.b': 1}
    budget = load_plan(path, ['pretraining.iterations=7', 'pretraining.minutes=5'])[0].pretraining
    assert (budget.iterations, budget.minutes) == (None, 5)  # one takes the place of the other
    with pytest.raises(ConfigError, match='not of the form KEY=VALUE'):
        load_plan(path, ['seeds'])
    with pytest.raises(ConfigError, match="no plan 'quikstart'.*did you mean 'quickstart'"):
        load_plan('quikstart')
    with pytest.raises(ConfigError, match='is a folder and no plan: .* name it by --data'):
        load_plan(tmp_path)
    path.write_text('data: {root: x}\nstarts:\n  ALFM: {recipe: a}\n  ALFM: {recipe: b}\n')
    with pytest.raises(ConfigError, match="has the key 'ALFM' twice: give each start"):
        load_plan(path)
    path.write_text('a: [')
    with pytest.raises(ConfigError, match='is not YAML'):
        load_plan(path)


def test_some_starts_and_the_reference():
    plan = parse_plan({**SMALLEST, 'starts': {**SMALLEST['starts'], 'GTSA': dict(recipe='gtsa_demo')}})
    assert [s.name for s in select_starts(plan, ['odis']).starts] == ['random weights', 'ODIS']
    with pytest.raises(ConfigError, match="no start 'odsi' in the plan; did you mean 'odis'"):
        select_starts(plan, ['odsi'])
