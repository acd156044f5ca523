# ViT-B/16. What differs from ViT-S follows iBOT's practice but could not be checked against its argument files: this
# project's defaults.
_base_ = './odis_vits.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.1), neck=dict(in_channels=768, norm_trainable=False))
