"""README and docs name commands, options and configs that exist."""

import argparse
import ast
import contextlib
import copy
import functools
import inspect
import io
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
from odis_mm.config import load_config, shipped_configs
from odis_mm.config.classes import registries
from odis_mm.config.options import apply_options, parse_options
from odis_mm.utils.errors import ConfigError
from odis_mm.workflows.plan import load_plan, shipped_plans

sys.path.insert(0, str(ROOT / 'tools' / 'misc'))
import docs_pages

PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').rglob('*.md'))]
HELP = {}


def code_lines(text):
    """Lines of indented and fenced code, continued ones joined."""
    text = text.replace('\\\n', ' ')
    fenced = re.findall(r'^```\w*\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    lines = [line for block in fenced for line in block.splitlines()]
    return lines + re.findall(r'^ {4,}(\S.*)$', text, re.MULTILINE)


def mentions(text):
    """Code within a line of text."""
    return re.findall(r'`([^`\n]+)`', text.replace('\\\n', ' '))


def command_lines(text):
    return code_lines(text) + mentions(text)


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


STANDS_FOR = {'N': '4', 'H': '1', 'B': '1', 'METHOD': 'odis', 'NAME': 'odis', 'LAYOUT': 'timm', 'SOURCE': 'classic'}
SCRIPTS = {  # what starts a command line: the package of the module behind it, None for those of odis-mm
    r'(?:odis-mm|python -m odis_mm) ([a-z][\w-]*)': None,
    r'python tools/(train|test)\.py': None,
    r'bash tools/(?:dist|slurm)_(train|test)\.sh': None,
    r'python -m odis_mm\.workflows\.(worth|bootstrap)': 'odis_mm.workflows',
    r'python robustness/(\w+)\.py': 'robustness',
}


class Parsed(Exception):
    """Ends a command once its arguments are read."""


def arguments(line):
    """Return the function that a command line calls and its words, with something in place of each placeholder."""
    line = re.sub(r' \[[^-][^][]*\]', '', line)  # [VALUE]
    line = re.split(r'  #|\||&&', re.sub(r'\[(-[^][]*)\]', r'\1', line))[0]  # [--option]
    for start, package in SCRIPTS.items():
        found = re.search(f'(?:^|[ (`]){start}(?![\\w.])(.*)', line)
        if not found:
            continue
        words = [STANDS_FOR.get(word, word) for word in shlex.split(found[2]) if word != '...']
        if 'dist_' in found[0]:  # CONFIG [CHECKPOINT] RANKS
            del words[1 if found[1] == 'train' else 2]
        elif 'slurm_' in found[0]:  # PARTITION JOB CONFIG
            del words[:2]
        command = COMMANDS.get(found[1])
        if package:
            return import_module(f'{package}.{found[1]}').main, words
        return command and getattr(import_module(command.module), command.function), words
    return None, []


def parsed(function, words, monkeypatch):
    """Return what the real parser of a command makes of words, or the message with which it refuses them."""
    real, found = argparse.ArgumentParser.parse_args, []

    def parse(parser, args=None, namespace=None):
        found.append(real(parser, args, namespace))
        raise Parsed

    said = io.StringIO()
    with monkeypatch.context() as patch, contextlib.redirect_stderr(said), contextlib.suppress(Parsed, SystemExit):
        patch.setattr(argparse.ArgumentParser, 'parse_args', parse)
        patch.setattr(sys, 'argv', ['command', *words])
        function(words) if inspect.signature(function).parameters else function()
    return found[0] if found else said.getvalue()


def refusal(line, monkeypatch, whole=True):
    """Return why a command line cannot be used as it stands; None if it can, or is none."""
    function, words = arguments(line)
    if not function:
        return None
    args = parsed(function, words, monkeypatch)
    if isinstance(args, str):
        return args if whole or not re.search('required|expected .* argument', args) else None
    names, config = {*shipped_configs()}, getattr(args, 'config', None)
    names |= {name.rpartition('/')[2] for name in names}
    options = parse_options(pair for pair in getattr(args, 'cfg_options', []) if re.match(r'\+?[a-z][\w.]*=', pair))
    stand_ins = [key for key, value in options.items() if re.fullmatch(r'\$\w+|[A-Z]+', str(value))]
    options.update(dict.fromkeys(stand_ins))  # EPOCHS or $S in place of a number
    name = str(config).removeprefix('configs/').removesuffix('.py')
    if options and (name in names or str(config).isupper()):
        load_config(name if name in names else 'odis_demo', options)
    plan = getattr(args, 'plan', None)
    if plan in shipped_plans():
        load_plan(plan, args.set)
    return None


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_command_lines_are_parsed(page, monkeypatch):
    text = page.read_text()
    for line in code_lines(text):
        assert not refusal(line, monkeypatch), line
    for line in mentions(text):  # a part of a command may be named alone
        assert not refusal(line, monkeypatch, whole=False), line


def test_wrong_command_lines_are_refused(monkeypatch):
    assert 'unrecognized arguments: --stepz' in refusal('odis-mm pretrain --data DIR --stepz N', monkeypatch)
    assert 'must be a whole number' in refusal('odis-mm pretrain --data DIR --steps many   # a comment', monkeypatch)
    assert 'required' in refusal('odis-mm pretrain', monkeypatch)
    assert refusal('odis-mm pretrain', monkeypatch, whole=False) is None
    assert 'invalid choice' in refusal('COCO_ROOT=DIR python tools/train.py CONFIG --launcher no', monkeypatch)
    with pytest.raises(ConfigError, match='batchsize'):
        refusal('bash tools/dist_train.sh odis_vits_coco 8 --cfg-options train_dataloader.batchsize=8', monkeypatch)
    with pytest.raises(ConfigError, match='seedz'):
        refusal('odis-mm compare photographs --set seedz.detector=3', monkeypatch)


def test_options_of_configs_exist():
    recipes = (
        'odis_vits_coco',
        'gtsa_vits_coco',
        'alfm_vits_coco',
        'odis_vits_continue_coco',
        'mask-rcnn_vits_fpn_1x_coco',
        'mask-rcnn_demo',
    )
    configs, checked = [load_config(name) for name in recipes], 0
    for page in PAGES:
        for text in mentions(page.read_text()):
            if not re.fullmatch(
                r'(?:model|train_dataloader|optim_wrapper|default_hooks|train_cfg|visualizer)\.[\w.]+=\S+', text
            ):
                continue
            said = []
            for config in configs:
                try:
                    apply_options(copy.deepcopy(config), parse_options([text]))
                except ConfigError as error:
                    said.append(str(error))
            assert len(said) < len(configs), f'{page.name}: {said}'
            checked += 1
    assert checked > 10


def test_lines_of_the_readme_are_short():
    assert max(map(len, (ROOT / 'README.md').read_text().splitlines())) <= 120


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_configs_and_scripts_exist(page):
    names = {*shipped_configs(), *(name.rpartition('/')[2] for name in shipped_configs())}
    for line in command_lines(page.read_text()):
        for script in re.findall(r'(?:^|[\s`])((?:tools|robustness|tests|odis_mm|configs)/[\w/]+\.(?:py|sh))', line):
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
        pages = [p for p in (ROOT / 'docs').rglob('*.md') if f'<!-- generated: {name} -->' in p.read_text()]
        assert len(pages) == 1 and 'in a checkout' not in docs_pages.on_page_markdown(pages[0].read_text()), name
        if name in docs_pages.COMMITTED:
            assert docs_pages.committed(name) in pages[0].read_text(), 'run python tools/misc/docs_pages.py'
    assert docs_pages.tutorials().count('\n## ') + 1 == 3 and 'find_objects(' in docs_pages.tutorials()
    assert "| `mmdet ... refuses mmcv ...` | `pip install 'mmcv<2.2'` |" in docs_pages.doctor()
    assert '| `model.head.num_cells` | `7` | what two views share' in docs_pages.PARTS['knobs_alfm']()
    assert '| `SampleViews.min_cover` | `0.04` | a derivative' in docs_pages.PARTS['knobs_odis']()
    html = docs_pages.on_page_content('see :func:<code>~odis_mm.objects.\nfind_objects</code>, :class:<code>a.B</code>')
    assert html == 'see <code>find_objects</code>, <code>a.B</code>'
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
    page = docs_pages.MARK.sub('', (ROOT / 'docs' / 'troubleshooting.md').read_text())
    rows = re.findall(r'^\| (`.*?) \| ', page, re.MULTILINE)
    said, others = '\n'.join(texts_of_the_package()), ('No module named', 'loss_obj')
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
