"""Hook of mkdocs: parts of pages that are made from the code, so that they cannot differ from it.

What stands between ``<!-- generated: NAME -->`` and ``<!-- end -->`` in a page is replaced by the function of that name
in ``PARTS``. Of ``COMMITTED`` the checkout has the content, too, which a test compares and this command renews:

    python tools/misc/docs_pages.py

For the others it tells where to look instead.
"""

import argparse
import json
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Callable, Dict, List

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = ROOT / 'docs' / 'tutorials'
MARK = re.compile(r'<!-- generated: (\w+) -->.*?<!-- end -->', re.DOTALL)


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
    recipes=recipes, health=health, commands=commands, tutorials=tutorials, changelog=changelog
)

COMMITTED = ('recipes', 'health')  # short tables, which are read in a checkout as well


def write_committed() -> None:
    """Write the content of ``COMMITTED`` into the pages."""
    for page in sorted((ROOT / 'docs').glob('*.md')):
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


if __name__ == '__main__':
    on_startup()
    write_committed()
