"""Kill a comparison at random instants, start it again each time, and compare its report with an undisturbed one.

    python robustness/killed_comparison.py --work-dir DIR [--kills 5] [--seed 0] -- PLAN [options of odis-mm compare]

Every other kill is of the command alone, which leaves the training of its stage to notice by itself; the others are of
the whole process group. Exit code 1 if the reports differ in anything but times and memory.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import List


def command(arguments: List[str], work_dir: Path) -> List[str]:
    return [sys.executable, '-m', 'odis_mm', 'compare', *arguments, '--jobs', '1', '--work-dir', str(work_dir)]


def numbers(work_dir: Path) -> dict:
    """The report without what the clock says."""
    content = json.loads((work_dir / 'report.json').read_text())
    del content['costs'], content['hardware']
    content['last'] = {
        start: {key: value for key, value in scalars.items() if 'loss' in key}
        for start, scalars in content['last'].items()
    }
    return content


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', required=True, type=Path)
    parser.add_argument('--kills', type=int, default=5)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('compare', nargs='+', help='a plan, and options of odis-mm compare')
    args = parser.parse_args()
    whole, broken = args.work_dir / 'whole', args.work_dir / 'broken'
    args.work_dir.mkdir(parents=True, exist_ok=True)
    with open(args.work_dir / 'log', 'a') as log:
        begin = time.monotonic()
        subprocess.run(command(args.compare, whole), check=True, stdout=log, stderr=log)
        seconds = time.monotonic() - begin
        print(f'undisturbed: {seconds:.0f} s', flush=True)
        rng = random.Random(args.seed)
        for kill in range(args.kills):
            process = subprocess.Popen(command(args.compare, broken), stdout=log, stderr=log, start_new_session=True)
            wait = rng.uniform(0.05, 0.45) * seconds
            try:
                process.wait(wait)
            except subprocess.TimeoutExpired:
                if kill % 2:
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()
                process.wait()
                print(f'killed after {wait:.0f} s', flush=True)
            else:
                print(f'ended with code {process.returncode} before kill {kill + 1}: too short a plan')
                return 1
        subprocess.run(command(args.compare, broken), check=True, stdout=log, stderr=log)
    expected, found = numbers(whole), numbers(broken)
    differ = [key for key in expected if expected[key] != found.get(key)]
    print(f'{args.kills} kills; ' + (f'the reports differ in {", ".join(differ)}' if differ else 'the same report'))
    return 1 if differ else 0


if __name__ == '__main__':
    sys.exit(main())
