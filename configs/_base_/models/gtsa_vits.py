# GTSA on ViT-S/16 (mmpretrain's 'deit-small') with its projector, predictor and rotation classifier.
# Where a number comes from: "paper", GTSA (arXiv 2304.08014); "release", its authors' code; "iBOT", the recipe that it
# builds on; "ours".
model = dict(
    type='GTSA',
    data_preprocessor=dict(  # ImageNet's, RGB, as everywhere
        type='ViewPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]
    ),
    backbone=dict(
        type='ObjectViT',
        arch='deit-small',
        img_size=224,
        patch_size=16,
        drop_path_rate=0.1,  # iBOT; of the student alone
        with_cp=False,  # True: activation checkpointing, less memory for a quarter more time
    ),
    neck=dict(  # paper: the projector
        type='ConvNeck', in_channels=384, hidden_channels=384, out_channels=768, num_blocks=2, residual=True
    ),
    head=dict(
        type='GTSAHead',
        in_channels=384,
        predictor=dict(  # paper
            type='ConvNeck', in_channels=768, hidden_channels=768, out_channels=768, num_blocks=1, residual=False
        ),
        crop_cells=(10, 4),  # paper: for global and local views
        num_matches=(98, 18),  # paper: for global and local views, half of their 196 and 36 cells
        rotation_channels=(768, 768, 128),  # paper
        lambda_crop=1.0,  # paper; a weight of 0 leaves its loss out
        lambda_correspondence=0.5,  # paper
        lambda_rotation=0.5,  # paper
        # paper: after the warm-up; release: once "10 < epoch", counted from 0: from the 12th epoch on. Shorten it with
        # the warm-up
        correspondence_epoch=11,
    ),
    momentum=dict(start=0.996, end=1.0),  # iBOT; the share of the teacher that stays
)
