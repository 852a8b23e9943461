"""Which implementations there are. Importing this imports none of them.

The peers are a package of their own, because they need what the runtime must not: torch, Diffusers and others.
"""

from __future__ import annotations

from importlib import import_module

from .implementation import Implementation

# Name to "module:class", in the order in which they are measured.
PEERS = {
    "diffusers": "mutoscope_peers.diffusers_peer:Eager",
    "diffusers-compiled": "mutoscope_peers.diffusers_peer:Compiled",
    "openvino": "mutoscope_peers.openvino_peer:OpenVino",
    "openvino-genai": "mutoscope_peers.openvino_genai_peer:OpenVinoGenAi",
    "stable-diffusion.cpp": "mutoscope_peers.stable_diffusion_cpp_peer:StableDiffusionCpp",
}
OURS = "mutoscope"  # followed by the backend
REFERENCE = ("diffusers", "fp32")  # whose outputs errors are measured against, where it is there


def load_implementation(name: str, path: str | None = None) -> Implementation:
    """An implementation by its name in the result: a peer, or "mutoscope BACKEND".

    Args:
        path: of a peer, where it lies, for a process that was told; else that of the table.
    """
    if name.startswith(f"{OURS} "):
        from .ours import Ours

        return Ours(name.removeprefix(f"{OURS} "))
    module, _, attribute = (path or PEERS[name]).partition(":")
    loaded: Implementation = getattr(import_module(module), attribute)()
    return loaded
