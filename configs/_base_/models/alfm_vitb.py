# ALFM on ViT-B/16: our reconstruction (see alfm_vits.py); prototypes of fixed norm as for iBOT's larger ViTs.
_base_ = './alfm_vits.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.1), neck=dict(in_channels=768, norm_trainable=False))
