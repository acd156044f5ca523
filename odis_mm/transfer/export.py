"""From one file to another: read, convert, write, prove."""

import json
from pathlib import Path
from typing import Optional, Sequence, Tuple

from torch import nn

from ..utils.errors import CheckpointError
from ..utils.files import PathLike, atomic_save, atomic_write
from .build import Proof, build_vit, count_heads, prove
from .checkpoint import read_checkpoint, read_meta, save_backbone
from .layouts import LAYOUTS, Conversion, convert, read_vit
from .positions import Grid
from .resnet import build_resnet, find_resnet, read_resnet


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
        source: A file of any layout in :data:`LAYOUTS`, or of DINO, iBOT, DINOv2, MAE or GTSA; see :func:`read_checkpoint`.
        out: ``.pth``, or ``.safetensors``; for Hugging Face also a folder, which gets ``model.safetensors`` and ``config.json``. Nothing is
            left under this name if the proof fails.
        target: See :func:`convert`.
        grid: (rows, columns) to resample the position embedding to.
        source_grid: Its present grid, if it is no square.
        heads: Attention heads, which tensors do not tell; see :func:`count_heads`. None: from the file's meta, or the papers' number.
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
    conversion = convert(
        read_vit(read_checkpoint(source), str(source), source_grid=source_grid, drop=drop),
        target,
        grid=grid,
        source_grid=source_grid,
    )
    meta = read_meta(source)
    heads = count_heads(conversion.state, str(source), heads or meta.get('num_heads'))
    folder = out.suffix not in ('.pth', '.safetensors')
    file = out / 'model.safetensors' if folder else out
    if folder:
        out.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f'.unproved_{file.name}')
    try:
        _write(partial, conversion, {**meta, 'num_heads': heads, 'transferred_from': str(source)})
        proof = prove(conversion, read_checkpoint(partial), heads, grid or source_grid)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    if folder:
        (out / 'config.json').write_text(
            json.dumps(huggingface_config(conversion, heads, grid or source_grid), indent=1) + '\n'
        )
    return conversion, proof


def _write(path: Path, conversion: Conversion, meta: dict) -> None:
    tensors = {name: tensor.to('cpu', copy=True).contiguous() for name, tensor in conversion.tensors.items()}
    if path.suffix == '.safetensors':
        from safetensors.torch import save

        atomic_write(path, lambda file: file.write(save(tensors)))
    elif conversion.target.name in ('odis_mm', 'mmpretrain', 'mmseg'):
        save_backbone(path, tensors, meta)
    else:
        atomic_save(dict(model=tensors) if conversion.target.name == 'detectron2' else tensors, path)


def huggingface_config(conversion: Conversion, heads: int, grid: Optional[Grid] = None) -> dict:
    """``config.json`` for what :func:`transfer` writes: ``ViTModel`` or ``Dinov2Model``, with the norms' epsilon of these ViTs."""
    state = conversion.state
    patch, mlp = state['patch_embed.projection.weight'], state['layers.0.ffn.layers.0.0.weight']
    patches = state['pos_embed'].shape[1] - int('cls_token' in state)
    rows, columns = grid or (round(patches**0.5),) * 2
    config = dict(
        hidden_size=patch.shape[0],
        num_hidden_layers=1 + max(int(key.split('.')[1]) for key in state if key.startswith('layers.')),
        num_attention_heads=heads,
        hidden_act='gelu',
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-6,
        image_size=rows * patch.shape[2] if rows == columns else [rows * patch.shape[2], columns * patch.shape[2]],
        patch_size=patch.shape[2],
        num_channels=patch.shape[1],
        qkv_bias='layers.0.attn.qkv.bias' in state,
    )
    if conversion.target.name == 'huggingface':
        return dict(architectures=['ViTModel'], model_type='vit', intermediate_size=mlp.shape[0], **config)
    registers = state['object_tokens'].shape[1] if 'object_tokens' in state else 0
    kind = ('Dinov2WithRegistersModel', 'dinov2_with_registers') if registers else ('Dinov2Model', 'dinov2')
    return dict(
        architectures=[kind[0]],
        model_type=kind[1],
        mlp_ratio=mlp.shape[0] / patch.shape[0],
        use_swiglu_ffn=False,
        layerscale_value=1.0,
        **({'num_register_tokens': registers} if registers else {}),
        **config,
    )


def build_backbone(
    source: PathLike,
    heads: Optional[int] = None,
    source_grid: Optional[Grid] = None,
    student: bool = False,
    random: bool = False,
) -> nn.Module:
    """The backbone of a checkpoint file of any known layout, ready for evaluation: ``ObjectViT`` or ``mmpretrain.ResNet``.

    Args:
        source, heads, source_grid: See :func:`transfer`.
        student: Of a training checkpoint of ours, take the student.
        random: A backbone of the same shape, initialised from seed 0: what the file's is compared with.

    Raises:
        CheckpointError: the file cannot be read, or holds neither.
    """
    state, name = read_checkpoint(source), str(source)
    if student:
        state = {key: value for key, value in state.items() if not key.startswith('teacher.')}
    if find_resnet(state) is not None:
        return build_resnet(read_resnet(state, name)[0], name, random)
    vit = convert(read_vit(state, name, source_grid=source_grid), 'odis_mm').state
    return build_vit(
        vit, count_heads(vit, name, heads or read_meta(source).get('num_heads')), source_grid, random=random
    )
