"""A plain ViT whose [OBJ] token can be told which patches are the object."""

from types import MethodType
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from mmpretrain.models import VisionTransformer
from mmpretrain.models.utils import SwiGLUFFN
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...transfer.positions import resize_positions
from ...utils.errors import ConfigError
from ..linear import take_linears
from ..weight_init import init_linears, trunc_normal
from .attention import Form, mask_of
from .block import Grid, QKVWithoutKeyBias, Sequences, run_block
from .rope import AxialRope, rotate
from .stochastic_depth import Path, Shapes, draw_path, draw_subset

OneOrMore = Union[Tensor, Sequence[Tensor], None]


@MODELS.register_module()
class ObjectViT(VisionTransformer):
    """``mmpretrain.VisionTransformer`` plus one optional argument of ``forward``: the object mask (ODIS, arXiv
    2506.05409).

    With the defaults it has the same parameters under the same names, [OBJ] takes the place (and the weights) of [CLS],
    and without a mask, or with an all-ones one, it computes the same function. Further options make it the ViT of
    DINOv2 (``layer_scale_init_value``, ``num_registers``, patches of 14) or of DINOv3 (these, ``rope``, ``key_bias``,
    ``swiglu``), so that their weights arrive unchanged.

    The sequence is [CLS] if ``cls_beside_object``, the [OBJ] tokens, the registers, the patches.

    Args:
        num_object_tokens: k, how many [OBJ] tokens read the object. The paper's default is 1: with more, the authors'
            runs collapsed.
        cls_beside_object: Keep an unmasked [CLS] in front of the [OBJ] tokens (needed by the image-level term of the
            loss). More than one of both adds a parameter ``object_tokens`` that a stock ViT has no place for.
        num_registers: Tokens that see and are seen by all and are not read (arXiv 2309.16588):
            ``register_tokens``.
        rope: Arguments of :class:`AxialRope` in place of learned positions, ``dict(base=100)`` in DINOv3; None: learned
            positions.
        key_bias: False: keys have no bias, as in DINOv3; its place in ``qkv.bias`` is 0 and stays so.
        swiglu: SiLU-gated MLPs ``w12`` and ``w3`` of the hidden width ``feedforward_channels``.
        antialias: Of learned positions on a smaller grid, as timm and DINOv2 with registers do it.
        out_type: 'raw': token sequences, which pretraining reads; 'featmap': contiguous maps [B, D, rows, columns], for
            detectors.
        frozen: True, or the number of first blocks: they and the embeddings are not trained, and run without drop path.
        window_size: Above 0, blocks attend within windows of so many patches along a side, but for every
            ``global_every``-th (ViTDet: 14).
        global_every: See there; 3 gives 4 global blocks of 12.
        with_cp: Recompute every block in the backward pass (activation checkpointing): less memory, same result.
        drop_path_subset: Stochastic depth that leaves out a fixed number of images in each block, and saves their work
            on GPUs, too, see :func:`draw_subset`; False: each image is drawn by itself, and only CPUs save the work.
            Wants tens of views of a resolution in a step, as the number is rounded.
        init_std: Of the linear layers' first weights; 0.02 is the releases', for widths of 384 and more. None: by
            width, as mmpretrain and torch have them (Xavier's rule in the MLPs, torch's in the attention).
        compiled: Compile the blocks (:meth:`compile_blocks`): same results; pays on GPUs, after minutes in the first
            steps.
        **kwargs: Everything ``mmpretrain.VisionTransformer`` takes; ``arch`` 'deit-small' is the ViT-S of the papers.

    Raises:
        ConfigError: options that exclude each other, or numbers that are none.
    """

    def __init__(
        self,
        *args,
        num_object_tokens: int = 1,
        cls_beside_object: bool = False,
        num_registers: int = 0,
        rope: Optional[dict] = None,
        key_bias: bool = True,
        swiglu: bool = False,
        antialias: bool = False,
        out_type: str = 'raw',
        frozen: Union[bool, int] = False,
        window_size: int = 0,
        global_every: int = 3,
        with_cp: bool = False,
        drop_path_subset: bool = False,
        init_std: Optional[float] = 0.02,
        compiled: bool = False,
        **kwargs,
    ):
        if out_type not in ('raw', 'featmap') or not kwargs.get('with_cls_token', True):
            raise ConfigError(
                "ObjectViT returns tokens (out_type='raw') or maps (out_type='featmap') and has a [CLS] or [OBJ] "
                'token: leave '
                'with_cls_token at True.'
            )
        if num_object_tokens < 1 or num_registers < 0:
            raise ConfigError(
                f'num_object_tokens must be at least 1 and num_registers at least 0, got {num_object_tokens} and '
                f'{num_registers}.'
            )
        if window_size < 0 or global_every < 1:
            raise ConfigError(
                f'window_size must be at least 0 and global_every at least 1, got {window_size} and {global_every}.'
            )
        for name in ('drop_rate', 'drop_path_rate'):
            rate = kwargs.get(name, 0)
            if not isinstance(rate, (int, float)) or not 0 <= rate < 1:
                raise ConfigError(f'model.backbone.{name} must be a number from 0 to below 1, got {rate!r}.')
        if init_std is not None and not (isinstance(init_std, (int, float)) and init_std > 0):
            raise ConfigError(f'model.backbone.init_std must be a positive number or None, got {init_std!r}.')
        arch = args[0] if args else kwargs.get('arch', 'base')
        if isinstance(arch, str) and arch.lower() not in self.arch_zoo:
            raise ConfigError(
                f'model.backbone.arch={arch!r} is none of {", ".join(sorted(self.arch_zoo))}, nor a dict: embed_dims, '
                'num_layers, num_heads, feedforward_channels.'
            )
        super().__init__(*args, out_type=out_type, **kwargs)
        width, heads = self.embed_dims, self.arch_settings['num_heads']
        if width % heads:
            raise ConfigError(f'model.backbone.arch: {heads} heads do not divide the width of {width} channels.')
        self.with_cp = with_cp
        self.drop_path_subset, self.init_std = drop_path_subset, init_std
        self.antialias = antialias
        self.window_size, self.global_every = window_size, global_every
        self.block = run_block
        self.sharded_block: Optional[Callable] = None
        if compiled:
            self.compile_blocks()
        self.cls_beside_object = cls_beside_object
        self.num_class_tokens = num_object_tokens + int(cls_beside_object)
        self.num_leading_tokens = self.num_class_tokens + num_registers
        if self.num_class_tokens > 1:  # they carry no position: one is learned with the token itself
            self.object_tokens = nn.Parameter(torch.zeros(1, self.num_class_tokens - 1, width))
        if num_registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, num_registers, width))
        self.rope = None if rope is None else AxialRope(width // heads, **rope)
        if rope is not None:
            self.pos_embed = None
        for layer in self.layers:
            if not key_bias and layer.attn.qkv.bias is not None:
                layer.attn.qkv = QKVWithoutKeyBias(width, 3 * width)
            if swiglu:
                layer.ffn = SwiGLUFFN(
                    width,
                    self.arch_settings['feedforward_channels'],
                    layer_scale_init_value=kwargs.get('layer_scale_init_value', 0.0),
                    dropout_layer=dict(type='DropPath', drop_prob=layer.attn.out_drop.drop_prob),
                )
        take_linears(self.layers)
        if frozen is not False:
            self.frozen_stages = self.num_layers if frozen is True else frozen
        if not -1 <= self.frozen_stages <= self.num_layers:
            raise ConfigError(f'frozen must be within 0 and {self.num_layers} blocks, got {self.frozen_stages}.')
        if self.frozen_stages > 0:
            self._freeze_stages()

    @property
    def object_slice(self) -> slice:
        """Where the [OBJ] tokens stand in the sequence."""
        return slice(int(self.cls_beside_object), self.num_class_tokens)

    def init_weights(self) -> None:
        """Draw weights as the releases of DINO, iBOT and GTSA do, or load the file of ``init_cfg``."""
        super().init_weights()
        if isinstance(self.init_cfg, dict) and self.init_cfg['type'] == 'Pretrained':
            return
        # as in the releases; the stock ViT has Xavier's weights and random biases in the MLPs, torch's defaults in the
        # attention, and leaves the token at zero. The patch embedding keeps torch's default in both
        if self.init_std is not None:
            init_linears(self.layers, self.init_std)
        for name in ('pos_embed', 'cls_token', 'object_tokens', 'register_tokens'):
            if getattr(self, name, None) is not None:
                trunc_normal(getattr(self, name))

    def _freeze_stages(self) -> None:
        super()._freeze_stages()
        for name in ('object_tokens', 'register_tokens'):
            if hasattr(self, name):
                getattr(self, name).requires_grad_(False)

    def train(self, mode: bool = True):
        """Set the mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        if self.frozen_stages > 0:
            self.drop_after_pos.eval()
            for layer in self.layers[: self.frozen_stages]:
                layer.eval()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> Tuple[int, int]:
        """Return (place in the ladder of layer-wise learning rates, its length): 0 the embeddings and tokens, then
        block by block."""
        if param_name.removeprefix(prefix) in ('object_tokens', 'register_tokens'):
            param_name = f'{prefix}cls_token'
        return super().get_layer_depth(param_name, prefix)

    def embed(self, images: Tensor, replace: Optional[Tuple[Tensor, Tensor]] = None) -> Tuple[Tensor, Grid]:
        """Turn images into the sequence that enters the first block.

        Args:
            images: [B, 3, H, W], normalised.
            replace: (where: bool [B, N], token: [D]): patch embeddings to replace by the mask token (masked image
                modelling).

        Returns:
            Tokens [B, T, D], T = leading tokens + N, and the patch grid (rows, columns).
        """
        patches, grid = self.patch_embed(images)  # [B, N, D]
        if replace is not None:
            where, token = replace
            patches = torch.where(where.unsqueeze(-1), token.to(patches.dtype), patches)
        first, dtype = self.cls_token, patches.dtype
        if self.pos_embed is not None:
            position = resize_positions(
                self.pos_embed, grid, 1, self.interpolate_mode, self.patch_resolution, self.antialias
            )
            first, patches = first + position[:, :1], patches + position[:, 1:]
        others = [getattr(self, name) for name in ('object_tokens', 'register_tokens') if hasattr(self, name)]
        leading = torch.cat((first, *others), dim=1) if others else first
        tokens = torch.cat((leading.expand(len(images), -1, -1).to(dtype), patches), dim=1)
        return self.pre_norm(self.drop_after_pos(tokens)), tuple(grid)

    def forward(
        self,
        images: OneOrMore,
        object_mask: OneOrMore = None,
        replace: Optional[Tuple[Tensor, Tensor]] = None,
        patches: OneOrMore = None,
    ) -> Union[Tuple[Tensor, ...], List[Tuple[Tensor, ...]]]:
        """Return token sequences, or maps, after the blocks ``out_indices``.

        Args:
            images: [B, 3, H, W], normalised; or a list of such, one for each resolution, whose tokens then share all
                that treats tokens one by one (norms, projections, MLPs) and meet in attention only with their own
                view's: fewer and larger products, same result.
            object_mask: bool [B, N], the patches of the object. In every block the [OBJ] query attends to itself, the
                registers and these patches only; patch queries attend to everything. None: all patches, an ordinary
                ViT.
            replace: See :meth:`embed`; of the first resolution.
            patches: int64 [M], the only patches that are read from the last block's result, as indices into the
                flattened [B * N]; [CLS] and [OBJ] always are. What is not read is not computed: the last block's
                projection and MLP run for these alone. None: all.

        Returns:
            One [B, T, D], or map [B, D, rows, columns], per entry of ``out_indices``; the last block's is normalised.
            With ``patches`` the last block's is two entries: [CLS] and [OBJ] tokens [B, t, D] and these patches [M, D],
            equal to the rows of the whole. A list of images gives a list of such, and takes lists for ``object_mask``
            (with None for no mask) and ``patches``.

        Raises:
            ConfigError: the mask does not fit the patch grid.
        """
        if isinstance(images, Tensor):
            return self._forward([images], [object_mask], replace, None if patches is None else [patches])[0]
        return self._forward(images, object_mask or [None] * len(images), replace, patches)

    def _forward(
        self,
        images: Sequence[Tensor],
        object_masks: Sequence[Optional[Tensor]],
        replace: Optional[Tuple[Tensor, Tensor]],
        patches: Optional[Sequence[Tensor]],
    ) -> List[Tuple[Tensor, ...]]:
        views = [self.embed(x, replace if i == 0 else None) for i, x in enumerate(images)]
        sequences = self.sequences(views, object_masks)
        tokens = [x.flatten(0, 1) for x, _ in views]
        x = torch.cat(tokens) if len(tokens) > 1 else tokens[0]  # [R, D]
        rows = None if patches is None else self._read_rows(patches, sequences)
        outs: List[List[Tensor]] = [[] for _ in views]
        for i, layer in enumerate(self.layers):
            last = i == self.num_layers - 1
            read = rows if last else None
            x = self.run_layer(i, layer, x, sequences, read)
            if last and self.final_norm:
                x = self.ln1(x)
            if i in self.out_indices:
                parts = self._whole(x, sequences) if read is None else self._read(x, sequences, patches)
                for out, part in zip(outs, parts):
                    out.extend(part)
        return [tuple(out) for out in outs]

    def sequences(self, views: Sequence[Tuple[Tensor, Grid]], masks: Sequence[Optional[Tensor]]) -> Sequences:
        """Return what blocks need to know of results of :meth:`embed`, with an object mask (bool [B, N]) or None for
        each."""
        form = self.form_of(views[0][0])
        objects = self.object_slice
        return Sequences(
            shapes=tuple(tuple(x.shape[:2]) for x, _ in views),
            grids=tuple(grid for _, grid in views),
            masks=tuple(
                None if mask is None else mask_of(self._key_mask(mask, x, grid), objects, form, x)
                for mask, (x, grid) in zip(masks, views)
            ),
            ropes=tuple(None if self.rope is None else self.rope(grid, self.num_leading_tokens) for _, grid in views),
            objects=objects,
            form=form,
        )

    def form_of(self, x: Tensor) -> Form:
        """Return the form of attention, and with it of stochastic depth, that is fastest where ``x`` is."""
        return Form.of(x)

    def draw_path(self, drop: Optional[nn.Module], x: Tensor, shapes: Shapes, skip: bool, rows: bool = False) -> Path:
        """Draw what becomes of a residual branch: see :func:`draw_path` and :func:`draw_subset`."""
        return draw_subset(drop, x, shapes, skip, rows) if self.drop_path_subset else draw_path(drop, x, shapes, skip)

    def run_layer(
        self, number: int, layer: nn.Module, x: Tensor, sequences: Sequences, rows: Optional[Tensor]
    ) -> Tensor:
        """Return the tokens x [R, D] after a block, of them ``rows`` alone if given; draws its stochastic depth."""
        # the rows that are read differ in number from step to step: the block would be compiled anew each time
        block = self.sharded_block or (run_block if rows is not None else self.block)
        # elsewhere than on a CPU the host would have to wait for the draws; ROWS is the form of a GPU, also where a CPU
        # stands in for one
        on_host = x.device.type == 'cpu' and sequences.form is not Form.ROWS
        skip = block is run_block and rows is None and on_host
        # drawn here, so that recomputing the block draws nothing
        paths = tuple(
            self.draw_path(getattr(part, name, None), x, sequences.shapes, skip, rows is not None)
            for part, name in ((layer.attn, 'out_drop'), (layer.ffn, 'dropout_layer'))
        )
        trained = torch.is_grad_enabled() and number >= self.frozen_stages
        recompute = self.with_cp and trained
        args = (layer, x, sequences, paths, rows, trained and not recompute, self.window_of(number))
        return checkpoint(block, *args, use_reentrant=False) if recompute else block(*args)

    def window_of(self, number: int) -> Optional[Tuple[int, int]]:
        """Return (side of the windows, leading tokens) of a block; None: it attends globally."""
        if not self.window_size or number % self.global_every == self.global_every - 1:
            return None
        return self.window_size, self.num_leading_tokens

    def _whole(self, x: Tensor, sequences: Sequences) -> List[Tuple[Tensor, ...]]:
        """[R, D] of each resolution, in the form of ``out_type``."""
        parts = [part.unflatten(0, shape) for part, shape in zip(x.split(sequences.sizes), sequences.shapes)]
        if self.out_type == 'raw':
            return [(part,) for part in parts]
        return [(self._map(part, grid).contiguous(),) for part, grid in zip(parts, sequences.grids)]

    def _read_rows(self, patches: Sequence[Tensor], sequences: Sequences) -> Tensor:
        """The rows of [R, D] that are read: of each resolution [CLS] and [OBJ] tokens, then ``patches``."""
        rows, before = [], 0
        for index, (batch, length), size in zip(patches, sequences.shapes, sequences.sizes):
            start = torch.arange(batch, device=index.device)[:, None] * length
            leading = start + torch.arange(self.num_class_tokens, device=index.device)
            own = index + (index // (length - self.num_leading_tokens) + 1) * self.num_leading_tokens
            rows += [leading.flatten() + before, own + before]
            before += size
        return torch.cat(rows)

    def _read(self, x: Tensor, sequences: Sequences, patches: Sequence[Tensor]) -> List[Tuple[Tensor, ...]]:
        """The rows of :meth:`_read_rows` as ([CLS] and [OBJ] [B, t, D], patches [M, D]) of each resolution."""
        leading = [batch * self.num_class_tokens for batch, _ in sequences.shapes]
        counts = [n for size, index in zip(leading, patches) for n in (size, len(index))]
        parts = x.split(counts)
        return [
            (front.unflatten(0, (batch, -1)), rest)
            for front, rest, (batch, _) in zip(parts[::2], parts[1::2], sequences.shapes)
        ]

    def to_map(self, tokens: Tensor, size: Sequence[int]) -> Tensor:
        """Return the patches of sequences [B, T, D] as a map [B, D, rows, columns], channels last in memory as the
        tokens are.

        Args:
            tokens: As :meth:`forward` returns them.
            size: (height, width) of the images in pixels.
        """
        strides = self.patch_embed.projection.stride
        return self._map(tokens, tuple(-(-side // stride) for side, stride in zip(size, strides)))

    def _map(self, tokens: Tensor, grid: Grid) -> Tensor:
        return tokens[:, self.num_leading_tokens :].unflatten(1, grid).permute(0, 3, 1, 2)

    def compile_blocks(self, **kwargs) -> None:
        """Have ``torch.compile(**kwargs)`` make kernels for whole blocks, shared by all blocks: same results.

        They are compiled in the first steps, once for each combination of resolution, object mask, training or not,
        and, with ``drop_path_subset``, number of images that are kept.
        """
        limit = 'recompile_limit' if hasattr(torch._dynamo.config, 'recompile_limit') else 'cache_size_limit'
        own = 8 * (1 + self.num_layers * self.drop_path_subset)  # beyond it torch would silently leave them uncompiled
        setattr(torch._dynamo.config, limit, max(getattr(torch._dynamo.config, limit), own))
        self.block = torch.compile(run_block, **{'dynamic': False, **kwargs})

    def shard_blocks(self, **kwargs) -> None:
        """Have torch's ``fully_shard(**kwargs)`` leave each rank its part of every block; a block is gathered while it
        runs, uncompiled."""
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        for layer in self.layers:
            layer.run = MethodType(run_block, layer)  # what gathers it: mmpretrain's own forward() is never called
            fully_shard(layer, **kwargs)
            register_fsdp_forward_method(layer, 'run')
        self.sharded_block = lambda layer, *args: layer.run(*args)

    @torch.no_grad()
    def object_attention_map(self, images: Tensor, object_mask: Optional[Tensor] = None) -> Tensor:
        """Return where the [OBJ] query looks in the last block: float [B, rows, columns], mean over heads and [OBJ]
        tokens, for pictures.

        Args:
            images: [B, 3, H, W], normalised.
            object_mask: See :meth:`forward`; patches outside it get 0.
        """
        x, grid = self.embed(images)
        if object_mask is None:
            object_mask = torch.ones(len(x), grid[0] * grid[1], dtype=torch.bool, device=x.device)
        sequences = self.sequences([(x, grid)], [object_mask])
        x = x.flatten(0, 1)
        for number, layer in enumerate(self.layers[:-1]):
            x = run_block(layer, x, sequences, window=self.window_of(number))
        layer = self.layers[-1]
        attn = layer.attn
        qkv = attn.qkv(layer.ln1(x)).view(*sequences.shapes[0], 3, attn.num_heads, attn.head_dims)
        q, k = (rotate(part.transpose(1, 2), sequences.ropes[0]) for part in qkv.unbind(2)[:2])  # [B, heads, T, d]
        scores = q[:, :, self.object_slice] @ k.mT / attn.head_dims**0.5
        keys = self._key_mask(object_mask, images, grid)
        weights = scores.masked_fill(~keys, -torch.inf).softmax(-1)
        return weights.mean((1, 2))[:, self.num_leading_tokens :].unflatten(1, grid)

    @torch.no_grad()
    def read_objects(self, images: Tensor, object_masks: Tensor) -> Tuple[Tensor, Tensor]:
        """Return the token sequences of whole images and, from the same pass, the [OBJ] tokens of k objects in each,
        for evaluation.

        Each object has [OBJ] tokens of its own. They attend as with a mask in :meth:`forward`, and no other token
        attends to them: the patches see the [OBJ] of the whole image, where :meth:`forward` shows them the one that is
        masked.

        Args:
            images: [B, 3, H, W], normalised.
            object_masks: bool [B, k, N], the patches of each object; none at all: the token sees itself (and registers)
                alone.

        Returns:
            [B, T, D], the last block's of :meth:`forward` without a mask, and [B, k, D], the mean over an object's
            tokens.

        Raises:
            ConfigError: the masks do not fit the patch grid.
        """
        x, grid = self.embed(images)
        batch, length = x.shape[:2]
        if object_masks.shape[::2] != (batch, grid[0] * grid[1]):
            raise ConfigError(
                f'object_masks must be bool [{batch}, objects, {grid[0] * grid[1]}] (patches of the '
                f'{grid[0]}x{grid[1]} grid), got {tuple(object_masks.shape)}.'
            )
        own = self.object_slice.stop - self.object_slice.start
        readers = x[:, self.object_slice].repeat(1, object_masks.shape[1], 1)  # [B, k * own, D], object by object
        count = readers.shape[1]
        keys = torch.zeros(batch, 1, count, length + count, dtype=torch.bool, device=x.device)
        keys[..., self.num_class_tokens : self.num_leading_tokens] = True
        keys[..., self.num_leading_tokens : length] = object_masks.bool().repeat_interleave(own, 1)[:, None]
        keys[..., length:] = torch.eye(count, dtype=torch.bool, device=x.device)
        plain = self.sequences([(x, grid)], [None])
        ropes = plain.ropes
        if ropes[0] is not None:  # not rotated, as no leading token is
            cos, sin = ropes[0]
            ropes = ((F.pad(cos, (0, 0, 0, count), value=1.0), F.pad(sin, (0, 0, 0, count))),)
        sequences = plain._replace(shapes=((batch, length + count),), readers=keys, ropes=ropes)
        x = torch.cat((x, readers), dim=1).flatten(0, 1)
        for number, layer in enumerate(self.layers):
            x = run_block(layer, x, sequences, window=self.window_of(number))
        if self.final_norm:
            x = self.ln1(x)
        tokens, objects = x.unflatten(0, (batch, -1)).split([length, count], dim=1)
        return tokens, objects.unflatten(1, (-1, own)).mean(2)

    def _key_mask(self, object_mask: Tensor, x: Tensor, grid: Grid) -> Tensor:
        """Which keys each [OBJ] query sees, bool [B, 1, k, T]: itself, the registers and the object's patches."""
        batch, patches = len(x), grid[0] * grid[1]
        if object_mask.shape != (batch, patches):
            raise ConfigError(
                f'object_mask must be bool [{batch}, {patches}] (images, patches of the {grid[0]}x{grid[1]} grid), got '
                f'{tuple(object_mask.shape)}.'
            )
        first, stop = self.object_slice.start, self.object_slice.stop
        mask = torch.zeros(batch, 1, stop - first, self.num_leading_tokens + patches, dtype=torch.bool, device=x.device)
        mask[..., self.num_leading_tokens :] = object_mask.bool()[:, None, None]
        mask[..., stop : self.num_leading_tokens] = True
        mask[:, :, range(stop - first), range(first, stop)] = True
        return mask

    def settings(self) -> Dict[str, Any]:
        """Return what a file of its tensors does not tell by itself: plain values for the file's meta."""
        return dict(
            num_heads=self.arch_settings['num_heads'],
            patch_size=int(self.patch_embed.projection.stride[0]),
            patch_grid=[int(side) for side in self.patch_resolution],
            norm_eps=float(self.layers[0].ln1.eps),
            antialias=self.antialias,
            **(dict(window_size=self.window_size, global_every=self.global_every) if self.window_size else {}),
        )
