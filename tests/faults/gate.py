"""The binary under test, what it holds and says, and the two who talk through it."""

import base64
import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time

DEADLINE = 40
KEY = "alice-secret-0123456789"
ROOM = 8
WS_KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = base64.b64encode(hashlib.sha1((WS_KEY + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()
SWITCHING = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
).encode()
# What an allocator keeps of what was given back to it.
KEPT = 12 << 20
GAUGES = ("connections_open", "tunnels_open", "forwards_open", "key_tunnels_open")


def eventually(what, holds, deadline=DEADLINE):
    """Waits until there is something true, and hands it out."""
    end = time.monotonic() + deadline
    while True:
        value = holds()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"did not happen in {deadline} s: {what}")
        time.sleep(0.05)


class Gate:
    """`host` is where it runs; without one it is this machine. `enter` is done by the process before it is the gate."""

    def __init__(self, yaml, host=None, env=None, log=None, enter=None):
        self.host = host
        self.directory = tempfile.TemporaryDirectory(prefix="wsbouncer-faults-")
        self.file = os.path.join(self.directory.name, "wsbouncer.yaml")
        self.write(yaml)
        self.log_file = log or os.path.join(self.directory.name, "log")
        self.process = subprocess.Popen(
            [os.environ["WSBOUNCER"], "serve", "--log-format", "json", "--config", self.file],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=open(self.log_file, "ab"),
            env={**os.environ, **(env or {})}, preexec_fn=host.enter if host else enter,
        )
        self.admin = None
        line = eventually("it listens", self.listening)
        self.port = int(line["listen"].rsplit(":", 1)[1])
        self.admin = int(line["admin"].rsplit(":", 1)[1])

    def listening(self):
        assert self.process.poll() is None, f"it has ended: {open(self.log_file).read()}"
        return next((line for line in self.lines("listening")), None)

    def write(self, yaml):
        with open(self.file + ".new", "w") as file:
            file.write(yaml)
        os.rename(self.file + ".new", self.file)

    # ---- what it says

    def lines(self, message, **fields):
        found = []
        with open(self.log_file, errors="replace") as file:
            for text in file.read().split("\n"):
                try:
                    line = json.loads(text)
                except ValueError:
                    continue
                if line.get("message") == message and all(line.get(name) == value for name, value in fields.items()):
                    found.append(line)
        return found

    def line(self, message, deadline=DEADLINE, **fields):
        return eventually(f"{message} {fields}", lambda: self.lines(message, **fields), deadline)[0]

    def connect(self, port):
        if self.host:
            return self.host.connect("127.0.0.1", port)
        return socket.create_connection(("127.0.0.1", port), timeout=20)

    def ask_admin(self, path, method="GET"):
        with self.connect(self.admin) as wire:
            head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            wire.sendall(head.encode())
            answer = b""
            while more := wire.recv(65536):
                answer += more
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split(b" ")[1]), body.decode()

    def metric(self, name, **labels):
        total = 0.0
        for line in self.ask_admin("/metrics")[1].split("\n"):
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == f"wsbouncer_{name}":
                if all(f'{label}="{text}"' in series for label, text in labels.items()):
                    total += float(value)
        return total

    # ---- what it holds

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def resident(self):
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    def processor_time(self):
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def is_empty(self):
        for gauge in GAUGES:
            eventually(f"{gauge} is 0", lambda: self.metric(gauge) == 0)

    def has_room(self, dial):
        tunnels = [Client(dial()).open() for _ in range(ROOM)]
        status, body = Client(dial()).ask()
        assert (status, body.get("reason")) == (503, "at_capacity"), (status, body)
        for tunnel in tunnels:
            tunnel.close()

    def base_line(self, dial):
        """`dial` connects to it."""
        self.has_room(dial)
        self.is_empty()
        return (self.descriptors(), self.resident())

    def returns_to(self, base, dial):
        self.is_empty()
        self.has_room(dial)
        self.is_empty()
        eventually("its descriptors are closed", lambda: self.descriptors() <= base[0])
        eventually("its memory is given back", lambda: self.resident() <= base[1] + KEPT)
        assert "panicked" not in open(self.log_file, errors="replace").read()

    # ---- its life

    def signal(self, number):
        self.process.send_signal(number)

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.directory.cleanup()


