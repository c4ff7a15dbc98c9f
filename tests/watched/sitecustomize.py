"""Makes every Python process of a sweep write down what it does: put this folder into PYTHONPATH.

Each line of the file $CELLRAY_WATCH has the time, the host, the process, a word and what it is about, with tabs
between: `begin` label/seed when a trial is about to be trained, `step` label/seed/n for each training step of it,
`write` with the path of each file that came into the ledger, and `decode` with the folder that a dataset is decoded
into. A line is one write, so lines of several processes don't mix.
"""

import os
import socket
import sys
import time
from importlib.abc import MetaPathFinder
from importlib.util import find_spec


def _say(word, what):
    line = f"{time.time():.3f}\t{socket.gethostname()}\t{os.getpid()}\t{word}\t{what}\n"
    out = os.open(os.environ["CELLRAY_WATCH"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(out, line.encode())
    os.close(out)


def _watch_training(module):
    fitter = module._Fitter
    init, train_step = fitter.__init__, fitter._train_step

    def watched_init(self, trial, *args, **kwargs):
        self.watched = f"{trial.label}/{trial.seed}"
        _say("begin", self.watched)
        init(self, trial, *args, **kwargs)

    def watched_step(self, step, rate, purpose=0):
        if purpose == 0:  # else of the range test
            _say("step", f"{self.watched}/{step}")
        return train_step(self, step, rate, purpose)

    fitter.__init__, fitter._train_step = watched_init, watched_step


def _watch_ledger(module):
    write = module.Ledger.write

    def watched_write(self, path, data):
        write(self, path, data)
        _say("write", path)

    module.Ledger.write = watched_write


def _watch_decoding(module):
    fill = module._fill

    def watched_fill(aside, *args):
        _say("decode", aside)
        return fill(aside, *args)

    module._fill = watched_fill


WATCHED = {
    "cellray.training.fitting": _watch_training,
    "cellray.ledger": _watch_ledger,
    "cellray.data.opening": _watch_decoding,
}


class _Watch(MetaPathFinder):
    """Lets the watched modules be imported as they are, and then wraps what is watched."""

    def find_spec(self, name, path, target=None):
        if name not in WATCHED:
            return None
        wrap = WATCHED.pop(name)  # so that the next line finds the module itself
        spec = find_spec(name)
        load = spec.loader.exec_module

        def load_and_wrap(module):
            load(module)
            wrap(module)

        spec.loader.exec_module = load_and_wrap
        return spec


if "CELLRAY_WATCH" in os.environ:
    sys.meta_path.insert(0, _Watch())
