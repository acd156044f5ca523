"""From one file to another: read, convert, write, prove."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Optional, Sequence, Tuple

from torch import nn

from ..utils.errors import CheckpointError
from ..utils.files import PathLike, atomic_save, atomic_write, atomic_write_text
from .build import Proof, build_vit, prove
from .checkpoint import read_checkpoint, read_meta, save_backbone
from .conversion import Conversion, convert
from .layouts import LAYOUTS
from .positions import Grid, told_grid
from .reading import Source, read_vit
from .resnet import build_resnet, find_resnet, read_resnet
from .shape import VitShape


def transfer(
    source: PathLike,
    out: PathLike,
    target: str,
    *,
    grid: Optional[Grid] = None,
    source_grid: Optional[Grid] = None,
    heads: Optional[int] = None,
    drop: Sequence[str] = (),
) -> Tuple[Conversion, Proof]:
    """Bring the ViT of a checkpoint file into the layout of a library, and prove that it arrived.

    Args:
        source: A file of any layout in :data:`LAYOUTS`, or of DINO, iBOT, DINOv2, MAE or GTSA; see
            :func:`read_checkpoint`.
        out: ``.pth``, or ``.safetensors``; for Hugging Face also a folder, which gets ``model.safetensors`` and
            ``config.json``. Nothing is left under this name if the proof fails.
        target: See :func:`convert`.
        grid: (rows, columns) to resample the position embedding to.
        source_grid: Its present grid, if it is no square.
        heads: Attention heads, which tensors do not tell; see :func:`count_heads`. None: from the file's meta, or the
            papers' number.
        drop: See :func:`read_vit`.

    Returns:
        What became of every tensor, and what was proved; both have a readable ``str``.

    Raises:
        CheckpointError: (a ValueError) in one sentence: the file, the layout or the proof is at fault.
        FileWriteError: the file could not be written.
    """
    out = Path(out)
    if target not in LAYOUTS:
        raise CheckpointError(f'there is no layout {target!r}; known are {", ".join(LAYOUTS)}.')
    if out.suffix not in ('.pth', '.safetensors') and not target.startswith('huggingface'):
        raise CheckpointError(f'{out} must end in .pth or .safetensors (a folder is for Hugging Face only).')
    if out.resolve() == Path(source).resolve():
        raise CheckpointError(f'{out} is the source itself: give the result another name.')
    vit, meta = _read(source, source_grid, drop, heads)
    source_grid = source_grid or told_grid(meta)
    conversion = convert(vit, target, grid=grid, source_grid=source_grid)
    shape = VitShape.required(conversion.state)
    heads = shape.heads(str(source), heads or meta.get('num_heads') or vit.heads)
    meta = {**meta, 'num_heads': heads, 'patch_size': shape.patch_size, 'norm_eps': vit.norm_eps}
    if shape.patches is not None and (grid or source_grid):
        meta['patch_grid'] = list(shape.grid(grid or source_grid))
    folder = out.suffix not in ('.pth', '.safetensors')
    config = huggingface_config(conversion, heads, grid or source_grid) if folder else {}
    file = out / 'model.safetensors' if folder else out
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f'.unproved_{file.name}')
    try:
        write_file(partial, conversion, {**meta, 'transferred_from': Path(source).name})
        proof = prove(conversion, read_checkpoint(partial), heads, grid or source_grid)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    if folder:
        atomic_write_text(out / 'config.json', json.dumps(config, indent=1) + '\n')
        if 'mean' in meta and 'std' in meta:
            scaled = {f'image_{key}': [value / 255 for value in meta[key]] for key in ('mean', 'std')}
            normalisation = dict(do_normalize=True, do_rescale=True, rescale_factor=1 / 255, **scaled)
            atomic_write_text(out / 'preprocessor_config.json', json.dumps(normalisation, indent=1) + '\n')
    return conversion, proof


def _read(source: PathLike, grid: Optional[Grid], drop: Sequence[str], heads: Optional[int]) -> Tuple[Source, dict]:
    """The ViT of a file, and what the file says about itself."""
    state, meta = read_checkpoint(source), read_meta(source)
    told = heads or meta.get('num_heads')
    vit = read_vit(state, str(source), source_grid=grid or told_grid(meta), drop=drop, heads=told)
    return _as_told(vit, meta), meta


def _as_told(vit: Source, meta: dict) -> Source:
    """With what the file's meta tells of it."""
    names = ('norm_eps', 'antialias', 'window_size', 'global_every')
    return replace(vit, **{key: meta[key] for key in names if key in meta})


