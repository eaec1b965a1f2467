"""A stand-in for `nvidia-smi` that prints the fake driver's power, through the real pynvml, as the real one does.

Takes the options that benchmarks/gpu_smi.py gives, and no others.
"""

import argparse
import time
from datetime import datetime

import pynvml


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--id", required=True)
    parser.add_argument("--query-gpu", required=True)
    parser.add_argument("--format", required=True, choices=["csv,noheader,nounits"])
    parser.add_argument("--loop-ms", type=int)
    options = parser.parse_args()
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(options.id.encode())
    fields = {
        "power.draw": pynvml.NVML_FI_DEV_POWER_AVERAGE,
        "power.draw.instant": pynvml.NVML_FI_DEV_POWER_INSTANT,
        "power.draw.average": pynvml.NVML_FI_DEV_POWER_AVERAGE,
    }

    def value(word: str) -> str:
        if word == "timestamp":
            return datetime.now().strftime("%Y/%m/%d %H:%M:%S.%f")[:-3]
        found = pynvml.nvmlDeviceGetFieldValues(handle, [(fields[word], pynvml.NVML_POWER_SCOPE_GPU)])[0]
        return f"{found.value.uiVal / 1000:.2f}" if found.nvmlReturn == 0 else "[N/A]"

    while True:
        print(", ".join(value(word) for word in options.query_gpu.split(",")), flush=True)
        if options.loop_ms is None:
            return
        time.sleep(options.loop_ms / 1000)


if __name__ == "__main__":
    main()
