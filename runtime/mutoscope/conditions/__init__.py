"""What a video follows: how each kind of input becomes inputs of the denoiser."""
