"""Rules of the house that no linter knows: private names stay in their module, tests import helpers and not each
other."""

import ast
import functools
import re
import runpy
import sys
from logging import Handler
from pathlib import Path

import yaml
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from helpers import ROOT
from odis_mm.config import shipped_configs

UPSTREAM = (Runner, OptimWrapper, Optimizer, Hook, DataLoader, Handler)
OURS = ('odis_mm', 'robustness', 'helpers', 'ddp_helpers', 'conftest')


def sources(*folders):
    return [path for folder in folders for path in sorted(ROOT.joinpath(folder).rglob('*.py'))]


@functools.cache
def nodes(path: Path) -> list:
    """Return all nodes of a module's syntax, the module itself first."""
    return list(ast.walk(ast.parse(path.read_text(encoding='utf-8'))))


def imports(path: Path):
    """Yield (line, module, name) of each import from a module of this repository; ``.`` stands for the package."""
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or '').partition('.')[0] in OURS):
            for alias in node.names:
                yield node.lineno, '.' * node.level + (node.module or ''), alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, ''


def test_private_names_are_imported_by_nobody():
    found = [
        f'{path.relative_to(ROOT)}:{line}: {module} {name}'
        for path in sources('odis_mm', 'tests', 'robustness', 'tools')
        for line, module, name in imports(path)
        if name.startswith('_') and not name.startswith('__')
    ]
    assert not found, found


def is_private(name: str) -> bool:
    return name.startswith('_') and not name.startswith('__') and name != '_'


def defined(syntax: list) -> set:
    """Return the private functions, classes, attributes of ``self`` and module or class variables of a module."""
    names = set()
    for node in syntax:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            names.add(node.attr)
        elif isinstance(node, (ast.Module, ast.ClassDef)):
            targets = [t for part in node.body for t in getattr(part, 'targets', [getattr(part, 'target', None)])]
            names.update(target.id for target in targets if isinstance(target, ast.Name))
    return {name for name in names if is_private(name)}


def is_own(node: ast.AST) -> bool:
    """Whether it is ``self``, ``cls`` or ``super()``, whose private names a subclass may use."""
    if isinstance(node, ast.Call):
        node = node.func
    return isinstance(node, ast.Name) and node.id in ('self', 'cls', 'super')


def private_uses(syntax: list):
    """Yield (line, name) of ``thing._name`` and of ``getattr(thing, '_name')``, ``setattr`` and the like."""
    for node in syntax:
        if isinstance(node, ast.Attribute) and is_private(node.attr) and not is_own(node.value):
            yield node.lineno, node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition('.')[2][3:] == 'attr':
            for argument in node.args[:2]:
                name = str(getattr(argument, 'value', '')).rpartition('.')[2]
                if isinstance(argument, ast.Constant) and is_private(name):
                    yield node.lineno, name


def test_private_attributes_are_used_in_their_module_alone():
    ours = set().union(*(defined(nodes(path)) for path in sources('odis_mm', 'robustness', 'tools')))
    found = [
        f'{path.relative_to(ROOT)}:{line}: {name}'
        for path in sources('odis_mm', 'robustness', 'tools', 'tests')
        for line, name in private_uses(nodes(path))
        if name in ours - defined(nodes(path))
    ]
    assert not found, found
    bad = ast.parse("import odis_mm\nodis_mm.apis._build\nmonkeypatch.setattr('odis_mm.apis._build', 0)\nself._build")
    assert [line for line, _ in private_uses(list(ast.walk(bad)))] == [2, 3], 'the rule finds what it looks for'


# what has no other way upstream; each has a test that fails when upstream changes
PATCHES = {
    'odis_mm/analysis/cost.py': '__class__',  # of a model that is counted without values
    'odis_mm/datasets/workers.py': '__class__',  # of a loader that mmengine made
    'odis_mm/engine/log.py': 'handleError',  # of the handler of a log file
    'odis_mm/transfer/mmengine_loading.py': '_schemes setattr',
    'odis_mm/utils/noise.py': 'stdout',
    'odis_mm/models/backbones/object_vit.py': 'setattr',  # a limit in torch's settings
}
BENCHMARKS = ('odis_mm/analysis/benchmark.py', 'odis_mm/analysis/peer.py')


def patches(syntax: list):
    """Yield (line, name) of what a module changes in others' classes, modules and objects: an attribute of something
    imported, or a method of mmengine's and torch's objects."""
    foreign = {
        alias.asname or alias.name.partition('.')[0]
        for node in syntax
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    methods = {name for kind in UPSTREAM for name in dir(kind) if callable(getattr(kind, name, None))} | {'clip_func'}
    for node in syntax:
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del)) and not is_own(node.value):
            if base(node) in foreign or node.attr in methods and base(node) != 'cfg':
                yield node.lineno, node.attr
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ('setattr', 'delattr') and base(node.args[0]) in foreign:
                yield node.lineno, called
            elif re.search(r'\b(mock\.patch|monkeypatch|MonkeyPatch)\b', called):
                yield node.lineno, 'mock'


def base(node: ast.AST) -> str:
    """Return ``a`` of ``a.b.c`` and ``a.b[0]``."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return getattr(node, 'id', '')


def test_nothing_is_patched_at_run_time():
    found = {
        f'{path.relative_to(ROOT)}:{line}: {name}'
        for path in sources('odis_mm')
        for line, name in patches(nodes(path))
        if name not in PATCHES.get(path.relative_to(ROOT).as_posix(), '').split()
        and not (name == 'mock' and path.relative_to(ROOT).as_posix() in BENCHMARKS)
    }
    assert not found, found
    bad = """
