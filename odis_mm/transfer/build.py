"""Backbones built from nothing but a file: what a frozen evaluation runs, and what proves a conversion."""

import re
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Callable, Dict, Optional, Tuple, cast

import torch
from mmengine.logging import MMLogger
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..utils.errors import CheckpointError
from ..utils.scopes import scope_of
from .conversion import Conversion, convert
from .layouts import some
from .loading import load_backbone
from .positions import Grid
from .reading import read_vit
from .shape import State, VitShape

TOLERANCE = 1e-4  # of the largest feature: float32 in another order of operations, over 24 blocks


def count_heads(state: State, name: str, heads: Optional[int] = None) -> int:
    """Return the attention heads of a ViT under our names: see :meth:`VitShape.heads`."""
    return VitShape.required(state).heads(name, heads)


def patch_grid_of(state: State, grid: Optional[Grid] = None) -> Grid:
    """Return (rows, columns) of a ViT's position embedding under our names: see :meth:`VitShape.grid`."""
    return VitShape.required(state).grid(grid)


@scope_of('mmpretrain')
def build_vit(
    state: State,
    heads: int,
    grid: Optional[Grid] = None,
    stock: bool = False,
    random: bool = False,
    norm_eps: float = 1e-6,
    antialias: bool = False,
    window_size: int = 0,
    global_every: int = 3,
) -> nn.Module:
    """Return an ``ObjectViT`` that holds the tensors of a plain ViT under our names, in evaluation mode.

    A stock ``mmpretrain.VisionTransformer`` if there is no [CLS], or if asked for.

    Its image size is that of the tensors' patch grid. With ``random`` it is of their shape only, initialised from seed
    0.
    """
    shape = VitShape.of(state)
    if shape is None:
        raise CheckpointError(f'no plain ViT: the tensors are named {some(list(state))}.')
    rows, columns = shape.grid(grid)
    settings = dict(
        arch=dict(embed_dims=shape.width, num_layers=shape.depth, num_heads=heads, feedforward_channels=shape.mlp),
        img_size=(rows * shape.patch_size, columns * shape.patch_size),
        patch_size=shape.patch_size,
        in_channels=shape.in_channels,
        out_type='raw',
        norm_cfg=dict(type='LN', eps=norm_eps),
        **shape.backbone_options(),
    )
    if shape.cls_token and not stock:
        settings.update(
            type='ObjectViT',
            cls_beside_object=shape.object_tokens > 0,
            num_object_tokens=max(shape.object_tokens, 1),
            antialias=antialias,
            window_size=window_size,
            global_every=global_every,
        )
    elif lacking := [name for name in ('num_registers', 'rope', 'swiglu') if name in settings]:
        raise CheckpointError(
            f'a ViT with {", ".join(lacking)} and without [CLS] is none that ObjectViT or mmpretrain can build: take a '
            'file that has a [CLS] token.'
        )
    else:
        settings.update(type='mmpretrain.VisionTransformer', with_cls_token=shape.cls_token)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed the GPUs' generators, too
        model = MODELS.build(settings)
        if random:
            initialise(model)
    if not random:
        load_backbone(model, state, logger='silent')
    model.eval()  # mmpretrain's returns nothing
    return model


