"""Command lines of what is done with a checkpoint: transfer and frozen evaluation. Parsing and one call each."""
import argparse
from typing import List, Optional, Tuple

from .cli import _guarded
from .transfer import LAYOUTS, read_checkpoint, read_vit, transfer


def transfer_main(argv: Optional[List[str]] = None) -> None:
    """``tools/transfer.py SOURCE [OUT --to LAYOUT]``: bring the ViT of a file into another library's layout, and prove it."""
    parser = argparse.ArgumentParser(
        description='Bring the ViT of a checkpoint (ours, timm, DINO, iBOT, DINOv2, MAE, GTSA, Hugging Face, mmpretrain, mmseg, detectron2) into the '
        'layout of a library, and prove that it arrived. Without OUT: say what the file holds.')
    parser.add_argument('source', help='.pth of tensors, or .safetensors')
    parser.add_argument('out', nargs='?', help='.pth, .safetensors, or a folder for huggingface')
    parser.add_argument('--to', choices=list(LAYOUTS), default='odis_mm', help='layout of OUT (default: odis_mm)')
    parser.add_argument('--grid', type=_grid, metavar='ROWSxCOLUMNS', help='patch grid to resample the position embedding to, e.g. 32x32')
    parser.add_argument('--source-grid', type=_grid, metavar='ROWSxCOLUMNS', help='patch grid of SOURCE, if it is no square')
    parser.add_argument('--heads', type=int, help="attention heads (default: from the file's meta, or those of ViT-T/S/B/L/H)")
    parser.add_argument('--drop', nargs='+', default=[], metavar='NAME', help='tensors to leave out knowingly: names or their beginnings')
    args = parser.parse_args(argv)

    def work() -> None:
        if args.out is None:
            print(_describe(args))
            return
        for part in transfer(args.source, args.out, args.to, grid=args.grid, source_grid=args.source_grid, heads=args.heads, drop=args.drop):
            print(part)
        print(f'written: {args.out}')

    _guarded(work)


def _describe(args: argparse.Namespace) -> str:
    source = read_vit(read_checkpoint(args.source), args.source, source_grid=args.source_grid, drop=args.drop)
    state, patch = source.state, source.state['patch_embed.projection.weight']
    patches = state['pos_embed'].shape[1] - int('cls_token' in state)
    side = round(patches**.5)
    rows, columns = args.source_grid or (side, side)
    positions = f'{rows} x {columns} positions' if rows * columns == patches else f'{patches} positions'
    parts = [f'{1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers."))} blocks', f'{patch.shape[0]} wide',
             f'patch {patch.shape[2]}', positions]
    parts += [words for name, words in (('layers.0.attn.gamma1.weight', 'layer scale'), ('object_tokens', 'registers')) if name in state]
    lines = [f'{args.source}: {source.dialect}' + (f', under {source.prefix}*' if source.prefix else ''), f'  {", ".join(parts)}']
    lines += [f'  beside it: {count} tensors under {part}' for part, count in source.outside.items()]
    lines += [f'  no target gets {name}: {why}' for name, why in source.dropped.items()]
    return '\n'.join(lines)


def _grid(text: str) -> Tuple[int, int]:
    rows, cross, columns = text.partition('x')
    if not cross or not rows.isdigit() or not columns.isdigit() or not int(rows) * int(columns):
        raise argparse.ArgumentTypeError(f'{text!r} is not ROWSxCOLUMNS, such as 14x14')
    return int(rows), int(columns)


COMMANDS = dict(transfer=transfer_main)
