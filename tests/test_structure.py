"""Rules of the house that no linter knows: private names stay in their module, tests import helpers and not each
other."""

import ast
import functools
import re
import runpy
import sys
from pathlib import Path

import yaml

from helpers import ROOT
from odis_mm.config import shipped_configs

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
    picture = text.partition('```mermaid')[2].partition('```')[0]
    assert rooms == {room.removesuffix('.py') for room in re.findall(r'<b>([\w.]+)</b>', picture)}
    present = {path.name.removesuffix('.py') for path in (ROOT / 'odis_mm').iterdir() if path.name[0] not in '_.'}
    assert present - {'py.typed', 'version'} == rooms, 'the contract of the layers leaves a module out'
