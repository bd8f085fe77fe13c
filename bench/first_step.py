"""One training step of diffusers' network in a process of its own: what starting it takes.

    python bench/first_step.py IMAGES.npy BATCH THREADS DTYPE

For `train_speed.py`. IMAGES are uint8 (N, H, W, C). Nothing of Unraze is imported.
"""

import sys

import numpy as np
import torch
from diffusers import DDPMScheduler
from peer_networks import diffusers_unet


def main() -> None:
    """Builds, makes a step of noise prediction with AdamW, and says so."""
    file, batch, threads, dtype = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(threads)
    pixels = np.load(file)[:batch].transpose(0, 3, 1, 2)
    network = diffusers_unet(pixels.shape[1:]).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    x0 = torch.from_numpy(pixels.astype(np.float32)) / 127.5 - 1
    eps, t = torch.randn_like(x0), torch.randint(0, 1000, (batch,))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        said = network(DDPMScheduler(1000).add_noise(x0, eps, t), t).sample
    torch.autograd.backward((said.float() - eps).square().mean())
    optimizer.step()
    print("step 1/1", flush=True)


if __name__ == "__main__":
    main()
