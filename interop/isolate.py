"""Runs a command where only loopback exists, and writes down every attempt to leave it.

    unshare --net [--user --map-root-user] python3 isolate.py ATTEMPTS.json COMMAND [ARGUMENT…]

Must start inside a network namespace of its own. The namespace has one interface, loopback, so no packet can reach
another machine, whatever a program does. Every other address is routed to loopback as well, where nothing listens on
it: a program that tries to leave is refused at once, as by a machine that is down, and its first packet passes the
recorder below. ATTEMPTS.json gets the list of those packets: address, port, and the name where it was a DNS question.
"""

import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading

# linux/if.h, linux/sockios.h, linux/rtnetlink.h, linux/filter.h
IFF_UP, SIOCGIFFLAGS, SIOCSIFFLAGS = 0x1, 0x8913, 0x8914
RTM_NEWROUTE, RTN_LOCAL, RT_TABLE_LOCAL, RTPROT_BOOT, RT_SCOPE_HOST, RTA_OIF = 24, 2, 255, 3, 254, 4
NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE = 0x1, 0x4, 0x400
ETH_P_ALL, ETH_P_IP, ETH_P_IPV6, SO_ATTACH_FILTER, PACKET_OUTGOING = 0x0003, 0x0800, 0x86DD, 26, 4
LOAD_HALF, LOAD_WORD, LOAD_BYTE, AND, JUMP_EQUAL, RETURN = 0x28, 0x20, 0x30, 0x54, 0x15, 0x06


def bring_up_loopback():
    """Switches the namespace's only interface on and routes every address to it."""
    others = [name for _, name in socket.if_nameindex() if name not in ("lo", "sit0", "tunl0", "ip6tnl0")]
    if others:
        raise SystemExit(f"isolate: this namespace has {', '.join(others)}; start it with `unshare --net`")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))
    add_local_default(socket.AF_INET)
    if os.path.exists("/proc/net/if_inet6"):
        add_local_default(socket.AF_INET6)


def add_local_default(family):
    """`ip route add local default dev lo`, spoken to the kernel directly because iproute2 is not everywhere."""
    route = struct.pack(
        "=BBBBBBBBI", family, 0, 0, 0, RT_TABLE_LOCAL, RTPROT_BOOT, RT_SCOPE_HOST, RTN_LOCAL, 0
    ) + struct.pack("=HHI", 8, RTA_OIF, socket.if_nametoindex("lo"))
    message = struct.pack(
        "=IHHII", 16 + len(route), RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE, 1, 0
    ) + route
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.send(message)
        answer = netlink.recv(4096)
    error = -struct.unpack_from("=i", answer, 16)[0]
    if error:
        raise SystemExit(f"isolate: cannot add the route: {os.strerror(error)}")


def open_recorder():
    """A packet socket whose kernel filter passes what is not for loopback, and questions to any name server."""
    passed, dropped = 15, 16

    def jump_if(value, line, when_equal, otherwise):
        # The kernel counts jumps from the line after the jump.
        return (JUMP_EQUAL, when_equal - line - 1, otherwise - line - 1, value)

    program = [
        (LOAD_HALF, 0, 0, 12),
        jump_if(ETH_P_IP, 1, 2, 9),
        (LOAD_WORD, 0, 0, 30),  # IPv4 destination
        (AND, 0, 0, 0xFF000000),
        jump_if(0x7F000000, 4, 5, passed),
        (LOAD_BYTE, 0, 0, 23),  # IPv4 protocol
        jump_if(socket.IPPROTO_UDP, 6, 7, dropped),
        (LOAD_HALF, 0, 0, 36),  # UDP destination port, behind an IPv4 header without options
        jump_if(53, 8, passed, dropped),
        jump_if(ETH_P_IPV6, 9, 10, dropped),
        (LOAD_WORD, 0, 0, 50),  # IPv6 destination, its last and first words: ::1 is dropped
        jump_if(1, 11, 12, passed),
        (LOAD_WORD, 0, 0, 38),
        jump_if(0, 13, dropped, passed),
        (RETURN, 0, 0, 0),
        (RETURN, 0, 0, 0xFFFF),
        (RETURN, 0, 0, 0),
    ]
    code = b"".join(struct.pack("=HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code)
    recorder = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    recorder.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(buffer))
    )
    recorder.bind(("lo", 0))
    return recorder


def record(recorder, attempts):
    """Reads packets until the process ends; keeps the first packet of each conversation."""
    while True:
        frame, source = recorder.recvfrom(2048)
        if source[2] != PACKET_OUTGOING:
            continue
        attempt = describe(frame)
        if attempt is not None and attempt not in attempts:
            attempts.append(attempt)


def describe(frame):
    """Destination and name of a frame, or None for an answer and for what the kernel itself sends."""
    version = struct.unpack_from("!H", frame, 12)[0]
    if version == ETH_P_IP:
        length, protocol = (frame[14] & 15) * 4, frame[23]
        address = socket.inet_ntop(socket.AF_INET, frame[30:34])
    elif version == ETH_P_IPV6:
        length, protocol = 40, frame[20]
        address = socket.inet_ntop(socket.AF_INET6, frame[38:54])
        if address.startswith("ff") or address.startswith("fe80"):
            return None
    else:
        return None
    packet = frame[14 + length :]
    if protocol == socket.IPPROTO_TCP and len(packet) > 13:
        is_first = packet[13] & 0x12 == 0x02
        port = struct.unpack_from("!H", packet, 2)[0]
        return {"protocol": "tcp", "address": address, "port": port} if is_first else None
    if protocol == socket.IPPROTO_UDP and len(packet) > 8:
        port = struct.unpack_from("!H", packet, 2)[0]
        if port == 53:
            return {"protocol": "dns", "name": question(packet[8:])}
        return {"protocol": "udp", "address": address, "port": port}
    if protocol in (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6):
        return None
    return {"protocol": str(protocol), "address": address}


def question(message):
    """The name that a DNS message asks for."""
    labels, position = [], 12
    while position < len(message) and message[position]:
        size = message[position]
        labels.append(message[position + 1 : position + 1 + size].decode("ascii", "replace"))
        position += 1 + size
    return ".".join(labels)


def main():
    report, command = sys.argv[1], sys.argv[2:]
    bring_up_loopback()
    attempts = []
    recorder = open_recorder()
    threading.Thread(target=record, args=(recorder, attempts), daemon=True).start()
    child = subprocess.Popen(command)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: child.send_signal(received))
    status = child.wait()
    with open(report, "w", encoding="utf-8") as file:
        json.dump(attempts, file, indent=1)
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
