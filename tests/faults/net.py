"""Hosts in network namespaces, and wires between them that delay, lose and drop packets.

A wire is two TUN devices with this program between them: it needs no netem in the kernel, drops without a word to either
side, and loses the same packets each time.
"""

import ctypes
import fcntl
import heapq
import os
import random
import select
import socket
import struct
import subprocess
import threading
import time

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)


class Unavailable(Exception):
    """This machine cannot do it."""


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


class Host:
    """A network namespace."""

    def __init__(self, name):
        self.name = f"wsb-{os.getpid()}-{name}"
        try:
            run("ip", "netns", "add", self.name)
        except FileNotFoundError:
            raise Unavailable("there is no ip (iproute2)") from None
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"no network namespaces: {error.stderr.strip()}") from None
        self.ip("link", "set", "lo", "up")

    def ip(self, *arguments):
        run("ip", "-n", self.name, *arguments)

    def enter(self):
        """Moves the calling thread, or the process that is about to be one, to this host."""
        handle = os.open(f"/var/run/netns/{self.name}", os.O_RDONLY)
        try:
            if LIBC.setns(handle, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(handle)

    def do(self, work):
        """What a thread on this host makes of it. Sockets stay where they were opened."""
        result = []

        def there():
            try:
                self.enter()
                result.append((True, work()))
            except BaseException as error:  # noqa: BLE001
                result.append((False, error))

        thread = threading.Thread(target=there)
        thread.start()
        thread.join()
        worked, value = result[0]
        if not worked:
            raise value
        return value

    def set(self, name, value):
        path = "/proc/sys/" + name.replace(".", "/")

        def write():
            with open(path, "w") as file:
                file.write(str(value))

        self.do(write)

    def listen(self, address, port):
        def open_one():
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
            listener.listen(64)
            return listener

        return self.do(open_one)

    def connect(self, address, port, deadline=20):
        return self.do(lambda: socket.create_connection((address, port), timeout=deadline))

    def close(self):
        run("ip", "netns", "del", self.name)


def open_tun(name):
    if not os.path.exists("/dev/net/tun"):
        try:
            os.makedirs("/dev/net", exist_ok=True)
            os.mknod("/dev/net/tun", 0o600 | 0o020000, os.makedev(10, 200))
        except OSError as error:
            raise Unavailable(f"no /dev/net/tun: {error}") from None
    try:
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    except OSError as error:
        raise Unavailable(f"no TUN devices: {error}") from None
    # TUNSETIFF with IFF_TUN | IFF_NO_PI (linux/if_tun.h).
    fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x0001 | 0x1000))
    return tun


class Wire:
    """Two hosts, one address each."""

    def __init__(self, name, one, other, seed=1):
        self.delay, self.loss, self.is_cut = 0.0, 0.0, False
        self.passed, self.lost = 0, 0
        self.dice = random.Random(seed)
        self.ends = []
        for (host, address), (_, peer) in ((one, other), (other, one)):
            self.ends.append(host.do(lambda: open_tun(name)))
            host.ip("addr", "add", address, "peer", peer, "dev", name)
            host.ip("link", "set", name, "up")
        self.is_open = True
        self.thread = threading.Thread(target=self.carry, daemon=True)
        self.thread.start()

    def carry(self):
        waiting, number = [], 0
        while self.is_open:
            patience = max(0.0, min(0.1, waiting[0][0] - time.monotonic())) if waiting else 0.1
            readable, _, _ = select.select(self.ends, [], [], patience)
            now = time.monotonic()
            for end in readable:
                other = self.ends[1 - self.ends.index(end)]
                try:
                    packet = os.read(end, 65536)
                except BlockingIOError:
                    continue
                if self.is_cut or self.dice.random() < self.loss:
                    self.lost += 1
                    continue
                number += 1
                heapq.heappush(waiting, (now + self.delay, number, other, packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, to, packet = heapq.heappop(waiting)
                # What was on its way when the wire was cut is lost as well.
                if self.is_cut:
                    self.lost += 1
                    continue
                try:
                    os.write(to, packet)
                    self.passed += 1
                except OSError:
                    self.lost += 1

    def cut(self):
        self.is_cut = True

    def heal(self):
        self.delay, self.loss, self.is_cut = 0.0, 0.0, False

    def close(self):
        self.is_open = False
        self.thread.join()
        for end in self.ends:
            os.close(end)
