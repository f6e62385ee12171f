"""Interleaved rounds: each round, every test, every proxy in turn. Started by tests/bench/run, which see."""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time

from proxies import HERE, KEY, TITLES, WRONG_KEY, Cast, Fault, output_of
from table import Results, page

TESTS = {
    "handshake": ["handshake", "--concurrency", "64"],
    "echo64x32": ["echo", "--connections", "64", "--size", "32"],
    "echo64x1k": ["echo", "--connections", "64", "--size", "1024"],
    "echo1kx125": ["echo", "--connections", "1000", "--size", "125"],
    "down64k": ["stream", "--direction", "down", "--size", "65536", "--connections", "4"],
    "up64k": ["stream", "--direction", "up", "--size", "65536", "--connections", "4"],
    "refusal": ["refusal", "--concurrency", "64"],
    "latency": ["paced", "--connections", "64", "--size", "32"],
    "latency125": ["paced", "--connections", "64", "--size", "125"],
    "idle": ["idle", "--touch", "1024"],
}
BY_DEFAULT = [name for name in TESTS if name != "latency125"]
# What half load is half of.
CALIBRATION = {"latency": "echo64x32", "latency125": "echo64x32"}


def arguments():
    parser = argparse.ArgumentParser(prog="tests/bench/run", description="Measures wsbouncer beside other proxies.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of measuring in each run (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one short round, to see that everything works")
    parser.add_argument("--only", action="append", default=[], metavar="TEST", help=f"one of: {', '.join(TESTS)}; repeatable")
    parser.add_argument("--peers", default="haproxy,nginx,naive",
                        help="of haproxy, nginx, naive, and, fetched when named: haproxy-newer, envoy, caddy (default: %(default)s)")
    parser.add_argument("--peer-logs", action="store_true", help="switch the peers' access logs on, into files")
    parser.add_argument("--wsbouncer", metavar="PATH", help="the binary to measure (default: built from this tree)")
    parser.add_argument("--against", metavar="PATH", help="another wsbouncer binary, in the same rounds")
    parser.add_argument("--results", metavar="FILE", help="where to write the results (default: in the target directory)")
    parser.add_argument("--table", metavar="FILE", help="measure nothing, print the tables of these results")
    parser.add_argument("--build", help=argparse.SUPPRESS)
    return parser.parse_args()


def machine():
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.machine())
    with open("/proc/meminfo") as file:
        memory = int(file.readline().split()[1]) / 2**20
    return f"{model}, {len(os.sched_getaffinity(0))} CPUs, {memory:.0f} GiB, Linux {platform.release()}, {debian()}"


def debian():
    with open("/etc/os-release") as file:
        return next((line.split("=")[1].strip().strip('"') for line in file if line.startswith("PRETTY_NAME")), "")


def source():
    """What this tree is, and what it was built with, unless the binaries come from elsewhere."""
    commit = output_of(["git", "-C", HERE, "describe", "--always", "--dirty"]).strip()
    return f"commit {commit}, {output_of(['rustc', '--version']).strip()}"


def busy_ticks():
    with open("/proc/stat") as file:
        ticks = [int(field) for field in file.readline().split()[1:8]]
    return sum(ticks) - ticks[3] - ticks[4]


def wait_for_quiet(at_most):
    """Until the end of the last run, and whoever else is on the machine, keeps less than half a CPU busy."""
    deadline = time.monotonic() + at_most
    while time.monotonic() < deadline:
        before = busy_ticks()
        time.sleep(0.1)
        if (busy_ticks() - before) / os.sysconf("SC_CLK_TCK") / 0.1 < 0.5:
            return


