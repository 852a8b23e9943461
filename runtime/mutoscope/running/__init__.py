"""The stages of a video as they run: text into embeddings, noise into latents, latents into frames."""
