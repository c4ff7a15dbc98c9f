"""How near `cellray plan` comes to the time that a sweep then takes.

    python benchmarks/forecast.py [STUDY.yaml] [--cache DIR]

The study (default: the quickstart) is planned and swept by the commands, in a fresh storage, one after the other; the
probes are made anew unless a cache is given. A forecast holds for a machine that does nothing else, so the share of the
processors that others took during the sweep stands beside the ratio. Exit code 1 if the real time is off by more than
25 %.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gauge import gauge

BAR = 0.25
QUICKSTART = Path(__file__).resolve().parents[1] / "search_spaces" / "quickstart.yaml"


def run(*words: str) -> tuple[str, float]:
    """What a command prints, and the seconds it takes."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "cellray", *words], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout, time.monotonic() - started


def processor_seconds() -> float:
    """Seconds that all processors of the machine have worked since it started."""
    user, nice, system, _idle, _wait, irq, softirq = (
        int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def describe(plan: dict[str, Any]) -> str:
    """The forecast's parts in a line for each kind of trial."""
    kinds = [
        f"  {kind['loss']}: {kind['n_todo']} trials, {1000 * kind['step_s']:.0f} ms a step, {kind['training_s']:.1f} s "
        f"of training, {kind['judging_s']:.1f} s of judging, {kind['peak_mb']:.0f} MB ({kind['source']})"
        for kind in plan["kinds"]
    ]
    return "\n".join([f"forecast: {plan['n_todo']} trials, {plan['concurrent']} at once:", *kinds])


def main() -> int:
    """Plan, sweep and compare; 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description="How near the forecast of a sweep's time is.")
    parser.add_argument("study", nargs="?", default=str(QUICKSTART))
    parser.add_argument("--cache", help="folder with decoded images and earlier probes; default: a fresh one")
    given = parser.parse_args()
    print(gauge())
    with tempfile.TemporaryDirectory(prefix="cellray-benchmark-") as folder:
        os.environ["CELLRAY_CACHE"] = given.cache or f"{folder}/cache"
        storage = ("--storage", f"{folder}/studies")
        text, planned_s = run("plan", given.study, *storage, "--json")
        plan = json.loads(text)
        print(describe(plan))
        before = processor_seconds()
        text, real_s = run("sweep", given.study, *storage, "--json")
        busy = (processor_seconds() - before) / real_s / (os.cpu_count() or 1)
        outcomes = json.loads(text)["outcomes"]
        records = [json.loads(path.read_text()) for path in Path(folder).glob("studies/*/trials/*/trial.json")]
    own = [record["seconds"]["training"] + record["seconds"]["evaluation"] for record in records]
    print(
        f"real: {outcomes}; a trial {sum(own) / len(own):.1f} s without its range test (forecast with it "
        f"{plan['trial_s']:.1f} s), peak {max(record['peak_memory_mb'] for record in records):.0f} MB "
        f"(forecast {plan['peak_mb']:.0f})"
    )
    ratio = real_s / plan["total_s"]
    print(f"processors were busy for {busy:.0%} of the sweep, with it and all else")
    print(
        f"planned in {planned_s:.0f} s: {plan['total_s']:.0f} s; real {real_s:.0f} s; ratio {ratio:.2f} (bar 1 ± {BAR})"
    )
    return 0 if abs(ratio - 1) <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
