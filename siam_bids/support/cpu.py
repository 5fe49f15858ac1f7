"""What the CPU can do."""

from __future__ import annotations

import torch


def cpu_has(*names: str) -> bool:
    """Tell whether this CPU has one of some instruction sets, by torch's names for them."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in names)


def has_fast_bfloat16() -> bool:
    """Tell whether this CPU multiplies bfloat16 in hardware (avx512_bf16 or AMX)."""
    return cpu_has("avx512_bf16", "amx_bf16")
