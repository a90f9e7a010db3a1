"""Signed transactions in plain Python, made before the clock starts: Keccak-256, secp256k1, RLP."""

import hashlib

P = 2**256 - 2**32 - 977
N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
G = (
    0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798,
    0x483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8,
)
MASK = 2**64 - 1


def keccak(data):
    """Keccak-256 as Ethereum uses it."""
    rate, state = 136, [0] * 25
    padded = bytearray(data) + b"\x01" + bytes(-(len(data) + 1) % rate)
    padded[-1] |= 0x80
    for start in range(0, len(padded), rate):
        for lane in range(rate // 8):
            state[lane] ^= int.from_bytes(padded[start + 8 * lane : start + 8 * lane + 8], "little")
        permute(state)
    return b"".join(lane.to_bytes(8, "little") for lane in state[:4])


def permute(a):
    constant = 1
    for _ in range(24):
        column = [a[x] ^ a[x + 5] ^ a[x + 10] ^ a[x + 15] ^ a[x + 20] for x in range(5)]
        for x in range(5):
            change = column[x - 1] ^ rotate(column[(x + 1) % 5], 1)
            for y in range(0, 25, 5):
                a[x + y] ^= change
        x, y, lane = 1, 0, a[1]
        for step in range(24):
            x, y = y, (2 * x + 3 * y) % 5
            lane, a[x + 5 * y] = a[x + 5 * y], rotate(lane, (step + 1) * (step + 2) // 2 % 64)
        for y in range(0, 25, 5):
            row = a[y : y + 5]
            for x in range(5):
                a[x + y] = row[x] ^ (~row[(x + 1) % 5] & row[(x + 2) % 5] & MASK)
        for bit in range(7):
            constant = (constant << 1) ^ (constant >> 7) * 0x171
            if constant & 2:
                a[0] ^= 1 << ((1 << bit) - 1)


def rotate(lane, bits):
    return (lane << bits | lane >> (64 - bits)) & MASK if bits else lane


def add(left, right):
    if left is None:
        return right
    if right is None:
        return left
    if left[0] == right[0]:
        if (left[1] + right[1]) % P == 0:
            return None
        slope = 3 * left[0] * left[0] * pow(2 * left[1], -1, P)
    else:
        slope = (right[1] - left[1]) * pow(right[0] - left[0], -1, P)
    x = (slope * slope - left[0] - right[0]) % P
    return x, (slope * (left[0] - x) - left[1]) % P


POWERS = [G]
for _ in range(255):
    POWERS.append(add(POWERS[-1], POWERS[-1]))


def times_g(number):
    point = None
    for bit in range(256):
        if number >> bit & 1:
            point = add(point, POWERS[bit])
    return point


def rlp(value):
    if isinstance(value, list):
        body = b"".join(map(rlp, value))
        return prefix(0xC0, len(body)) + body
    if isinstance(value, int):
        value = value.to_bytes((value.bit_length() + 7) // 8, "big")
    if len(value) == 1 and value[0] < 0x80:
        return value
    return prefix(0x80, len(value)) + value


def prefix(base, length):
    if length < 56:
        return bytes([base + length])
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([base + 55 + len(size)]) + size


def signed(key, chain_id, nonce, to, value, data, gas, gas_price):
    """A legacy transaction with replay protection, as hexadecimal text."""
    fields = [nonce, gas_price, gas, to, value, data]
    digest = keccak(rlp([*fields, chain_id, b"", b""]))
    z = int.from_bytes(digest, "big")
    k = int.from_bytes(hashlib.sha256(key.to_bytes(32, "big") + digest).digest(), "big") % N
    x, y = times_g(k)
    r, s = x % N, pow(k, -1, N) * (z + x * key) % N
    odd = y & 1
    if s > N // 2:
        s, odd = N - s, odd ^ 1
    return "0x" + rlp([*fields, chain_id * 2 + 35 + odd, r, s]).hex()


def address_of(key):
    x, y = times_g(key)
    return keccak(x.to_bytes(32, "big") + y.to_bytes(32, "big"))[12:]


def created_address(sender, nonce):
    return keccak(rlp([sender, nonce]))[12:]


if __name__ == "__main__":
    assert keccak(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    account = 0xAC0974BEC39A17E36BA4A6B4D238FF944BACB478CBED5EFCAE784D7BF4F2FF80
    assert address_of(account).hex() == "f39fd6e51aad88f6f4ce6ab8827279cfffb92266"
    print("ok")
