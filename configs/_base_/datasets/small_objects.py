# A user's own 200 to 5,000 images with boxes, on CPUs or one GPU. Two object-aware views of each image.
# ======================================== frequently changed ========================================
train_dataloader = dict(
    batch_size=64,  # ours
    num_workers=0,  # on CPUs workers would take the cores that train; with a GPU: as many as cores
    dataset=dict(
        type='ObjectDataset',
        data_root='data/own/',
        ann_file='annotations/train.json',  # '': every image of the folder, without objects
        data_prefix='images',
        seed=0,  # of the views
        with_masks=False,
        max_bad_share=0.01,
        pipeline=[
            dict(type='LoadObjectImage'),
            dict(
                type='SampleViews',
                patch_size=8,
                views=[dict(role='global', num=2, size=64, scale=(0.1, 0.5), ratio=(3 / 4, 4 / 3), flip=0.5)],
                object_aware=True,
                target_rule='random_area',  # paper
                min_cover=0.04,  # a derivative of the authors' code
                tries=20,  # paper
            ),
            dict(type='RenderViews'),
            dict(
                # milder than iBOT's: in one kind of scene, colour is what tells many classes apart; little blur and no
                # solarize, as the views are small
                type='PhotometricViews',
                brightness=0.15,
                contrast=0.15,
                saturation=0.1,
                hue=0.03,
                jitter_prob=0.8,
                gray_prob=0.0,
                blur_prob=(0.2, 0.2, 0.0),
                blur_sigma=(0.1, 1.0),
                solarize_prob=(0.0, 0.0, 0.0),
            ),
            dict(type='BlockMasks', ratio_mean=0.3, ratio_spread=0.2, skip_prob=0.5, aspect=0.3, attempts=10),  # iBOT
            dict(type='PackViews'),
        ],
    ),
    # ====================================== seldom changed ==========================================
    persistent_workers=False,
    pin_memory=False,
    drop_last=True,
    collate_fn=dict(type='collate_views'),
    worker_init_fn=dict(type='single_thread_worker'),
    sampler=dict(type='EpochSampler', shuffle=True),
)
