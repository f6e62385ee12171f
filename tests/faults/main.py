"""Faults that want root: two hosts that lose sight of each other, a full disk, no descriptors, clocks that jump.

Prints a line for each, and fails if one of them fails. What this machine cannot do is skipped, with the reason.
"""

import contextlib
import hashlib
import json
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback

from gate import DEADLINE, KEY, ROOM, SWITCHING, Client, Gate, Service, eventually, frame
from net import Host, Unavailable, Wire

CLIENT, GATE_OUT, GATE_IN, SERVICE = "10.77.1.2", "10.77.1.1", "10.77.2.1", "10.77.2.2"


# ---- two hosts, and the gate between them


class Net:
    def __init__(self, undo):
        def keep(thing, end):
            undo.callback(end)
            return thing

        self.client, self.middle, self.far = (
            (lambda host: keep(host, host.close))(Host(name)) for name in ("client", "gate", "service")
        )
        self.near_wire = Wire("near", (self.client, CLIENT), (self.middle, GATE_OUT), seed=1)
        undo.callback(self.near_wire.close)
        self.far_wire = Wire("far", (self.middle, GATE_IN), (self.far, SERVICE), seed=2)
        undo.callback(self.far_wire.close)
        # A kernel gives up on bytes that nobody acknowledges after 15 tries, which takes a quarter of an hour.
        self.middle.set("net.ipv4.tcp_retries2", 5)
        self.service = Service(self.far.listen(SERVICE, 7000))
        undo.callback(self.service.listener.close)
        self.yaml = f"""
listen: 0.0.0.0:8080
admin: 127.0.0.1:9901
limits: {{ max_connections: {ROOM} }}
timeouts: {{ head: 2s, tcp_keepalive: 1s }}
drain: {{ timeout: 4s, spread: 1s }}
keys: [{{ id: alice, secret: {KEY} }}]
routes:
  - {{ name: stall, path: /flood, upstream: "ws://{SERVICE}:7000", timeouts: {{ idle: 5m, write_stall: 3s }} }}
  - {{ name: main, upstream: "ws://{SERVICE}:7000", timeouts: {{ connect: 1s, handshake: 3s }} }}
"""
        self.gate = Gate(self.yaml, host=self.middle)
        undo.callback(lambda: self.gate.end())
        self.base = self.gate.base_line(self.dial)

    def dial(self):
        return self.client.connect(GATE_OUT, 8080)

    def open(self, path="/ws", count=4):
        """Tunnels, and the ids of their lines in the log."""
        ids = [f"{path[1:]}-{time.monotonic_ns()}-{n}" for n in range(count)]
        return [Client(self.dial()).open(path, f"X-Request-Id: {id}\r\n") for id in ids], ids

    def closed(self, ids, *causes):
        for id in ids:
            line = self.gate.line("tunnel closed", id=id)
            assert line["cause"] in causes, line
            assert len(self.gate.lines("tunnel closed", id=id)) == 1

    def is_open(self, ids):
        assert not any(self.gate.lines("tunnel closed", id=id) for id in ids)

    def heal(self):
        self.near_wire.heal()
        self.far_wire.heal()


