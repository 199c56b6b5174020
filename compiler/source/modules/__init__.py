"""PyTorch modules as people have them: how each is called, what it is wrapped in, what torch.export cannot take as it is."""
