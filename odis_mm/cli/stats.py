"""``odis-mm stats --data DIR``: mean and deviation of the channels, for images that are no usual photographs."""

import argparse
from typing import List, Optional

from ..utils.parser import Parser, at_least
from .common import run
from .verify import add_reading, reading_of


def stats_main(argv: Optional[List[str]] = None) -> None:
    """Print what a config needs: mean, std, and a window if the images have more than 8 bits."""
    parser = Parser(
        prog='odis-mm stats',
        description='Mean and standard deviation per channel of a data set, as model.data_preprocessor takes them; for '
        'images of more than 8 '
        'bits also the window of values that becomes 0..255.',
    )
    parser.add_argument('--data', default='', metavar='DIR', help='folder of the annotations and images')
    parser.add_argument(
        '--ann-file', default='', help='json of objects, or list of images, below DIR; without: all images'
    )
    parser.add_argument('--images', default='', metavar='DIR', help='image folder, below --data')
    parser.add_argument('--limit', type=at_least(1), default=2000, help='images to read, evenly spread (default: 2000)')
    add_reading(parser)
    args = parser.parse_args(argv)
    run(lambda: _stats(args))


def _stats(args: argparse.Namespace) -> None:
    from ..datasets import ObjectDataset
    from ..datasets.statistics import statistics
    from ..datasets.survey import spread

    dataset = ObjectDataset(args.data, args.ann_file, args.images)
    chosen = spread(len(dataset), args.limit).tolist()
    paths = [dataset.get_data_info(index)['img_path'] for index in chosen]
    found = statistics(paths, **reading_of(args))
    mean, std = (','.join(f'{value:.4g}' for value in values) for values in (found.mean, found.std))
    print(f'{found.images} images, {found.bad} could not be read')
    lines = [f'model.data_preprocessor.mean=[{mean}]', f'model.data_preprocessor.std=[{std}]']
    step = 'train_dataloader.dataset.pipeline.0'  # LoadObjectImage
    if found.window is not None:
        lines.append(f'{step}.window=[{found.window[0]:g},{found.window[1]:g}]')
    if found.percentiles is not None:
        lines.append(f'{step}.percentiles=[{found.percentiles[0]:g},{found.percentiles[1]:g}]')
        if args.percentiles is None:
            print('some images have 8 bits, others more: the range of each becomes 0 to 255')
    if args.channels != 3:
        lines.append(f'{step}.channels={args.channels}')
    print('--cfg-options ' + ' '.join(lines))