def delay_and_loss_change_no_byte(net):
    net.near_wire.delay, net.near_wire.loss = 0.03, 0.02
    net.far_wire.delay, net.far_wire.loss = 0.01, 0.02
    tunnels, ids = net.open(count=6)
    failed = []

    def talk(client, seed):
        try:
            dice = random.Random(seed)
            frames = [frame(2, dice.randbytes(dice.choice((1, 125, 126, 1400, 20000))), b"mask") for _ in range(60)]
            sent = b"".join(frames)
            writer = threading.Thread(target=client.wire.sendall, args=(sent,))
            writer.start()
            got = client.read(len(sent))
            writer.join()
            assert hashlib.sha256(got).digest() == hashlib.sha256(sent).digest()
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    for client in tunnels:
        client.wire.settimeout(120)
    threads = [threading.Thread(target=talk, args=(client, seed)) for seed, client in enumerate(tunnels)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed
    assert net.near_wire.lost > 0 and net.far_wire.lost > 0, "nothing was lost on the way"
    net.is_open(ids)
    for client in tunnels:
        client.close()
    net.closed(ids, "client")


def a_partition_that_heals_costs_nothing(net):
    for wire in (net.near_wire, net.far_wire):
        tunnels, ids = net.open()
        sent = frame(2, random.Random(5).randbytes(100_000), b"mask")
        for client in tunnels:
            client.wire.sendall(sent[:5000])
        wire.cut()
        writers = [threading.Thread(target=client.wire.sendall, args=(sent[5000:],)) for client in tunnels]
        for writer in writers:
            writer.start()
        time.sleep(2)
        wire.heal()
        for client, writer in zip(tunnels, writers):
            assert client.read(len(sent)) == sent
            writer.join()
        net.is_open(ids)
        # Whoever comes after it is served as well.
        more, more_ids = net.open(count=2)
        for client in tunnels + more:
            client.echoes()
            client.close()
        net.closed(ids + more_ids, "client")


def a_silent_client_that_vanishes_is_missed(net):
    tunnels, ids = net.open()
    for client in tunnels:
        client.echoes()
    net.near_wire.cut()
    net.closed(ids, "client_lost")
    assert net.gate.metric("tunnels_closed_total", cause="client_lost") >= len(ids)


def a_client_that_vanishes_while_it_is_sent_to_is_missed(net):
    tunnels, ids = net.open("/push")
    for client in tunnels:
        client.read(1000)
    net.near_wire.cut()
    net.closed(ids, "client_lost")


def a_client_that_vanishes_behind_much_is_missed(net):
    """The kernel tries again for a quarter of an hour; the gate must not."""
    net.middle.set("net.ipv4.tcp_retries2", 15)
    try:
        tunnels, ids = net.open("/flood")
        for client in tunnels:
            client.read(1000)
        net.near_wire.cut()
        net.closed(ids, "write_stall")
    finally:
        net.middle.set("net.ipv4.tcp_retries2", 5)


def a_client_that_comes_back_as_a_stranger_is_missed(net):
    """It has lost its memory, as a machine that was restarted: what is sent to it is answered with a reset."""
    tunnels, ids = net.open("/push")
    for client in tunnels:
        client.read(1000)
    net.near_wire.cut()
    for client in tunnels:
        client.reset()
    time.sleep(0.5)
    net.near_wire.heal()
    net.closed(ids, "client_lost")


def a_client_that_vanishes_within_its_handshake_is_forgotten(net):
    halves = [net.dial() for _ in range(2)]
    for half in halves:
        half.sendall(b"GET /ws HTTP/1.1\r\nHost: gate")
    mute = [net.dial() for _ in range(2)]
    for wire in mute:
        wire.sendall(Client(wire).head("/mute", "X-Request-Id: vanished\r\n"))
    eventually("all have arrived", lambda: net.gate.metric("connections_open") == 4)
    eventually("the service was asked", lambda: net.gate.metric("key_tunnels_open") >= 0)
    net.near_wire.cut()
    net.gate.line("refused", id="vanished", reason="upstream_timeout")
    eventually("nobody is there", lambda: net.gate.metric("connections_open") == 0)


def a_service_that_vanishes_is_told_of(net):
    tunnels, ids = net.open()
    net.far_wire.cut()
    for client in tunnels:
        client.wire.settimeout(DEADLINE)
        rest = client.read_to_close()
        assert rest == frame(8, (1014).to_bytes(2, "big") + b"upstream_lost"), rest
    net.closed(ids, "upstream_lost")
    assert net.gate.metric("tunnels_closed_total", cause="upstream_lost") >= len(ids)


def a_service_that_vanishes_while_it_is_sent_to_is_told_of(net):
    tunnels, ids = net.open()
    net.far_wire.cut()
    for client in tunnels:
        client.send(b"into the dark")
    for client in tunnels:
        client.wire.settimeout(DEADLINE)
        assert b"upstream_lost" in client.read_to_close()
    net.closed(ids, "upstream_lost")


def a_service_out_of_sight_is_not_waited_for(net):
    net.far_wire.cut()
    for _ in range(2):
        status, body = Client(net.dial()).ask()
        assert (status, body["reason"]) == (504, "upstream_timeout"), body
    net.far_wire.heal()
    with contextlib.closing(Client(net.dial()).open()) as client:
        client.echoes()


def a_drain_does_not_wait_for_who_has_vanished(net):
    tunnels, ids = net.open("/push")
    net.near_wire.cut()
    net.gate.signal(signal.SIGTERM)
    assert net.gate.process.wait(DEADLINE) == 0
    net.closed(ids, "drain", "shutdown", "client_lost")
    net.heal()
    net.gate.end()
    # The next one takes its place, and those who have not heard of it learn of it now.
    net.gate = Gate(net.yaml, host=net.middle)
    for client in tunnels:
        client.read_to_close()
        client.close()
    net.base = net.gate.base_line(net.dial)


# ---- this machine


@contextlib.contextmanager
def at_home(more="", **how):
    """A gate and a service without a network between them."""
    listener = socket.create_server(("127.0.0.1", 0))
    service = Service(listener)
    port = listener.getsockname()[1]
    yaml = f"""
listen: 127.0.0.1:0
admin: 127.0.0.1:0
limits: {{ max_connections: {ROOM} }}
timeouts: {{ head: 2s }}
{more.replace("UPSTREAM", f'"ws://127.0.0.1:{port}"')}
"""
    gate = Gate(yaml, **how)
    gate.service = service
    gate.dial = lambda: gate.connect(gate.port)
    try:
        yield gate
    finally:
        gate.end()
        listener.close()


PLAIN = f"keys: [{{ id: alice, secret: {KEY} }}]\nroutes: [{{ upstream: UPSTREAM, timeouts: {{ handshake: 1s }} }}]"


def no_room_for_the_log(_):
    with contextlib.ExitStack() as undo:
        disk = undo.enter_context(tempfile.TemporaryDirectory(prefix="wsbouncer-disk-"))
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True, text=True)
        if mounted.returncode != 0:
            raise Unavailable(f"cannot mount a small disk: {mounted.stderr.strip()}")
        undo.callback(lambda: subprocess.run(["umount", disk], check=True))
        filler = os.path.join(disk, "filler")
        with open(filler, "wb") as file:
            file.write(b"x" * 40_000)
        gate = undo.enter_context(at_home(PLAIN, log=os.path.join(disk, "log")))
        base = gate.base_line(gate.dial)

        def many():
            for _ in range(100):
                with contextlib.closing(Client(gate.dial()).open()) as client:
                    client.echoes()
            return gate.metric("log_lines_lost_total") > 0

        eventually("the disk is full", many)
        # A bad file and a good one, while nothing can be said of it.
        yaml = open(gate.file).read()
        gate.write("routes: [\n")
        eventually("the file is bad", lambda: gate.metric("config_last_reload_success") == 0)
        gate.write(yaml)
        eventually("the file is good", lambda: gate.metric("config_last_reload_success") == 1)
        before = gate.processor_time()
        time.sleep(1)
        used = gate.processor_time() - before
        assert used < 0.3, f"{used} s of the processor in a second of nothing to do"
        os.remove(filler)
        eventually("it says how many lines are missing", lambda: many() and gate.lines("lines of the log were lost"))
        said = gate.lines("lines of the log were lost")
        assert sum(line["lines"] for line in said) <= gate.metric("log_lines_lost_total")
        with open(gate.log_file, errors="replace") as file:
            torn = [line for line in file.read().split("\n")[:-1] if not is_json(line)]
        assert len(torn) <= 3, f"lines run into each other: {torn}"
        gate.returns_to(base, gate.dial)


