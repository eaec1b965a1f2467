"""A worker process that dies, hangs and babbles when asked to."""

import os
import signal
import time

from sweeper.serving import Refused, serve


def echo(value):
    print("ggml prints to standard output, too")
    os.write(1, b'{"ok": {"value": "not the answer"}}\n')
    return {"value": value, "pid": os.getpid()}


def die(number):
    os.write(2, b"/tmp/pip-build/vendor/llama.cpp/src/a.cpp:7: GGML_ASSERT(x) failed\n")
    os.kill(os.getpid(), number)


def leave(code):
    os.write(2, b"RuntimeError: it is broken\n")
    os._exit(code)


def hang():
    time.sleep(60)


def refuse(words="no"):
    raise Refused(words)


def fail():
    raise ValueError("a mistake of ours")


def large(count):
    return {"value": "x" * count}


def count(to, pause_seconds, tell):
    for number in range(1, to + 1):
        time.sleep(pause_seconds)
        tell(number)
    return {"value": to}


if __name__ == "__main__":
    assert signal.SIGABRT == 6
    handlers = (echo, die, leave, hang, refuse, fail, large, count)
    serve({handler.__name__: handler for handler in handlers})
