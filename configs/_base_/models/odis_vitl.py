# ViT-L/16. What differs from ViT-S, drop path and prototypes of fixed norm, follows iBOT's practice but could not be
# checked against its argument files: ours.
_base_ = './odis_vits.py'

model = dict(backbone=dict(arch='large', drop_path_rate=0.4), neck=dict(in_channels=1024, norm_trainable=False))
