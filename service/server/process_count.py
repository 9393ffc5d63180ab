"""How many API processes serve: what the machine's devices can use, unless a setting says it."""

from service import cpu_info
from service.engine import gpu_info
from service.settings import Settings

# One event loop has 700 images a second; a CPU computes 45 of one view, a GPU thousands.
_MOST_CPUS = 16
_MOST_CPUS_WITH_GPU = 4  # one loop, and decoding for it, fill them


def resolved(settings: Settings) -> Settings:
    """Return the settings with the number of API processes; 0 of them becomes what is best."""
    has_gpu = settings.device not in {"cpu", "torch-cpu"} and gpu_info.count() > 0
    count = settings.api_processes or best(cpu_info.available(), has_gpu=has_gpu)
    return settings.model_copy(update={"api_processes": count})


def best(cpus: int, *, has_gpu: bool) -> int:
    """Choose one process, which is quickest, or two where its event loop would be the limit.

    More would not help: the core process, over which they are, serves no more than two of them.
    """
    return 2 if cpus > (_MOST_CPUS_WITH_GPU if has_gpu else _MOST_CPUS) else 1
