"""An image classifier in two sizes, from torch modules of your own: which shape does a picture show?

Needs the extra `steps` (pillow).  In a copy of this folder:

    $ python shapes.py  # draws pictures/CLASS/N.png, trains both sizes
    $ python -m clover family new classifier --from shapes:small --weights small.pt \
        --from shapes:large --weights large.pt --input pixels:FP32:1,28,28 --evaluate pictures
    $ python -m clover serve ./classifier --carbon static:400  # leave it running; the rest in a second terminal
    $ python -m clover infer classifier pictures/cross/6.png
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

SHAPES = ("circle", "cross", "square", "triangle")


def small():
    return nn.Sequential(nn.Conv2d(1, 6, 5, stride=2), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(96, 4))


def large():
    body = (nn.Conv2d(1, 32, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(1024, 4))


def draw(shape, random):
    picture = Image.new("L", (28, 28))
    pen, (x, y), r = ImageDraw.Draw(picture), random.integers(8, 20, 2).tolist(), int(random.integers(4, 8))
    box = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        pen.ellipse(box, outline=255)
    elif shape == "cross":
        pen.line(box, fill=255)
        pen.line((x - r, y + r, x + r, y - r), fill=255)
    elif shape == "square":
        pen.rectangle(box, outline=255)
    else:
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], outline=255)
    return Image.fromarray(np.maximum(np.asarray(picture), random.integers(0, 160, (28, 28), np.uint8)))


def train(net, epochs):
    random = np.random.default_rng(0)
    pictures = [np.asarray(draw(SHAPES[index % 4], random), np.float32) / 255 for index in range(4000)]
    x, y = torch.from_numpy(np.stack(pictures)[:, None]), torch.arange(4000) % 4
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(4000).split(100):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimiser.step()
    return net


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more of them would wait for each other: the networks are small
    torch.save(train(small(), 6).state_dict(), "small.pt")
    torch.save(train(large(), 3).state_dict(), "large.pt")
    random = np.random.default_rng(1)
    for shape in SHAPES:
        Path("pictures", shape).mkdir(parents=True, exist_ok=True)
        for index in range(150):
            draw(shape, random).save(f"pictures/{shape}/{index}.png")