def initialise(model: nn.Module) -> None:
    """Call ``model.init_weights()`` without the line a parameter that mmengine logs."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    cast(Callable, model.init_weights)()
    logger.setLevel(level)


def build_timm(tensors: State, heads: int, grid: Grid) -> Any:
    """Return timm's ``VisionTransformer`` of the shape of tensors under timm's names, strictly loaded with them, in
    evaluation mode.

    Raises:
        ImportError: timm is not installed.
    """
    if 'pos_embed' not in tensors:
        return _build_eva(tensors, heads, grid)
    from timm.layers import SwiGLUPacked
    from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

    patch = tensors['patch_embed.proj.weight']
    width, size = patch.shape[0], patch.shape[2]
    registers = next((tensors[name].shape[1] for name in ('reg_token', 'register_tokens') if name in tensors), 0)
    cls = 'cls_token' in tensors
    gated = tensors['blocks.0.mlp.fc1.weight'].shape[0] == 2 * tensors['blocks.0.mlp.fc2.weight'].shape[1]
    # [CLS] has no position of its own
    bare = tensors['pos_embed'].shape[1] == grid[0] * grid[1] or 'register_tokens' in tensors
    with torch.random.fork_rng(devices=[]):
        options: Dict[str, Any] = dict(mlp_layer=SwiGLUPacked, act_layer=nn.SiLU) if gated else {}
        model = VisionTransformer(
            img_size=(grid[0] * size, grid[1] * size),
            patch_size=size,
            in_chans=patch.shape[1],
            embed_dim=width,
            num_heads=heads,
            depth=1 + max(int(name.split('.')[1]) for name in tensors if name.startswith('blocks.')),
            num_classes=0,
            mlp_ratio=tensors['blocks.0.mlp.fc1.weight'].shape[0] / width,
            **options,
            qkv_bias='blocks.0.attn.qkv.bias' in tensors,
            init_values=1.0 if {'blocks.0.ls1.gamma', 'blocks.0.gamma_1'} & set(tensors) else None,
            class_token=cls,
            global_pool='token' if cls else '',
            reg_tokens=registers,
            no_embed_class=cls and bare,
            final_norm='norm.weight' in tensors,
        )
    # timm's own reader knows the names of BEiT and, by the mask token beside them, of DINOv2
    raw = {**tensors, **({'mask_token': patch} if 'register_tokens' in tensors else {})}
    model.load_state_dict(checkpoint_filter_fn(raw, model, adapt_layer_scale=True), strict=True)
    return model.eval()


def _build_eva(tensors: State, heads: int, grid: Grid) -> Any:
    """timm's ViT of DINOv3."""
    from timm.models.eva import Eva

    patch = tensors['patch_embed.proj.weight']
    width, size = patch.shape[0], patch.shape[2]
    gated = 'blocks.0.mlp.fc1_g.weight' in tensors
    with torch.random.fork_rng(devices=[]):
        model = Eva(
            img_size=(grid[0] * size, grid[1] * size),
            patch_size=size,
            in_chans=patch.shape[1],
            num_classes=0,
            embed_dim=width,
            depth=1 + max(int(name.split('.')[1]) for name in tensors if name.startswith('blocks.')),
            num_heads=heads,
            mlp_ratio=tensors['blocks.0.mlp.fc2.weight'].shape[1] / width,
            swiglu_mlp=gated,
            swiglu_align_to=8 if gated else 0,
            qkv_bias='blocks.0.attn.q_bias' in tensors,
            init_values=1.0 if 'blocks.0.gamma_1' in tensors else None,
            num_reg_tokens=tensors['reg_token'].shape[1],
            use_abs_pos_emb=False,
            use_rot_pos_emb=True,
            rope_type='dinov3',
            rope_temperature=100,
            rope_rotate_half=True,
            use_fc_norm=False,
            dynamic_img_size=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-5),
        )
    model.load_state_dict(tensors, strict=True)
    return model.eval()


@dataclass(frozen=True)
class Proof:
    """What was checked of a conversion.

    Attributes:
        read_back: Tensors of the written file that, read again, equal bit for bit what was to be written (all, or an
            error is raised).
        features: What was compared, in words; says also why nothing could be.
        difference: Largest absolute difference of the features; None if nothing could be compared.
        scale: Largest absolute feature.
    """

    read_back: int
    features: str
    difference: Optional[float] = None
    scale: Optional[float] = None

    def __str__(self) -> str:
        text = f'proof: {self.read_back} tensors read back bit for bit; {self.features}'
        return (
            text if self.difference is None else f'{text}: largest difference {self.difference:.1e} of {self.scale:.1f}'
        )