def is_json(line):
    try:
        json.loads(line)
        return True
    except ValueError:
        return False


def no_descriptors(_):
    """64 of them and 200 clients; then, while it serves, none at all."""
    with at_home(PLAIN) as gate:
        base = gate.base_line(gate.dial)
        pid = gate.process.pid
        normal = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        tunnel = Client(gate.dial()).open()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (4, normal[1]))
        waiting = [gate.dial() for _ in range(200)]
        before = gate.processor_time()
        time.sleep(2)
        used = gate.processor_time() - before
        assert used < 1, f"{used} s of the processor in 2 s of waiting for descriptors"
        tunnel.echoes()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (64, normal[1]))
        for wire in waiting[:100]:
            wire.sendall(Client(wire).head("/ws"))
        eventually("some have a tunnel, within what there is", lambda: gate.metric("tunnels_open") > 1)
        assert gate.descriptors() <= 64
        assert gate.metric("accept_errors_total") > 0
        tunnel.echoes()
        for wire in waiting:
            wire.close()
        tunnel.close()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, normal)
        gate.returns_to(base, gate.dial)


def too_few_descriptors_from_the_start(_):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = f"--nofile=64:64"
    wrapper = tempfile.NamedTemporaryFile("w", suffix=".sh", delete=False)
    with wrapper:
        wrapper.write(f'#!/bin/sh\nexec prlimit {limit} "{os.environ["WSBOUNCER"]}" "$@"\n')
    os.chmod(wrapper.name, 0o755)
    real = os.environ["WSBOUNCER"]
    os.environ["WSBOUNCER"] = wrapper.name
    try:
        with at_home(PLAIN) as gate:
            base = gate.base_line(gate.dial)
            wires = [gate.dial() for _ in range(200)]
            for wire in wires:
                wire.sendall(Client(wire).head("/ws"))
            eventually("as many as fit have a tunnel", lambda: gate.metric("tunnels_open") == ROOM)
            assert gate.descriptors() <= 64
            for wire in wires:
                wire.close()
            gate.returns_to(base, gate.dial)
    finally:
        os.environ["WSBOUNCER"] = real
        os.unlink(wrapper.name)
    assert (soft, hard) == resource.getrlimit(resource.RLIMIT_NOFILE)


