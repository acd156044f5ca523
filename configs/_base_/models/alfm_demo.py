# ALFM (our reconstruction) on a ViT of 128 channels and 4 blocks with patches of 8 pixels, for the 48 pixel views of the demo set.
_base_ = './alfm_vits.py'

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=128, num_layers=4, num_heads=4, feedforward_channels=512),
        img_size=48, patch_size=8, drop_path_rate=0.0),
    neck=dict(in_channels=128, hidden_channels=512, bottleneck_channels=128, num_prototypes=256),
    head=dict(
        num_prototypes=256,
        num_cells=4,  # the maps have 6 x 6 cells
        teacher_temp=0.02))  # at 0.04 batches of 32 drift to flat soft labels: teacher entropy 5.0 of ln 256 = 5.5 after 750 steps
