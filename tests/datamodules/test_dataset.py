"""The in-memory data set: batched reads equal single ones, and scaling is by constants."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from lit_methods.datamodules import ImageDataset, collate_images

IMAGES = torch.arange(2 * 7 * 3 * 4, dtype=torch.uint8).reshape(7, 2, 3, 4)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0])


class _Jitter(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image + torch.rand(())


@pytest.mark.parametrize("transform", [None, lambda image: image.flip(-1), nn.Flatten(0)])
def test_batched_read_equals_single_reads(transform: nn.Module | None) -> None:
    dataset = ImageDataset(IMAGES, LABELS, value_range=(-1.0, 1.0), transform=transform)
    indices = [6, 0, 3, 3]
    images, labels = dataset.__getitems__(indices)
    singles = [dataset[index] for index in indices]
    assert torch.equal(images, torch.stack([image for image, _ in singles]))
    assert torch.equal(labels, torch.stack([label for _, label in singles]))
    assert torch.equal(labels, LABELS[indices])


def test_pixels_are_scaled_from_zero_and_the_maximum_to_the_range() -> None:
    pixels = torch.tensor([0, 4, 16], dtype=torch.uint8).reshape(1, 1, 1, 3)
    image, _ = ImageDataset(pixels, torch.zeros(1), pixel_maximum=16, value_range=(-1.0, 3.0))[0]
    torch.testing.assert_close(image, torch.tensor([[[-1.0, 0.0, 3.0]]]))
    assert pixels.flatten().tolist() == [0, 4, 16]


def test_a_random_transform_differs_between_the_images_of_a_batch() -> None:
    dataset = ImageDataset(torch.zeros(8, 1, 2, 2, dtype=torch.uint8), torch.zeros(8), transform=_Jitter())
    images, _ = dataset.__getitems__(range(8))
    assert len(images[:, 0, 0, 0].unique()) == 8


@pytest.mark.parametrize("wrapped", [False, True])
def test_loader_serves_every_example_once(wrapped: bool) -> None:
    dataset = ImageDataset(IMAGES, LABELS)
    loader = DataLoader(
        Subset(dataset, range(7)) if wrapped else dataset, batch_size=3, shuffle=True, collate_fn=collate_images
    )
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    order = images[:, 0, 0, 0].argsort()
    torch.testing.assert_close(images[order], IMAGES.float() / 255)
    assert torch.equal(labels[order], LABELS)


def test_collate_takes_a_list_of_examples_too() -> None:
    dataset = ImageDataset(IMAGES, LABELS)
    images, labels = collate_images([dataset[index] for index in range(4)])
    assert torch.equal(images, dataset.__getitems__(range(4))[0])
    assert torch.equal(labels, LABELS[:4])


def test_wrong_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images is torch.float32 \(7, 2, 3, 4\); pass uint8"):
        ImageDataset(IMAGES.float(), LABELS)
    with pytest.raises(ValueError, match="images has 7 rows and labels 6"):
        ImageDataset(IMAGES, LABELS[:6])
