"""Hook of mkdocs: parts of pages that are made from the code, so that they cannot differ from it.

What stands between ``<!-- generated: NAME -->`` and ``<!-- end -->`` in a page is replaced by the function of that name
in ``PARTS``. Of ``COMMITTED`` the checkout has the content, too, which a test compares and this command renews:

    python tools/misc/docs_pages.py

For the others it tells where to look instead.
"""

import argparse
import ast
import io
import json
import re
import sys
import tokenize
from importlib import import_module
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Tuple

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = ROOT / 'docs' / 'tutorials'
SHARED = ('data_preprocessor', 'backbone')  # keys of a model that all methods have alike
MARK = re.compile(r'<!-- generated: (\w+) -->.*?<!-- end -->', re.DOTALL)
ROLE = re.compile(r':(?:class|data|func|meth|mod):<code>(?:~[\w.\s]*\.\s*)?([\w.\s]+)</code>')


def recipes() -> str:
    """A table of all shipped configs, with numbers read from them."""
    from odis_mm.config import load_config, shipped_configs

    lines = {'pretraining': [], 'detectors': []}
    for name in shipped_configs():
        cfg = load_config(name)
        model, loader = cfg.model, cfg.train_dataloader
        steps = cfg.train_cfg.get('max_epochs'), cfg.train_cfg.get('max_iters')
        length = f'{steps[0]} epochs' if steps[0] else f'{steps[1]} steps'
        backbone = model.get('backbone') or {}
        arch = backbone.get('arch', f'{backbone.get("type", "").rpartition(".")[2]}-{backbone.get("depth")}')
        if isinstance(arch, dict):
            arch = f'{arch["embed_dims"]} wide, {arch["num_layers"]} deep'
        shape = f'{arch}, patch {backbone["patch_size"]}' if 'patch_size' in backbone else str(arch)
        row = f'| `{name}` | {model.type} | {shape} | {length} | {loader.batch_size} |'
        lines['detectors' if cfg.get('default_scope') == 'mmdet' else 'pretraining'].append(row)
    head = '| config | model | backbone | length | images per rank and step |\n|---|---|---|---|---|\n'
    return '\n\n'.join(f'## {title.capitalize()}\n\n{head}' + '\n'.join(rows) for title, rows in lines.items())


def health() -> str:
    """Return the health monitor's findings and their remedies."""
    from odis_mm.engine.hooks.health import REMEDIES

    rows = [f'| {name} | {remedy} |' for name, remedy in REMEDIES.items()]
    return '\n'.join(['| finding | what to try |', '|---|---|', *rows])


def doctor() -> str:
    """Return the problems that ``odis-mm doctor`` names, with the lines that fix them, read from its code."""
    tree = ast.parse((ROOT / 'odis_mm' / 'cli' / 'doctor.py').read_text())
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, 'id', '') == 'Finding']
    calls = sorted((call for call in calls if len(call.args) > 2), key=lambda call: call.lineno)
    rows = [f'| `{_template(call.args[1])}` | `{_template(call.args[2])}` |' for call in calls]
    return '\n'.join(['| problem | what to do |', '|---|---|', *rows])


