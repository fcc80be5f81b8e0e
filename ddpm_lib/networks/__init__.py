"""The network: embeddings, blocks, the U-Net, and the exchange of weights with diffusers."""
