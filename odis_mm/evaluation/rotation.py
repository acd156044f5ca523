"""Does GTSA's classifier read the rotation of images that it has not been trained on?"""

import numpy as np
import torch

from ..datasets.transforms import render_view
from ..structures import View
from ..utils.progress import reported
from .frozen import FrozenBackbone


@torch.no_grad()
def rotation_accuracy(model: torch.nn.Module, dataset, size: int, batch_size: int = 16) -> dict:
    """Return the share of right answers when the central square of every image is shown in all four orientations.

    Args:
        model: A ``GTSA`` with its rotation classifier; the student answers, as it is what the classifier was trained
            on.
        dataset: Images with ``img`` uint8 [H, W, 3].
        size: Pixels per side that the square is resized to.
        batch_size: Images a forward pass, four views each.

    Returns:
        ``accuracy`` in percent (25: chance), ``standard_error`` of it over the images, whose four answers belong
        together, and ``images``, their number.

    Raises:
        ConfigError: patches do not divide the size.
    """
    FrozenBackbone(model.backbone).check_size(size)  # else the border would be padded, which no view in training was
    model.eval()
    device, right = next(model.parameters()).device, []
    for start in reported(range(0, len(dataset), batch_size), len(dataset), batch_size):
        views = []
        for index in range(start, min(start + batch_size, len(dataset))):
            image = dataset[index]['img']
            height, width = image.shape[:2]
            side = min(height, width)
            crop = ((width - side) // 2, (height - side) // 2, side, side)
            views += [render_view(image, View(crop, (size, size), False, turns)) for turns in range(4)]
        inputs = model.data_preprocessor(dict(inputs=torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)))['inputs']
        answers = model.predict_rotation(inputs.to(device)).argmax(-1).view(-1, 4)  # [images, turns]
        right.append((answers == torch.arange(4, device=device)).float().mean(1).cpu())
    right = 100 * torch.cat(right)
    error = right.std().item() / len(right) ** 0.5 if len(right) > 1 else float('nan')
    return dict(accuracy=right.mean().item(), standard_error=error, images=len(right))