def frame(opcode, payload, mask=b""):
    head = bytes([0x80 | opcode])
    marked = 0x80 if mask else 0
    if len(payload) < 126:
        head += bytes([marked | len(payload)])
    elif len(payload) < 65536:
        head += struct.pack("!BH", marked | 126, len(payload))
    else:
        head += struct.pack("!BQ", marked | 127, len(payload))
    if mask:
        key = int.from_bytes((mask * (len(payload) // 4 + 1))[: len(payload)], "big")
        payload = (int.from_bytes(payload, "big") ^ key).to_bytes(len(payload), "big")
    return head + mask + payload


class Client:
    def __init__(self, wire):
        self.wire = wire
        self.ahead = b""

    def head(self, path, more=""):
        return (
            f"GET {path} HTTP/1.1\r\nHost: gate.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {WS_KEY}\r\nX-Api-Key: {KEY}\r\n{more}\r\n"
        ).encode()

    def read_head(self):
        while b"\r\n\r\n" not in self.ahead:
            more = self.wire.recv(65536)
            assert more, f"ended after {self.ahead!r}"
            self.ahead += more
        head, _, self.ahead = self.ahead.partition(b"\r\n\r\n")
        return int(head.split(b" ")[1]), head

    def ask(self, path="/ws", more=""):
        """A request that is refused."""
        self.wire.sendall(self.head(path, more))
        status, _ = self.read_head()
        body = self.read_to_close() if status != 101 else b"{}"
        self.close()
        return status, json.loads(body or b"{}")

    def open(self, path="/ws", more=""):
        self.wire.sendall(self.head(path, more))
        status, head = self.read_head()
        assert status == 101, (head, self.read_to_close())
        return self

    def send(self, payload, opcode=2):
        self.wire.sendall(frame(opcode, payload, b"\x11\x22\x33\x44"))

    def read(self, count):
        while len(self.ahead) < count:
            more = self.wire.recv(65536)
            assert more, f"ended after {len(self.ahead)} of {count} bytes"
            self.ahead += more
        bytes_, self.ahead = self.ahead[:count], self.ahead[count:]
        return bytes_

    def echoes(self, payload=b"hello"):
        """A service that sends back bytes sends back a masked frame."""
        sent = frame(2, payload, b"\x11\x22\x33\x44")
        self.wire.sendall(sent)
        assert self.read(len(sent)) == sent

    def read_to_close(self):
        rest, self.ahead = self.ahead, b""
        try:
            while more := self.wire.recv(65536):
                rest += more
        except ConnectionResetError:
            pass
        return rest

    def close(self):
        self.wire.close()

    def reset(self):
        self.wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.wire.close()


class Service:
    """Answers every handshake, and then does as the path says."""

    def __init__(self, listener):
        self.listener = listener
        self.address = listener.getsockname()
        self.open = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                wire, _ = self.listener.accept()
            except OSError:
                return
            self.open.append(wire)
            threading.Thread(target=self.serve, args=(wire,), daemon=True).start()

    def serve(self, wire):
        try:
            head = b""
            while b"\r\n\r\n" not in head:
                more = wire.recv(65536)
                if not more:
                    return
                head += more
            path = head.split(b" ")[1].decode()
            if path == "/mute":
                while wire.recv(65536):
                    pass
                return
            wire.sendall(SWITCHING)
            if path == "/push":
                while True:
                    wire.sendall(frame(2, b"p" * 1000))
                    time.sleep(0.02)
            if path == "/flood":
                while True:
                    wire.sendall(frame(2, b"p" * 60000))
            while more := wire.recv(65536):
                wire.sendall(more)
        except OSError:
            pass
        finally:
            wire.close()