class Measuring:
    def __init__(self, options, cast, out):
        self.options, self.cast, self.out = options, cast, out
        self.lines, self.failures = [], []
        self.warmup = min(0.5, options.seconds / 3)
        # Not more tunnels than a proxy can have file descriptors for.
        self.idle = 500 if options.quick else min(9500, (cast.files - 500) // 2)

    def write(self, line):
        self.lines.append(line)
        self.out.write(json.dumps(line) + "\n")
        self.out.flush()

    def run(self, names, tests):
        versions = {name: self.cast.version(name) for name in names}
        self.write({"kind": "run", "date": time.strftime("%Y-%m-%d"), "machine": machine(), "versions": versions,
                    "source": source(), "rounds": self.options.rounds, "seconds": self.options.seconds, "connections_idle": self.idle,
                    "peer_logs": self.options.peer_logs, "tests": tests})
        proxies = [self.cast.proxy(name) for name in names]
        try:
            self.cast.server.start()
            for at in range(self.options.rounds):
                # Who comes first in one round is last in the next.
                turn = at % len(proxies)
                self.round(at, proxies[turn:] + proxies[:turn], tests)
        finally:
            for program in [*proxies, self.cast.server]:
                program.stop()

    def round(self, at, proxies, tests):
        for proxy in proxies:
            proxy.start()
        for test in tests:
            if test == "idle":
                continue
            rate = self.half_load(at, proxies, CALIBRATION[test]) if test in CALIBRATION else None
            for proxy in ([None] if rate else []) + proxies:
                self.once(at, test, proxy, rate)
        for proxy in proxies:
            proxy.stop()
        for proxy in proxies if "idle" in tests else []:
            # A fresh process: what an allocator has kept from before would hide what a tunnel needs.
            proxy.start()
            self.once(at, "idle", proxy)
            proxy.stop()

    def half_load(self, at, proxies, test):
        """Half of what the slowest of this round reached when it was not paced."""
        def reached():
            return [row["rate"] for row in self.lines if row.get("test") == test and row.get("round") == at]
        if len(reached()) < len(proxies):
            for proxy in proxies:
                self.once(at, test, proxy)
        if not reached():
            raise Fault(f"no proxy passed {test}: there is no load to take half of")
        return min(reached()) / 2

    def once(self, at, test, proxy, rate=None):
        name, port = (proxy.name, proxy.port) if proxy else ("direct", self.cast.server.port)
        command = [self.cast.wsload, *TESTS[test], "--url", f"ws://127.0.0.1:{port}/", "--label", name,
                   "--header", f"X-Api-Key: {WRONG_KEY if test == 'refusal' else KEY}"]
        if proxy:
            command += ["--proxy-pid", str(proxy.pid)]
        if rate:
            command += ["--rate", f"{rate:.0f}"]
        if test == "idle":
            command += ["--connections", str(self.idle), "--hold", str(min(1.5, self.options.seconds))]
        else:
            command += ["--server-pid", str(self.cast.server.pid), "--seconds", str(self.options.seconds),
                        "--warmup", str(self.warmup)]
        wait_for_quiet(at_most=0 if self.options.quick else 1)
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=self.options.seconds + 90,
                                  preexec_fn=lambda: os.sched_setaffinity(0, self.cast.for_load))
            result = json.loads(done.stdout)
        except (subprocess.TimeoutExpired, json.JSONDecodeError) as error:
            self.failures.append(f"{test} through {name}: {error}")
            return
        self.write({"kind": "result", "test": test, "proxy": name, "round": at, **result})
        lost = result["connections"] - result["ready"] if test not in ("handshake", "refusal") else 0
        if result["errors"] or lost or (test != "idle" and not result["units"]):
            self.failures.append(f"{test} through {name}: {result['errors']} errors {result['error_texts']}, "
                                 f"{lost} connections missing")


def main():
    options = arguments()
    if options.table:
        with open(options.table) as file:
            print(page(Results([json.loads(line) for line in file])))
        return 0
    if options.quick:
        options.rounds, options.seconds = 1, 0.3
    tests = [test for test in (TESTS if options.only else BY_DEFAULT) if test in options.only or not options.only]
    unknown = [test for test in options.only if test not in TESTS]
    peers = [name for name in options.peers.split(",") if name]
    unknown += [name for name in peers if name not in TITLES or name in ("direct", "wsbouncer", "against")]
    if unknown:
        raise Fault(f"nothing here is called {', '.join(unknown)}")
    names = ["wsbouncer", *(["against"] if options.against else []), *peers]

    release = os.path.join(options.build, "release")
    scratch = os.path.join(options.build, "bench")
    binary = os.path.abspath(options.wsbouncer or os.path.join(release, "wsbouncer"))
    against = os.path.abspath(options.against) if options.against else None
    cast = Cast(scratch, os.path.join(release, "wsload"), binary, against, os.path.join(release, "naive"),
                os.path.join(scratch, "fetched"), options.peer_logs)
    results = options.results or os.path.join(scratch, time.strftime("results-%Y%m%d-%H%M%S.jsonl"))
    with open(results, "a") as out:
        measuring = Measuring(options, cast, out)
        measuring.run(names, tests)
    print(page(Results(measuring.lines)))
    print(f"\nresults: {results}", file=sys.stderr)
    for failure in measuring.failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if measuring.failures else 0


if __name__ == "__main__":
    # Whoever ends us ends what we have started: the finally blocks see to it.
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda *_: sys.exit(1))
    try:
        sys.exit(main())
    except Fault as fault:
        sys.exit(f"tests/bench/run: {fault}")
    except KeyboardInterrupt:
        sys.exit(1)
