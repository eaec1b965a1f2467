"""The devices of the stand-in, through the names of ggml's interface. Functions take attributes, as ctypes' do."""

import llama_cpp


def _count():
    return llama_cpp.GPUS + 1  # the CPU is a device too


def _get(index):
    return index


def _type(device):
    return 1 if device < llama_cpp.GPUS else 0


def _description(device):
    return f"stand-in card {device}".encode()


def _name(device):
    return f"CUDA{device}".encode()


def _memory(device, free, total):
    total._obj.value = int(llama_cpp.GPU_MIB * llama_cpp.MIB)
    free._obj.value = int((llama_cpp.GPU_MIB - llama_cpp.used_mib() / llama_cpp.GPUS) * llama_cpp.MIB)


class Devices:
    """What ctypes.CDLL would be."""

    ggml_backend_dev_count = _count
    ggml_backend_dev_get = _get
    ggml_backend_dev_type = _type
    ggml_backend_dev_description = _description
    ggml_backend_dev_memory = _memory
    ggml_backend_dev_name = _name


libggml = Devices
