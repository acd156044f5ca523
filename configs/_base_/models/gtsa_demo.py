# GTSA on a ViT of 128 channels and 4 blocks with patches of 8 pixels, for the 48 and 24 pixel views of the demo set.
# All numbers are ours.
_base_ = './gtsa_vits.py'

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=128, num_layers=4, num_heads=4, feedforward_channels=512),
        img_size=48,
        patch_size=8,
        drop_path_rate=0.0,
    ),
    neck=dict(in_channels=128, hidden_channels=128, out_channels=128),
    head=dict(
        in_channels=128,
        predictor=dict(in_channels=128, hidden_channels=128, out_channels=128),
        crop_cells=(4, 2),
        num_matches=(18, 4),  # the maps have 6 x 6 and 3 x 3 cells
        rotation_channels=(256, 256, 64),
        correspondence_epoch=4,
        lambda_entropy=0.3,  # without it a short run with a quick teacher collapsed; 1 keeps crops apart
    ),
    momentum=dict(start=0.95),  # the paper's 0.996 leaves half of the initial weights in the teacher of 300 steps
)
