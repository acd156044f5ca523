# ViT-B/16. What differs from ViT-S, drop path and prototypes of fixed norm, follows iBOT's practice but could not be
# checked against its argument files: ours.
_base_ = './odis_vits.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.1), neck=dict(in_channels=768, norm_trainable=False))