def write_file(path: Path, conversion: Conversion, meta: dict) -> None:
    """Write tensors and meta in the form of the target's library: safetensors, or what ``torch.load`` reads."""
    tensors = {name: tensor.to('cpu', copy=True).contiguous() for name, tensor in conversion.tensors.items()}
    if path.suffix == '.safetensors':
        from safetensors.torch import save

        meta = {'format': 'pt', 'odis_mm': json.dumps(meta)}
        atomic_write(path, lambda file: file.write(save(tensors, meta)))
    elif conversion.target.name in ('odis_mm', 'mmpretrain', 'mmseg'):
        save_backbone(path, tensors, meta)
    else:
        atomic_save({'model' if conversion.target.name == 'detectron2' else 'state_dict': tensors, 'meta': meta}, path)


def huggingface_config(conversion: Conversion, heads: int, grid: Optional[Grid] = None) -> dict:
    """Return ``config.json`` for what :func:`transfer` writes: ``ViTModel``, ``Dinov2Model`` or ``DINOv3ViTModel``.

    Raises:
        CheckpointError: the MLPs have a width that ``Dinov2Model`` cannot have.
    """
    shape = VitShape.required(conversion.state)
    rows, columns = shape.grid(grid)
    size = [rows * shape.patch_size, columns * shape.patch_size]
    config = dict(
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=heads,
        hidden_act='gelu',
        layer_norm_eps=conversion.source.norm_eps,
        image_size=size[0] if rows == columns else size,
        patch_size=shape.patch_size,
        num_channels=shape.in_channels,
    )
    registers = dict(num_register_tokens=shape.registers) if shape.registers else {}
    if shape.patches is None:
        return dict(
            architectures=['DINOv3ViTModel'],
            model_type='dinov3_vit',
            intermediate_size=shape.mlp,
            hidden_act='silu' if shape.gated else 'gelu',
            use_gated_mlp=shape.gated,
            query_bias=shape.qkv_bias,
            key_bias=shape.qkv_bias and shape.key_bias,
            value_bias=shape.qkv_bias,
            rope_theta=100.0,
            layerscale_value=1.0,
            **registers,
            **{key: value for key, value in config.items() if key != 'hidden_act'},
        )
    config.update(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, qkv_bias=shape.qkv_bias)
    if conversion.target.name == 'huggingface':
        return dict(architectures=['ViTModel'], model_type='vit', intermediate_size=shape.mlp, **config)
    kind = ('Dinov2WithRegistersModel', 'dinov2_with_registers') if registers else ('Dinov2Model', 'dinov2')
    return dict(
        architectures=[kind[0]],
        model_type=kind[1],
        mlp_ratio=_mlp_ratio(shape),
        use_swiglu_ffn=shape.gated,
        layerscale_value=1.0,
        **registers,
        **config,
    )


def _mlp_ratio(shape: VitShape) -> int:
    """Hugging Face's whole number; of gated MLPs it takes two thirds, rounded up to a multiple of 8."""
    widths = {ratio: ratio * shape.width for ratio in range(1, 33)}
    if shape.gated:
        widths = {ratio: (int(width * 2 / 3) + 7) // 8 * 8 for ratio, width in widths.items()}
    for ratio, width in widths.items():
        if width == shape.mlp:
            return ratio
    raise CheckpointError(
        f"MLPs of {shape.mlp} channels in a ViT of {shape.width}: Hugging Face's DINOv2 has whole multiples"
        + (', of which gated ones are two thirds' if shape.gated else '')
        + '; take another layout, such as --to timm.'
    )


def build_backbone(
    source: PathLike,
    heads: Optional[int] = None,
    source_grid: Optional[Grid] = None,
    student: bool = False,
    random: bool = False,
) -> nn.Module:
    """Return the backbone of a checkpoint file of any known layout, ready for evaluation: ``ObjectViT`` or
    ``mmpretrain.ResNet``.

    Args:
        source, heads, source_grid: See :func:`transfer`.
        student: Of a training checkpoint of ours, take the student.
        random: A backbone of the same shape, initialised from seed 0: what the file's is compared with.

    Raises:
        CheckpointError: the file cannot be read, or holds neither.
    """
    state, name, meta = read_checkpoint(source), str(source), read_meta(source)
    if student:
        state = {key: value for key, value in state.items() if not key.startswith('teacher.')}
    if find_resnet(state) is not None:
        return build_resnet(read_resnet(state, name)[0], name, random)
    told, source_grid = heads or meta.get('num_heads'), source_grid or told_grid(meta)
    vit = _as_told(read_vit(state, name, source_grid=source_grid, heads=told), meta)
    return build_vit(
        convert(vit, 'odis_mm').state,
        VitShape.required(vit.state).heads(name, told or vit.heads),
        source_grid,
        random=random,
        norm_eps=vit.norm_eps,
        antialias=vit.antialias,
        window_size=vit.window_size,
        global_every=vit.global_every,
    )
