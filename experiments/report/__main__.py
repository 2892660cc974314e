"""Write the reports of workdirs anew from their rows: python -m experiments.report WORKDIR ..."""

import argparse
import sys

from experiments import console, report

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="folder of the rows of a run")
    try:
        for workdir in parser.parse_args().workdirs:
            console.say(f"Report: {report.write(workdir).page}")
    except (ValueError, OSError) as error:
        console.say(f"error: {error}", file=sys.stderr)
        sys.exit(2)
