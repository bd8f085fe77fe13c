"""What this machine can do."""

import torch

from unraze.errors import InputError

__all__ = ["has_bfloat16", "require_device"]


def has_bfloat16(kind: str) -> bool:
    """Whether a device of this kind, "cpu" or "cuda", multiplies bfloat16 in hardware."""
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    features = torch.cpu.get_capabilities() if kind == "cpu" else {}
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def require_device(name: str) -> None:
    """Raises `InputError` where this machine has no such device."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(":")[0]
        raise InputError(
            f"device = {name!r}: cannot be used here ({reason}); give cpu, cuda or mps"
        ) from error
