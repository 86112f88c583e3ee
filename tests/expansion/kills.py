"""Killing a process at each of its changes of the file system, for tests of what it leaves behind."""

import multiprocessing
import os
import signal

CALLS = ("copy_file_range", "pwrite", "ftruncate", "fsync", "replace", "rename")


def killed_at_call(number, write):
    """Kill itself before its n-th change of the file system."""
    left = [number]

    def wrap(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name)))
    write()


def in_process(function, *args):
    process = multiprocessing.get_context("fork").Process(target=function, args=args)
    process.start()
    return process


def num_calls(write):
    """How many changes of the file system `write` makes, of those that `killed_at_call` counts, in its own process."""
    counted = multiprocessing.get_context("fork").Value("i", 0)

    def count():
        def note(function):
            def call(*args, **kwargs):
                with counted.get_lock():
                    counted.value += 1
                return function(*args, **kwargs)

            return call

        for name in CALLS:
            setattr(os, name, note(getattr(os, name)))
        write()

    process = in_process(count)
    process.join()
    assert process.exitcode == 0
    return counted.value