@torch.no_grad()
def prove(conversion: Conversion, written: State, heads: Optional[int] = None, grid: Optional[Grid] = None) -> Proof:
    """Compare what was written with what it came from.

    Two checks: the written tensors, read again by their names, are bit for bit those that were to be written; and a
    probe image of noise gives the same features on both sides. Source and target are each computed by timm where their
    names are timm's, else by ``mmpretrain.VisionTransformer``.

    Args:
        conversion: From :func:`convert`.
        written: The tensors of the file, read from it.
        heads: See :func:`count_heads`.
        grid: Patch grid of the target (None: square).

    Raises:
        CheckpointError: either check fails; then the file must not be used.
    """
    target, name = conversion.target.name, conversion.source.name
    wanted = conversion.state
    shape = VitShape.required(wanted)
    told = heads or (shape.width // shape.head_width if shape.head_width else None)
    again = read_vit(written, f'{name} as {target}', source_grid=grid or shape.square, heads=told).state
    lost = [
        key
        for key in {**wanted, **again}
        if key not in again or key not in wanted or not torch.equal(again[key], wanted[key])
    ]
    if lost:
        raise CheckpointError(f'{name} as {target} does not read back as it was written: {some(lost)} differ.')
    if not conversion.comparable:
        return Proof(len(written), f'features cannot be equal, as {some(list(conversion.dropped))} had to be dropped')
    heads = shape.heads(name, heads)
    rows, columns = shape.grid(grid)
    size = rows * shape.patch_size, columns * shape.patch_size
    probe = torch.randn(2, shape.in_channels, *size, generator=torch.Generator().manual_seed(0))
    first, by_first = _source_features(conversion, heads, (rows, columns), probe)
    second, by_second = _target_features(conversion, written, again, heads, (rows, columns), probe)
    difference, scale = float((first - second).abs().max()), float(first.abs().max())
    if not difference <= TOLERANCE * max(scale, 1.0):
        raise CheckpointError(
            f'{name} computes other features as {target}: on a probe image they differ by {difference:.2g} of '
            f'{scale:.2g}.'
        )
    return Proof(
        len(written),
        f'features of a {size[0]} x {size[1]} probe, source by {by_first}, target by {by_second}',
        difference,
        scale,
    )


def _source_features(conversion: Conversion, heads: int, grid: Grid, probe: Tensor) -> Tuple[Tensor, str]:
    """All tokens of the probe, from the file's own tensors if timm can take them."""
    source = conversion.source
    # then both sides get the same positions
    resampled = conversion.changed.get('pos_embed', '').startswith('resampled')
    state = {**source.state, 'pos_embed': conversion.state['pos_embed']} if resampled else source.state
    if source.layout == 'timm-dinov3' and find_spec('timm'):
        return build_timm(source.raw, heads, grid).forward_features(probe), 'timm'
    if source.layout == 'timm' and find_spec('timm'):
        chunks = re.compile(r'^blocks\.\d+\.(\d+)\.')
        raw = {chunks.sub(r'blocks.\1.', name): tensor for name, tensor in source.raw.items()}
        raw = convert(state, 'timm', source_grid=grid).tensors if resampled else raw
        return build_timm(raw, heads, grid).forward_features(probe), 'timm'
    return build_vit(state, heads, grid, norm_eps=source.norm_eps)(probe)[-1], 'mmpretrain'


def _target_features(
    conversion: Conversion, written: State, again: State, heads: int, grid: Grid, probe: Tensor
) -> Tuple[Tensor, str]:
    target = conversion.target.name
    if target in ('timm', 'timm-dinov3') and find_spec('timm'):
        return build_timm(written, heads, grid).forward_features(probe), 'timm'
    rebuilt = (
        '' if target in ('odis_mm', 'mmpretrain') else f' (read back; {target.split("-")[0]} itself is not run here)'
    )
    vit = build_vit(again, heads, grid, stock=target == 'mmpretrain', norm_eps=conversion.source.norm_eps)
    return vit(probe)[-1], f'mmpretrain{rebuilt}'