@contextlib.contextmanager
def group_with_memory(limit):
    """A control group with so much of it, and what a process does to be in it."""
    for root, file in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = os.path.join(root, f"wsbouncer-faults-{os.getpid()}")
        try:
            os.mkdir(group)
        except OSError:
            continue
        try:
            with open(os.path.join(group, file), "w") as limits:
                limits.write(str(limit))
        except OSError:
            os.rmdir(group)
            continue

        def enter():
            with open(os.path.join(group, "cgroup.procs"), "w") as processes:
                processes.write(str(os.getpid()))

        try:
            yield enter
        finally:
            eventually("nobody is in the group", lambda: not open(os.path.join(group, "cgroup.procs")).read())
            os.rmdir(group)
        return
    raise Unavailable("cannot make a control group for memory")


def push_until_stuck(wires):
    """Sends to all of them until none has taken anything for a while."""
    chunk, last = b"x" * 65536, time.monotonic()
    for wire in wires:
        wire.setblocking(False)
    while time.monotonic() < last + 1:
        for wire in wires:
            with contextlib.suppress(BlockingIOError):
                wire.send(chunk)
                last = time.monotonic()
        time.sleep(0.01)


def memory_for_so_many(_):
    """As many tunnels as it finds room for in little memory, and all of them full: it goes on, and refuses one more."""
    endless_from_service = struct.pack("!BBQ", 0x82, 127, 1 << 40)
    endless_from_client = struct.pack("!BBQ4x", 0x82, 255, 1 << 40)

    def with_small_buffers(wire):
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            wire.setsockopt(socket.SOL_SOCKET, option, 4096)
        return wire

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 5000:
        raise Unavailable("there are too few descriptors for memory to be what runs out")
    with contextlib.ExitStack() as undo:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        undo.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        enter = undo.enter_context(group_with_memory(40 << 20))
        service = undo.enter_context(with_small_buffers(socket.create_server(("127.0.0.1", 0), backlog=100)))
        gate = Gate(
            "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\n"
            f"keys: [{{ id: alice, secret: {KEY} }}]\nupstream: ws://127.0.0.1:{service.getsockname()[1]}\n",
            enter=enter,
        )
        undo.callback(gate.end)
        said = gate.line("listening")
        assert said["room_by"] == "memory", said
        most = said["max_connections"]
        assert 64 < most <= said["room"] < 1500, said

        def client(at):
            # No address may have all of them.
            wire = undo.enter_context(with_small_buffers(socket.socket()))
            wire.bind((f"127.0.0.{2 + at % 2}", 0))
            wire.settimeout(20)
            wire.connect(("127.0.0.1", gate.port))
            return Client(wire)

        def tunnel(at):
            down = client(at)
            down.wire.sendall(down.head("/") + endless_from_client)
            up = undo.enter_context(service.accept()[0])
            assert b"\r\n\r\n" in up.recv(65536)
            up.sendall(SWITCHING + endless_from_service)
            assert down.read_head()[0] == 101
            return [down.wire, up]

        descriptors = gate.descriptors()
        for _ in range(2):
            ends = [end for at in range(most) for end in tunnel(at)]
            status, body = client(most).ask("/")
            assert (status, body.get("reason")) == (503, "at_capacity"), (status, body)
            push_until_stuck(ends)
            assert gate.process.poll() is None, "it was killed"
            kept = gate.metric("buffered_bytes")
            assert 1 << 20 < kept < 40 << 20, kept
            for end in ends:
                end.close()
            gate.is_empty()
            assert gate.metric("buffered_bytes") == 0
            eventually("its descriptors are closed", lambda: gate.descriptors() <= descriptors)
        print(f"         {most} tunnels kept {int(kept) >> 10} KiB")
        # Who asks for more in so many words gets it, and is warned.
        with open(gate.file) as file:
            yaml = file.read()
        gate.write(f"{yaml}limits: {{ max_connections: {2 * most} }}\n")
        gate.line("limits.max_connections allows more than there is memory for if all of them need it", sure=said["room"])
        assert gate.metric("connections_limit") > said["room"]


