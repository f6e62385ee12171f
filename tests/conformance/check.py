"""Runs the Autobahn cases direct and on each route of wsbouncer, and compares what became of every single one."""

import argparse
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

HERE = Path(__file__).parent
# What the kinds of traffic that are followed would be, each on a route of its own. The bounds are beyond what any case
# sends, so that none is reached: what is tried here is whether looking changes anything.
LIMITS = """
    limits:
      max_message_bytes: 64MiB
      messages_per_second: 1000000
      bytes_per_second: 4GiB
      on_excess: delay"""
# Some cases are silent for a second or two: those get Pings.
PINGS = """
    timeouts:
      ping_interval: 500ms
      ping_timeout: 10s"""
STRICT = """
    strict_frames: true"""
ROUTES = {
    "plain": "",
    "pings": PINGS,
    "limits": LIMITS,
    "strict": STRICT,
    "all": PINGS + LIMITS + STRICT,
}
# What has to be equal: the two verdicts, and what the client was told and sent at the end of the connection.
COMPARED = ("behavior", "behaviorClose", "remoteCloseCode", "localCloseCode", "wasClean", "received")
# The runner's own words for a verdict.
SAID = "result"

# What may differ, and why that is right. All of it is about the case's own bookkeeping or about who is quicker: what
# the client was told at the end has to be the same, but where it says otherwise.

FOLLOWED = ("limits", "strict", "all")
# A good message and a bad frame stand in one write. Where frames are followed the bad one ends the tunnel at once, and
# the echo of the good one may come too late: NON-STRICT, which the cases allow; other good servers get it direct.
ECHO_COMES_LATE = {"3.2", "3.3", "3.4", "4.1.3", "4.1.4", "4.1.5", "4.2.3", "4.2.4", "4.2.5", "5.15"}
PINGED = ("pings", "all")
# The case counts every Ping that it sees as something that it did not expect. Other cases do, too, on a machine that
# is so slow that they fall silent; these are silent by themselves, and have to show it.
PING_IS_COUNTED = {"5.19", "5.20", "6.4.1", "6.4.2"}
# The same, and the runner answers the Ping with a Pong in the middle of a frame that it has begun to send, which spoils
# that frame: whoever looks at it next sees rubbish.
PONG_SPOILS_FRAME = {"6.4.3", "6.4.4"}


def configuration(key, upstream):
    head = f"listen: 127.0.0.1:0\nadmin: off\nkeys:\n  - id: autobahn\n    secret: {key}\nroutes:\n"
    auth = "    auth: [{ api_key: { extract_from: [{ query: key }] } }]"
    routes = [f"  - path: /{name}\n    upstream: ws://127.0.0.1:{upstream}\n{auth}{more}\n" for name, more in ROUTES.items()]
    return head + "".join(routes)


@contextlib.contextmanager
def program(arguments, stream):
    """A program that says on one of its streams where it listens, and ends with the block."""
    process = subprocess.Popen(arguments, text=True, **{stream: subprocess.PIPE})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def keep_reading(stream):
    """A pipe that nobody reads is full some day, and then its writer stands still."""
    threading.Thread(target=lambda: [None for _ in stream], daemon=True).start()


@contextlib.contextmanager
def echo():
    with program(["node", HERE / "echo.js"], "stdout") as process:
        yield int(process.stdout.readline())


@contextlib.contextmanager
def gate(directory, key, upstream):
    path = Path(directory, "wsbouncer.yaml")
    path.write_text(configuration(key, upstream))
    with program([os.environ["WSBOUNCER"], "serve", "--config", path, "--log-format", "json"], "stderr") as process:
        for line in process.stderr:
            event = json.loads(line)
            if event["message"] == "listening":
                keep_reading(process.stderr)
                yield event["listen"]
                return
        raise SystemExit("wsbouncer did not start")


def run(url, chosen, output, at_a_time):
    """Case to what is compared of it. kosoku's exit code says whether all passed, which is not the question."""
    command = [os.environ["KOSOKU"], "--mode", "fuzzingclient", "--parallelism", at_a_time, "--outdir", output, *chosen, url]
    said = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False).stdout
    index = Path(output, "index.json")
    if not index.exists():
        raise SystemExit(f"kosoku has written no report, and said:\n{said}")
    (cases,) = json.loads(index.read_text()).values()
    seen = {}
    for case, entry in cases.items():
        report = json.loads(Path(output, entry["reportfile"]).read_text())
        seen[case] = {field: report[field] for field in (*COMPARED, SAID)}
    return seen


