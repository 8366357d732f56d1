#!/usr/bin/env python3
"""layout.py PROGRAM START RUN... > layout.ld

Writes the linker script that puts the functions which a sidecar runs beside each other: first what it runs once it has
started (START), then what it runs besides under load (RUN). Each is a profile of PROGRAM, a release build, by
    valgrind --tool=callgrind --dump-instr=yes --compress-strings=no --compress-pos=no
To be made anew when the resident memory of an idle sidecar has grown; names that no function has any more do no harm."""

import bisect
import collections
import re
import subprocess
import sys

HEAD = """/* Made by layout.py: functions that a sidecar runs, beside each other, so that the pages it touches are few. */
SECTIONS
{
  .text.run :
  {
"""


def symbols(program):
    lines = subprocess.check_output(["nm", "-n", "-S", "--defined-only", program], text=True)
    rows = (line.split() for line in lines.splitlines())
    return [(int(r[0], 16), int(r[1], 16), r[3]) for r in rows if len(r) == 4 and r[2] in "tTwW"]


def executed(profile, program, found):
    """Which of the functions `found` ran."""
    starts, ours, ran = [at for at, _, _ in found], False, set()
    for line in open(profile):
        if line.startswith("ob="):
            ours = line.strip().endswith("/" + program.rsplit("/")[-1])
        elif ours and line.startswith("0x"):
            place = bisect.bisect(starts, int(line.split()[0], 16)) - 1
            if place >= 0:
                ran.add(place)
    return ran


def pattern(name):
    """What the function is called in every build: without hashes of itself, and of crates."""
    name = re.sub(r"(17h)[0-9a-f]{16}E.*$|\.llvm\.[0-9]+$", r"\1*", name)
    return re.sub(r"(?<=C)s[0-9A-Za-z]+_(?=[0-9])", "s*_", name)


def main(program, *profiles):
    found = symbols(program)
    runs = [executed(profile, program, found) for profile in profiles]
    every = set().union(*runs)
    ran, whole, first = collections.Counter(), collections.Counter(), {}
    for place, (_, size, name) in enumerate(found):
        key = pattern(name)
        whole[key] += size
        if place in every:
            ran[key] += size
            at = min(number for number, run in enumerate(runs) if place in run)
            first[key] = min(first.get(key, at), min(at, 1))
    # Of generic functions there are many of one name: those of which most run go first.
    order = sorted(ran, key=lambda key: (first[key], -ran[key] / max(whole[key], 1), key))
    lines = "".join(f"    *(.text.{key})\n" for key in order)
    sys.stdout.write(f"{HEAD}{lines}  }}\n}}\nINSERT BEFORE .text;\n")


main(*sys.argv[1:])
