# COCO train2017 with its boxes and masks; the labels are not used. Views: iBOT recipe for ViT-S, object-aware as in
# ODIS.
# ======================================== frequently changed ========================================
# COCO_ROOT in the environment names another folder (one option: --cfg-options
# train_dataloader.dataset.data_root=DIR);
# it holds train2017/ and annotations/instances_train2017.json.
train_dataloader = dict(
    batch_size=64,  # images per rank
    num_workers=8,  # per rank; more of them than cores slow a run down: watch data_wait in the log
    # ====================================== seldom changed ==========================================
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    collate_fn=dict(type='collate_views'),
    worker_init_fn=dict(type='single_thread_worker'),
    sampler=dict(type='EpochSampler', shuffle=True),
    dataset=dict(
        type='ObjectDataset',
        data_root='{{$COCO_ROOT:data/coco/}}',
        ann_file='annotations/instances_train2017.json',  # '': every image of the folder, without objects
        data_prefix='train2017/',
        seed=0,  # of the views
        data_fraction=1.0,
        with_masks=False,  # True with region='mask' below
        # so many images may be unreadable, and are replaced by others; 0: the first one ends the run
        max_bad_share=0.01,
        pipeline=[
            dict(type='LoadObjectImage'),
            dict(
                type='SampleViews',
                views=[  # iBOT recipe
                    dict(role='global', num=2, size=224, scale=(0.25, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5),
                    dict(role='local', num=10, size=96, scale=(0.05, 0.25), ratio=(3 / 4, 4 / 3), flip=0.5),
                ],
                patch_size=16,
                object_aware=True,  # paper; False: plain multi-crop
                target_rule='random_area',  # paper; also 'random', 'largest'
                region='box',  # what [OBJ] sees: 'box' or 'mask'
                min_cover=0.04,  # a derivative of the authors' code
                tries=20,  # paper
                local_touch=False,  # ours; True: local views touch the object, too
                local_tries=10,  # ours
            ),
            dict(type='RenderViews'),
            dict(
                type='PhotometricViews',  # iBOT recipe; three values are for global 1, global 2, local views
                brightness=0.4,
                contrast=0.4,
                saturation=0.2,
                hue=0.1,
                jitter_prob=0.8,
                gray_prob=0.2,
                blur_prob=(1.0, 0.1, 0.5),
                blur_sigma=(0.1, 2.0),
                solarize_prob=(0.0, 0.2, 0.0),
                on_device=False,
            ),  # True: the same numbers, applied by the GPU to whole batches: fewer workers
            dict(
                type='BlockMasks',  # iBOT recipe
                ratio_mean=0.3,
                ratio_spread=0.2,
                skip_prob=0.5,
                aspect=0.3,
                attempts=10,
            ),
            dict(type='PackViews'),
        ],
    ),
)