def short(value):
    text = str(value)
    return text if len(text) < 120 else f"{text[:120]}… ({len(text)} characters)"


def differences(direct, through):
    for case in sorted(direct.keys() | through.keys(), key=lambda case: [int(part) for part in case.split(".")]):
        one, other = direct.get(case), through.get(case)
        if one is None or other is None:
            yield case, {"ran": (one is not None, other is not None)}
        elif what := {field: (one[field], other[field]) for field in COMPARED if one[field] != other[field]}:
            yield case, what


def explanation(route, case, direct, through):
    """Why a difference is right, or nothing."""
    differing = {field for field in COMPARED if direct[field] != through[field]}
    if not differing <= {"behavior", "received"}:
        spoilt = case in PONG_SPOILS_FRAME and route in PINGED and any(what == "ping" for what, *_ in through["received"])
        return "the runner's Pong spoils its own frame" if spoilt else None
    if route in PINGED:
        pings = [event for event in through["received"] if event[0] == "ping"]
        rest = [event for event in through["received"] if event[0] != "ping"]
        if pings and rest == direct["received"]:
            return "our Ping counts as unexpected"
        if pings and case in PONG_SPOILS_FRAME:
            return "the runner's Pong spoils its own frame"
    if route in FOLLOWED and case in ECHO_COMES_LATE and through["behavior"] == "NON-STRICT" and not through["received"]:
        return "the echo before the bad frame comes too late"
    return None


def compare(route, direct, through):
    """Prints what differs, and returns how much of it nobody has explained."""
    wrong, found = 0, dict(differences(direct, through))
    for case, what in found.items():
        why = explanation(route, case, direct[case], through[case]) if "ran" not in what else None
        if why:
            print(f"  {case}: {through[case]['behavior']} instead of {direct[case]['behavior']}: {why}")
            continue
        wrong += 1
        for field, (one, other) in what.items():
            print(f"  {case}: {field} is {short(one)} direct, {short(other)} on {route}  <- not explained")
        if "ran" not in what:
            print(f"  {case}: {short(through[case][SAID])}")
    for case in sorted(PING_IS_COUNTED & direct.keys() - found.keys()) if route in PINGED else ():
        wrong += 1
        print(f"  {case}: no Ping has come on {route}")
    return wrong


def summary(cases):
    counts = {}
    for case in cases.values():
        counts[case["behavior"]] = counts.get(case["behavior"], 0) + 1
    return ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--deflate", action="store_true")
    parser.add_argument("--only", action="append", choices=ROUTES)
    parser.add_argument("--case", action="append")
    options = parser.parse_args()
    deflate = ["12.*", "13.*"]
    # The core cases look at the clock, and have the machine for themselves.
    at_a_time = "4" if options.deflate or options.case else "1"
    if options.case:
        chosen = [word for case in options.case for word in ("--include", case)]
    else:
        chosen = [word for group in deflate for word in ("--include" if options.deflate else "--exclude", group)]
    key, wrong = secrets.token_hex(16), 0
    with tempfile.TemporaryDirectory() as directory, echo() as upstream, gate(directory, key, upstream) as listen:
        direct = run(f"ws://127.0.0.1:{upstream}/", chosen, Path(directory, "direct"), at_a_time)
        print(f"direct: {len(direct)} cases: {summary(direct)}", flush=True)
        if not any(case["behavior"] == "OK" for case in direct.values()):
            raise SystemExit("nothing passes direct: that is no measure")
        for route in options.only or ROUTES:
            through = run(f"ws://{listen}/{route}?key={key}", chosen, Path(directory, route), at_a_time)
            print(f"{route}: {len(through)} cases: {summary(through)}", flush=True)
            wrong += compare(route, direct, through)
    print(f"{wrong} differences that nobody has explained" if wrong else "the same verdicts, but for what is explained")
    return 1 if wrong else 0


if __name__ == "__main__":
    # So that what was started ends with this, whatever ends it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