# ---- the clock


class Clock:
    """The wall clock of a process, set by a library that is loaded before the others."""

    def __init__(self, directory):
        library, self.file = os.path.join(directory, "clock.so"), os.path.join(directory, "clock")
        source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "clock.c")
        try:
            subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
        except FileNotFoundError:
            raise Unavailable("there is no C compiler") from None
        self.set(0)
        self.env = {"LD_PRELOAD": library, "CLOCK_OFFSET": self.file}

    def set(self, seconds):
        # In its place: the process has it mapped.
        with open(self.file, "r+b" if os.path.exists(self.file) else "wb") as file:
            file.write(int(seconds).to_bytes(8, "little", signed=True))


HOUR = 3600


def rfc3339(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def the_clock_jumps(_):
    with contextlib.ExitStack() as undo:
        clock = Clock(undo.enter_context(tempfile.TemporaryDirectory(prefix="wsbouncer-clock-")))
        yaml = f"""
keys:
  - {{ id: alice, secret: {KEY} }}
  - {{ id: bob, secret: bobs-secret-0123456789, expires_at: "{rfc3339(time.time() + HOUR)}" }}
routes:
  - {{ upstream: UPSTREAM, timeouts: {{ handshake: 1s }}, tickets: {{ path: /ticket, ttl: 30s }}, auth: [api_key, ticket] }}
"""
        gate = undo.enter_context(at_home(yaml, env=clock.env))
        base = gate.base_line(gate.dial)
        bob = "X-Api-Key: bobs-secret-0123456789\r\n"

        def as_bob(client, path="/ws"):
            return client.head(path).replace(f"X-Api-Key: {KEY}\r\n".encode(), bob.encode())

        def open_as_bob():
            client = Client(gate.dial())
            client.wire.sendall(as_bob(client))
            return client, client.read_head()[0]

        def jump(to):
            clock.set(to)
            # Everything that is asked for at any time still answers.
            for path in ("/healthz", "/readyz", "/metrics", "/connections", "/keys", "/status"):
                assert gate.ask_admin(path)[0] == 200, path
            # Time limits do not go by this clock.
            start = time.monotonic()
            status, body = Client(gate.dial()).ask("/mute")
            assert (status, body["reason"]) == (504, "upstream_timeout"), body
            assert time.monotonic() - start < 15
            # A change is seen, whatever the dates of the files are like.
            before = len(gate.lines("reloaded"))
            with open(gate.file) as file:
                text = file.read()
            gate.write(text + "#\n")
            eventually("the change is seen", lambda: len(gate.lines("reloaded")) > before)

        alices = Client(gate.dial()).open()
        bobs, status = open_as_bob()
        assert status == 101
        bobs.echoes()
        # Forward: who has no right any more is closed at the next look at the clock, which is within half a minute.
        clock.set(2 * HOUR)
        bobs.wire.settimeout(2 * DEADLINE)
        bobs.read_to_close()
        line = gate.line("tunnel closed", cause="expired", key="bob")
        assert line["timestamp"][:13] == rfc3339(time.time() + 2 * HOUR)[:13], line
        jump(2 * HOUR)
        client, status = open_as_bob()
        client.close()
        assert status == 401, status
        alices.echoes()
        assert not gate.lines("tunnel closed", key="alice", cause="expired")
        jump(0)
        bobs, status = open_as_bob()
        assert status == 101
        bobs.echoes()
        # Back by a day: nobody loses anything.
        jump(-24 * HOUR)
        bobs.echoes()
        alices.echoes()
        # To the first minute of 1970, as on a machine without a clock, and far away.
        for far in (60 - time.time(), 1000 * 365 * 24 * HOUR):
            jump(far)
            alices.echoes()
        jump(0)
        bobs.read_to_close()
        # Tickets: their time is the clock's.
        for shift, opens in ((0, 101), (-HOUR, 101), (HOUR, 401)):
            clock.set(0)
            ticket = issue(gate)
            clock.set(shift)
            wire = Client(gate.dial())
            head = wire.head(f"/ws?ticket={ticket}").replace(f"X-Api-Key: {KEY}\r\n".encode(), b"")
            wire.wire.sendall(head)
            status, _ = wire.read_head()
            wire.close()
            assert status == opens, (shift, status)
        clock.set(0)
        assert all(is_json(line) for line in open(gate.log_file).read().split("\n")[:-1])
        alices.close()
        gate.returns_to(base, gate.dial)


def issue(gate):
    with contextlib.closing(gate.dial()) as wire:
        wire.sendall(f"POST /ticket HTTP/1.1\r\nHost: a\r\nX-Api-Key: {KEY}\r\nContent-Length: 0\r\n\r\n".encode())
        client = Client(wire)
        status, head = client.read_head()
        assert status == 200, head
        return json.loads(client.read_to_close())["ticket"]


# ---- all of them

NETWORK = [
    delay_and_loss_change_no_byte,
    a_partition_that_heals_costs_nothing,
    a_silent_client_that_vanishes_is_missed,
    a_client_that_vanishes_while_it_is_sent_to_is_missed,
    a_client_that_vanishes_behind_much_is_missed,
    a_client_that_comes_back_as_a_stranger_is_missed,
    a_client_that_vanishes_within_its_handshake_is_forgotten,
    a_service_that_vanishes_is_told_of,
    a_service_that_vanishes_while_it_is_sent_to_is_told_of,
    a_service_out_of_sight_is_not_waited_for,
    a_drain_does_not_wait_for_who_has_vanished,
]
HOME = [no_room_for_the_log, no_descriptors, too_few_descriptors_from_the_start, memory_for_so_many, the_clock_jumps]


def attempt(fault, net=None):
    """Says how it went. False: badly."""
    name, start = fault.__name__.replace("_", " "), time.monotonic()
    try:
        fault(net)
        if net:
            net.heal()
            net.gate.returns_to(net.base, net.dial)
    except Unavailable as why:
        print(f"skipped  {name}: {why}", flush=True)
        return True
    except BaseException as error:  # noqa: BLE001
        print(f"FAILED   {name}: {type(error).__name__}: {error}", flush=True)
        traceback.print_exc(file=sys.stdout)
        if net:
            print(open(net.gate.log_file, errors="replace").read()[-6000:])
        if not isinstance(error, Exception):
            raise
        return False
    finally:
        if net:
            net.heal()
    print(f"ok       {name} ({time.monotonic() - start:.1f} s)", flush=True)
    return True


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    wanted = sys.argv[1:]
    chosen = lambda faults: [fault for fault in faults if not wanted or fault.__name__ in wanted]
    all_well = True
    for fault in chosen(HOME):
        all_well &= attempt(fault)
    if chosen(NETWORK):
        with contextlib.ExitStack() as undo:
            try:
                net = Net(undo)
            except Unavailable as why:
                print(f"skipped  everything between two hosts: {why}", flush=True)
            else:
                for fault in chosen(NETWORK):
                    all_well &= attempt(fault, net)
    sys.exit(0 if all_well else 1)


main()
