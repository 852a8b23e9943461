"""The sections of the page of results that come from engines compiled without a GPU."""

from __future__ import annotations

from .results_figures import (
    activations,
    added_by_loras,
    compiler_memory,
    decoder_activations,
    encoder_activations,
    predicted,
)
from .results_rows import Row, Section

ENGINES = "engine_memory/"
ENGINE = ("tensorrt-rtx-cu13",)

LORAS = (
    ("Wan 2.1 1.3B", "480x832x81", "bf16", 2,
     ("1.3b_2_blocks_bf16_rtx40", "1.3b_2_blocks_bf16_rtx40_lora")),
    ("Wan 2.1 1.3B", "480x832x81", "bf16", 2,
     ("1.3b_2_blocks_bf16_rtx50", "1.3b_2_blocks_bf16_rtx50_lora")),
    ("Wan 2.1 1.3B", "480x832x81", "fp8", 4,
     ("1.3b_4_blocks_fp8_rtx40", "1.3b_4_blocks_fp8_rtx40_lora")),
    ("Wan 2.1 1.3B", "480x832x81", "fp8", 4,
     ("1.3b_4_blocks_fp8", "1.3b_4_blocks_fp8_rtx50_lora")),
    ("Wan 2.2 5B", "704x1280x121", "fp8", 4,
     ("5b_4_blocks_fp8", "5b_4_blocks_fp8_lora")),
    ("Wan 2.1 14B", "480x832x81", "bf16", 2,
     ("14b_2_blocks_bf16_rtx50", "14b_2_blocks_bf16_lora")),
)  # fmt: skip

SECTIONS = (
    Section(
        "Engines for RTX 40, compiled without a GPU",
        "Read from the compiler's log. No engine has run on a GPU. Engines for the other targets are in "
        "`benchmarks/results/engine_memory/`.",
        (
            Row(
                "activations of the denoiser, Wan 2.1 1.3B, bf16",
                (ENGINES + "1.3b_bf16_rtx40.json",),
                activations(("480x832x81", 1), ("480x832x81", 2), ("720x1280x81", 1), ("720x1280x81", 2)),
                ENGINE,
            ),
            Row(
                "the same, fp8",
                (ENGINES + "1.3b_fp8_rtx40.json",),
                activations(("480x832x81", 1), ("480x832x81", 2), ("720x1280x81", 1), ("720x1280x81", 2)),
                ENGINE,
            ),
            Row(
                "activations of the VAE's next chunk, bf16, whole and in tiles",
                (ENGINES + "vae_bf16_rtx40.json",),
                decoder_activations,
                ENGINE,
            ),
            Row(
                "activations of the denoiser, Wan 2.2 5B, fp8 (3 blocks)",
                (ENGINES + "5b_3_blocks_fp8_rtx40.json",),
                activations(("704x1280x121", 1), ("704x1280x121", 2), ("480x832x121", 1), ("480x832x121", 2)),
                ENGINE,
            ),
            Row(
                "the same, bf16 (2 blocks)",
                (ENGINES + "5b_2_blocks_bf16_rtx40.json",),
                activations(("704x1280x121", 1), ("704x1280x121", 2)),
                ENGINE,
            ),
            Row(
                "activations of the next chunk of Wan 2.2's VAE, bf16, whole and in tiles",
                (ENGINES + "vae-2.2_bf16_rtx40.json",),
                decoder_activations,
                ENGINE,
            ),
            Row(
                "activations of its encoder, bf16",
                (ENGINES + "vae-2.2_bf16_rtx40.json",),
                encoder_activations,
                ENGINE,
            ),
            Row(
                "activations of the encoder of Wan 2.1's VAE, bf16",
                (ENGINES + "vae-2.1_encoder_bf16_rtx40.json",),
                encoder_activations,
                ENGINE,
            ),
            Row(
                "memory of the machine while the denoiser of 1.3B is compiled",
                tuple(
                    ENGINES + name
                    for name in (
                        "1.3b_bf16_rtx40.json",
                        "1.3b_fp8_rtx40.json",
                        "1.3b_parts_bf16_rtx40.json",
                        "1.3b_parts_fp8_rtx40.json",
                    )
                ),
                compiler_memory,
                ENGINE,
            ),
            Row(
                "the same for 14B",
                (ENGINES + "14b_parts_bf16_rtx40.json", ENGINES + "14b_parts_fp8_rtx40.json"),
                compiler_memory,
                ENGINE,
            ),
        ),
    ),
    Section(
        "Engines that LoRAs change, compiled without a GPU",
        "Activations of the form of a denoiser with [inputs for LoRAs](lora.md) beside those of the plain form, with "
        "one branch, and 1.5 times the largest weight in bf16, which is the most that the form may add. A and B come "
        "on top; the predicted peaks count them.",
        tuple(
            Row(
                f"{name}, {shapes}, {precision} ({blocks} blocks)",
                tuple(f"{ENGINES}{file}.json" for file in files),
                added_by_loras,
                ENGINE,
            )
            for name, shapes, precision, blocks, files in LORAS
        ),
    ),
    Section(
        "Predicted peaks of GPU memory, RTX 40, 480x832, 81 frames",
        "Computed from the engines above, with one stage after the other on the GPU. Not measured. Each figure is "
        "the weights, activations, inputs and outputs of the largest stage, with all stages in brackets. The text "
        "encoder's weights can be [streamed](gpu.md#memory) from host memory.",
        tuple(
            Row(
                f"Wan 2.1 {model}, {precision}, {branches} branch{'es' if branches > 1 else ''}, decoder: {decoder}",
                ("predicted_peaks.json",),
                predicted(model, precision, parts, branches, decoder),
                ENGINE,
            )
            for model, precision, parts, branches, decoder in (
                ("1.3B", "bf16", 1, 2, "2 of 480x472"),
                ("1.3B", "bf16", 1, 2, "6 of 296x352"),
                ("1.3B", "fp8", 1, 2, "6 of 296x352"),
                ("14B", "bf16", 10, 1, "2 of 480x472"),
                ("14B", "fp8", 14, 1, "2 of 480x472"),
                ("14B", "fp8", 14, 2, "2 of 480x472"),
            )
        ),
    ),
    Section(
        "Predicted peaks of GPU memory, RTX 40, Wan 2.2",
        "Computed in the same way. A denoiser of Wan 2.2 T2V-A14B is the graph of Wan 2.1 14B, whose rows are above; "
        "one of I2V-A14B, which takes 20 channels more, counts as that, too. "
        "[Models](models.md#gpu-memory) says how these run on cards of 8, 12, 16 and 24 GB.",
        tuple(
            Row(
                f"Wan 2.2 {model}, {precision}, {shapes}, {branches} branch{'es' if branches > 1 else ''}, "
                f"decoder: {decoder}",
                ("predicted_peaks.json",),
                predicted(model, precision, 10 if model == "I2V-A14B" else 1, branches, decoder, shapes),
                ENGINE,
            )
            for model, precision, shapes, branches, decoder in (
                ("5B", "fp8", "704x1280x121", 1, "6 of 464x576"),
                ("5B", "fp8", "704x1280x121", 2, "6 of 464x576"),
                ("5B", "bf16", "704x1280x121", 2, "6 of 464x576"),
                ("5B", "fp8", "480x832x121", 2, "2 of 480x528"),
                ("I2V-A14B", "bf16", "480x832x81", 1, "2 of 480x472"),
                ("I2V-A14B", "bf16", "720x1280x81", 1, "6 of 416x504"),
            )
        ),
    ),
)
