# ALFM on ResNet-50: our reconstruction (see alfm_vits.py). The last map, of stride 32, is what the losses see.
_base_ = './alfm_vits.py'

model = dict(
    backbone=dict(_delete_=True, type='ResNet', depth=50, with_cp=False),  # True: activation checkpointing
    neck=dict(in_channels=2048),
)
