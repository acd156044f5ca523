"""README and docs name commands, options and configs that exist."""

import ast
import functools
import inspect
import pkgutil
import re
import shlex
import sys
from importlib import import_module
from types import ModuleType

import pytest

import odis_mm
from helpers import ROOT
from odis_mm.cli import COMMANDS
from odis_mm.config import shipped_configs
from odis_mm.config.classes import registries

sys.path.insert(0, str(ROOT / 'tools' / 'misc'))
import docs_pages

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
HELP = {}


def command_lines(text):
    """Lines of indented and fenced code, continued ones joined; and code within a line."""
    text = text.replace('\\\n', ' ')
    fenced = re.findall(r'^```\w*\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    lines = [line for block in fenced for line in block.splitlines()]
    lines += re.findall(r'^ {4,}(\S.*)$', text, re.MULTILINE)
    return lines + re.findall(r'`([^`\n]+)`', text)


def options_of(name):
    if name not in HELP:
        HELP[name] = set(re.findall(r'--[a-z][\w-]*', docs_pages.help_of(name)))
    return HELP[name]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page):
    checked = 0
    for line in command_lines(page.read_text()):
        found = re.search(r'(?:odis-mm|python -m odis_mm) ([a-z][\w-]*)(.*)', line.partition('  #')[0])
        if not found:
            continue
        name, rest = found.groups()
        assert name in COMMANDS, f'{page.name}: {line}'
        for option in re.findall(r'(?<![\w=])--[a-z][\w-]*', rest):
            assert option in options_of(name), f'{page.name}: odis-mm {name} has no {option}: {line}'
        checked += 1
    if page.name in ('your_images.md', 'README.md'):
        assert checked >= 3


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_configs_and_scripts_exist(page):
    names = {*shipped_configs(), *(name.rpartition('/')[2] for name in shipped_configs())}
    for line in command_lines(page.read_text()):
        for script in re.findall(r'(?:^|[\s`])((?:tools|robustness)/[\w/]+\.(?:py|sh))', line):
            assert (ROOT / script).is_file(), f'{page.name}: {line}'
        found = re.search(r'tools/(?:train|test)\.py\s+(\S+)', line)
        if found and re.fullmatch(r'[a-z][\w/.-]*', found[1]):
            name = found[1].removeprefix('configs/').removesuffix('.py')
            assert name in names or found[1].startswith('work_dirs/'), f'{page.name}: {line}'


def dead_links(text, folder):
    """Relative links to files that are not there, or to headings that a page does not have."""
    for link in re.findall(r'\]\(([^)\s]+)\)', text):
        name, _, heading = link.partition('#')
        target = folder / name
        if link.startswith(('http:', 'https:')):
            continue
        if not target.exists():
            yield link
        elif heading and target.suffix == '.md':
            titles = re.findall(r'^#+ (.*)$', target.read_text(), re.MULTILINE)
            if heading not in {re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-') for title in titles}:
                yield link


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert not list(dead_links(page.read_text(), page.parent))


def test_links_of_generated_parts_lead_somewhere():
    docs = ROOT / 'docs'
    for part in ('changelog', 'tutorials'):
        assert not list(dead_links(docs_pages.PARTS[part](), docs)), part
    assert list(dead_links('[a](b.md), [c](install.md#no-such), [d](install.md#something-wrong)', docs)) == [
        'b.md',
        'install.md#no-such',
    ]


def test_generated_parts_are_whole(monkeypatch):
    monkeypatch.setitem(docs_pages.PARTS, 'recipes', functools.cache(docs_pages.recipes))  # reads all of them
    recipes = docs_pages.PARTS['recipes']()
    assert all(f'`{name}`' in recipes for name in shipped_configs())
    page = docs_pages.on_page_markdown('a <!-- generated: health -->\nelsewhere\n<!-- end --> b')
    assert page.startswith('a | finding |') and page.endswith(' b') and 'elsewhere' not in page
    for name in docs_pages.PARTS:
        pages = [p for p in (ROOT / 'docs').glob('*.md') if f'<!-- generated: {name} -->' in p.read_text()]
        assert len(pages) == 1 and 'in a checkout' not in docs_pages.on_page_markdown(pages[0].read_text()), name
        if name in docs_pages.COMMITTED:
            assert docs_pages.committed(name) in pages[0].read_text(), 'run python tools/misc/docs_pages.py'
    assert docs_pages.tutorials().count('\n## ') + 1 == 3 and 'find_objects(' in docs_pages.tutorials()
    text = docs_pages.help_of('pretrain')
    assert text.startswith('usage: odis-mm pretrain') and '--hours' in text and shlex.split('--data DIR')[0] in text


def texts_of_the_package():
    """All texts in the code, values that are put into them as '...'."""
    for path in sorted((ROOT / 'odis_mm').rglob('*.py')):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield ''.join(str(part.value) if isinstance(part, ast.Constant) else '...' for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_messages_in_troubleshooting_are_those_of_the_code():
    page = (ROOT / 'docs' / 'troubleshooting.md').read_text()
    rows = re.findall(r'^\| (`.*?) \| ', page, re.MULTILINE)
    said, others = '\n'.join(texts_of_the_package()), ('No module named', 'CUDA out of memory', 'loss_obj')
    parts = [part.strip(' :;,.') for row in rows for text in re.findall('`(.*?)`', row) for part in text.split('...')]
    checked = [part for part in parts if part and not part.startswith(others)]
    assert len(checked) > 30
    assert not [part for part in checked if part not in said]


def public_names():
    """What packages list in ``__all__``, and what is registered, by its name."""
    for package in ['odis_mm', *(m.name for m in pkgutil.walk_packages(odis_mm.__path__, 'odis_mm.') if m.ispkg)]:
        module = import_module(package)
        for name in getattr(module, '__all__', ()):
            yield f'{package}.{name}', getattr(module, name)
    for registry in registries():
        for name, value in registry.module_dict.items():
            if value.__module__.startswith('odis_mm.'):
                yield f'{value.__module__}.{name}', value


def test_api_reference_has_every_public_name():
    pytest.importorskip('mmcv._ext')
    shown = []
    for name in re.findall(r'^::: (\S+)$', (ROOT / 'docs' / 'api.md').read_text(), re.MULTILINE):
        value = pkgutil.resolve_name(name)
        shown.append(value)
        if isinstance(value, ModuleType):  # mkdocstrings shows what __all__ lists, else what the module defines
            own = [n for n, v in vars(value).items() if n[0] != '_' and getattr(v, '__module__', '') == name]
            inside = [m.name for m in pkgutil.iter_modules(getattr(value, '__path__', ()))]  # these hide functions
            shown += [getattr(value, n) for n in getattr(value, '__all__', own) if n not in inside]
    missing = [
        name
        for name, value in public_names()
        if not isinstance(value, ModuleType) and name != 'odis_mm.__version__' and not any(value is v for v in shown)
    ]
    assert not missing, 'not in docs/api.md'
    untold = [
        v for v in shown if (inspect.isclass(v) or inspect.isfunction(v)) and not vars(v).get('__doc__', v.__doc__)
    ]
    assert not untold, 'left out by mkdocstrings, as they have no docstring'
