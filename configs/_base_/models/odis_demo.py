# A ViT of 128 channels and 4 blocks with patches of 8 pixels, for the 64 and 32 pixel views of the demo set. All by
# trial.
_base_ = './odis_vits.py'

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=128, num_layers=4, num_heads=4, feedforward_channels=512),
        img_size=64, patch_size=8, drop_path_rate=0.0),
    neck=dict(in_channels=128, hidden_channels=512, bottleneck_channels=128, num_prototypes=1024),
    head=dict(num_prototypes=1024, teacher_temp=0.04))