def _template(node: ast.AST) -> str:
    """The text that an expression makes where something is wrong; '...' for values that are put in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return ''.join(map(_template, node.values))
    if isinstance(node, ast.FormattedValue):
        return _template(node.value)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _template(node.left) + _template(node.right)
    if isinstance(node, ast.IfExp):  # what is well comes first there
        return _template(node.orelse) or _template(node.body)
    return '...'


def knobs(method: str, data: str) -> str:
    """A table of the commented values of a method's base config, and of how it draws views.

    Args:
        method: Name of the file in ``configs/_base_/models``.
        data: The same in ``configs/_base_/datasets``.
    """
    base = ROOT / 'configs' / '_base_'
    rows = [row for row in _commented(base / 'models' / f'{method}.py', 'model') if row[0].split('.')[1] not in SHARED]
    rows += [row for row in _commented(base / 'datasets' / f'{data}.py') if row[0].startswith('Sample')]
    return '\n'.join(
        ['| option | value | where from |', '|---|---|---|', *(f'| `{k}` | `{v}` | {c} |' for k, v, c in rows)]
    )


def _commented(path: Path, variable: str = '') -> Iterator[Tuple[str, str, str]]:
    """Yield key, value and comment of each value in a config that has a comment, above it or on its line."""
    text = path.read_text()
    lines = text.splitlines()
    comments = {
        token.start[0]: token.string.lstrip('# ')
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    }

    def visit(call: ast.Call, path: str) -> Iterator[Tuple[str, str, str]]:
        for i, item in enumerate(call.keywords):
            value, key = item.value, f'{path}.{item.arg}'
            first, last = item.lineno, value.end_lineno
            inside = list(visit(value, key)) if isinstance(value, ast.Call) and first != last else []
            following = call.keywords[i + 1].lineno if i + 1 < len(call.keywords) else None
            above, n = [], first - 1
            while n in comments and lines[n - 1].lstrip().startswith('#'):
                above.insert(0, comments[n])
                n -= 1
            said = [*above, comments.get(first, ''), comments.get(last, '') if last != first else '']
            said = [] if following == last else [comment for comment in said if comment]
            if item.arg == 'views' and isinstance(value, ast.List):
                shown = '; '.join(ast.unparse(view).removeprefix('dict(')[:-1] for view in value.elts)
            else:
                shown = ast.unparse(value)
            if inside:
                yield from inside
            elif said and item.arg != 'type':
                yield key, shown, ' '.join(said)

    for node in ast.walk(ast.parse(text)):
        if variable and isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == variable:
            yield from visit(node.value, variable)
        elif not variable and isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'dict':
            kind = [item.value.value for item in node.keywords if item.arg == 'type']
            if kind and kind[0].startswith('Sample'):
                yield from visit(node, kind[0])


def commands() -> str:
    """What ``--help`` prints, of every command."""
    from odis_mm.cli import COMMANDS

    pages = ['| command | |\n|---|---|\n' + '\n'.join(f'| [`{n}`](#{n}) | {c.help} |' for n, c in COMMANDS.items())]
    pages += [f'## {name}\n\n```text\n{help_of(name)}\n```' for name in COMMANDS]
    return '\n\n'.join(pages)


def help_of(name: str) -> str:
    """The help text of a command, 84 columns wide on any machine."""
    from odis_mm.cli import COMMANDS

    found: List[str] = []

    def keep(parser: argparse.ArgumentParser, *_: object) -> None:
        parser.prog = f'odis-mm {name}'
        parser.formatter_class = _wide(parser.formatter_class)
        found.append(parser.format_help())
        raise SystemExit

    command, real = COMMANDS[name], argparse.ArgumentParser.print_help
    argparse.ArgumentParser.print_help = keep  # type: ignore[method-assign]
    try:
        getattr(import_module(command.module), command.function)(['--help'])
    except SystemExit:
        pass
    finally:
        argparse.ArgumentParser.print_help = real  # type: ignore[method-assign]
    return found[0].rstrip()


def _wide(formatter: Callable) -> Callable:
    return lambda prog: formatter(prog, width=84)


def tutorials() -> str:
    """The notebooks, one below the other."""
    pages = []
    for path in sorted(TUTORIALS.glob('*.ipynb')):
        cells = [(cell['cell_type'], ''.join(cell['source'])) for cell in json.loads(path.read_text())['cells']]
        parts = [f'```python\n{text}\n```' if kind == 'code' else re.sub('^#', '##', text) for kind, text in cells]
        pages.append('\n\n'.join([*parts, f'[The notebook](tutorials/{path.name})']))
    return '\n\n'.join(pages)


def changelog() -> str:
    """CHANGELOG.md of the repository, without its heading; its links lead from the folder of the docs."""
    text = (ROOT / 'CHANGELOG.md').read_text().split('\n', 1)[1].strip()
    text = re.sub(r'\[([^]]+)\]\((?!https?:|docs/)[^)]*\)', r'\1', text)
    return text.replace('](docs/', '](')


PARTS: Dict[str, Callable[[], str]] = dict(
    recipes=recipes,
    health=health,
    doctor=doctor,
    knobs_odis=lambda: knobs('odis_vits', 'coco_objects'),
    knobs_gtsa=lambda: knobs('gtsa_vits', 'coco_pairs'),
    knobs_alfm=lambda: knobs('alfm_vits', 'coco_two_views'),
    commands=commands,
    tutorials=tutorials,
    changelog=changelog,
)

# short tables, which are read in a checkout as well
COMMITTED = ('recipes', 'health', 'doctor', 'knobs_odis', 'knobs_gtsa', 'knobs_alfm')


def write_committed() -> None:
    """Write the content of ``COMMITTED`` into the pages."""
    for page in sorted((ROOT / 'docs').rglob('*.md')):
        text = page.read_text()
        page.write_text(MARK.sub(lambda found: committed(found[1]) if found[1] in COMMITTED else found[0], text))


def committed(name: str) -> str:
    """A part with its marks."""
    return f'<!-- generated: {name} -->\n\n{PARTS[name]()}\n\n<!-- end -->'


def on_startup(**_: object) -> None:
    """Called by mkdocs once; a checkout works without being installed."""
    sys.path.insert(0, str(ROOT))


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by mkdocs for every page."""
    return MARK.sub(lambda found: PARTS[found[1]](), markdown)


def on_page_content(html: str, **_: object) -> str:
    """Called by mkdocs for every page: Sphinx's roles in docstrings, text to Markdown, become plain code."""
    return ROLE.sub(r'<code>\1</code>', html)


if __name__ == '__main__':
    on_startup()
    write_committed()