import mmengine
from mmengine.runner import CheckpointLoader
runner.save_checkpoint = ours
self.runner.optim_wrapper.step = ours
wrapper.clip_func = ours
CheckpointLoader.load = ours
mmengine.runner.checkpoint.load_url = ours
setattr(mmengine.runner, 'load_url', ours)
mock.patch.object(mmengine, 'Config')
"""
    planted = list(ast.walk(ast.parse(bad)))
    assert sorted(line for line, _ in patches(planted)) == [4, 5, 6, 7, 8, 9, 10], 'the rule finds what it looks for'


def test_configs_name_the_step_or_hook_that_they_change():
    counted = re.compile(r'(pipeline|transforms|hooks)\[-?\d*:?-?\d*\]')
    found = [
        f'{path.relative_to(ROOT)}: {match[0]}'
        for path in [*sources('configs'), *sources('odis_mm/recipes')]
        for match in counted.finditer(path.read_text())
    ]
    assert not found, found
    assert counted.search('pipeline[4:]') and counted.search('custom_hooks[2]') and counted.search('pipeline[-1]')


def test_words():
    """Field terms in place of metaphors, "per image" in place of "an image"."""
    words = (
        'has an opinion|sickness|passed over, aloud|insists|nothing stands in the way|mend:|goes on in the middle|'
        r'\d (ms|s|MB|GB|[GM]?FLOPs?) (an|a) (image|view|step|run)\b'
    )
    texts = [ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')]
    texts += [*sources('odis_mm', 'robustness', 'tools', 'tests', 'configs'), *ROOT.joinpath('docs').rglob('*.md')]
    found = [
        f'{path.relative_to(ROOT)}: {match[0]}'
        for path in texts
        if path != Path(__file__)
        for match in re.finditer(words, path.read_text(encoding='utf-8'))
    ]
    assert not found, found


def test_tests_share_helpers_and_nothing_else():
    modules = {path.stem for path in sources('tests')} - {'helpers', 'ddp_helpers'}
    in_text = re.compile(r'\bimport (test_\w+)|\bfrom (test_\w+) import')  # of a program in a string
    assert len(modules) == len(sources('tests')) - 2, 'two test modules share a name'
    found = [
        f'{path.relative_to(ROOT)}:{line}: {module}'
        for path in sources('tests')
        for line, module, _ in imports(path)
        if module.lstrip('.') in modules or module.startswith('.')
    ]
    found += [f'{path.name}: {text[0]}' for path in sources('tests') for text in in_text.finditer(path.read_text())]
    assert not found, found


def test_tests_lie_where_what_they_test_lies():
    rooms = {path.parent.relative_to(ROOT / 'tests') for path in sources('tests')}
    beside = {Path('docs'), Path('robustness')}
    missing = {room for room in rooms - beside if not (ROOT / 'odis_mm' / room).is_dir()}
    assert not missing, missing


def metafiles():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    return {name: yaml.safe_load((ROOT / name).read_text()) for name in index['Import']}


def test_mim_finds_every_recipe():
    """What ``mim search`` and ``mim download`` read: names, collections, paths of configs."""
    listed = {}
    for name, content in metafiles().items():
        assert set(content) == {'Collections', 'Models'}, name
        collections = {collection['Name'] for collection in content['Collections']}
        assert collections == {model['In Collection'] for model in content['Models']}, name
        for model in content['Models']:
            assert Path(model['Config']).stem == model['Name'] and (ROOT / model['Config']).is_file(), model
            listed[Path(model['Config']).relative_to('configs').with_suffix('').as_posix()] = model
    assert set(listed) == set(shipped_configs())


def test_metafiles_are_those_of_the_recipes(monkeypatch):
    monkeypatch.setattr(sys, 'path', list(sys.path))
    written = runpy.run_path(str(ROOT / 'tools/misc/metafiles.py'))['metafiles']()
    stale = [path for path, text in written.items() if not (ROOT / path).is_file() or (ROOT / path).read_text() != text]
    assert not stale, f'{stale} are not those of the recipes: python tools/misc/metafiles.py'


def test_the_architecture_page_names_files_and_rooms_that_exist():
    text = (ROOT / 'docs/architecture.md').read_text()
    paths = set(re.findall(r'`((?:odis_mm|configs|tools|tests|docs|robustness)/[\w/.]*)`', text))
    assert len(paths) > 20 and not [path for path in paths if not (ROOT / path).exists()]
    named = re.findall(r'`(odis_mm/[\w/]+\.py)` \(`([\w.]+)`', text)  # a file and what to look for in it
    assert len(named) >= 8
    for path, name in named:
        symbols = {node.name for node in nodes(ROOT / path) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        assert set(name.split('.')) <= symbols, (path, name)
    contract = (ROOT / 'pyproject.toml').read_text().partition('[[tool.importlinter.contracts]]')[2]
    rooms = set(re.findall(r'\w+', re.search(r'layers = \[(.*?)\]', contract, re.DOTALL)[1]))
    pictures = ' '.join(re.findall(r'```mermaid(.*?)```', text, re.DOTALL))
    assert rooms == {room.removesuffix('.py') for room in re.findall(r'<b>([\w.]+)</b>', pictures)}
    present = {path.name.removesuffix('.py') for path in (ROOT / 'odis_mm').iterdir() if path.name[0] not in '_.'}
    assert present - {'py.typed', 'version'} == rooms, 'the contract of the layers leaves a module out'
