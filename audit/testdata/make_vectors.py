#!/usr/bin/env python3
"""Makes vectors.json: the encodings of the ledger written a second time, from their
description alone. Run by hand; the tests read the file."""
import hashlib, json, struct

def H(ctx, x):
    c = b"chancery/" + ctx.encode() + b"/v1"
    return hashlib.sha256(bytes([len(c)]) + c + x).digest()

NONE = 2**64 - 1

def leaf(kind, op, ledger, opid, us, closes, fields):
    b = b"CHL1" + struct.pack(">BH", kind, op) + ledger + opid + struct.pack(">QQ", us, closes)
    for t, v in fields:
        b += struct.pack(">HI", t, len(v)) + v
    return b

def node(a, b): return hashlib.sha256(b"\x01" + a + b).digest()
def lh(x): return hashlib.sha256(b"\x00" + x).digest()

def root(hs):
    if not hs: return hashlib.sha256(b"").digest()
    if len(hs) == 1: return hs[0]
    k = 1
    while k * 2 < len(hs): k *= 2
    return node(root(hs[:k]), root(hs[k:]))

def lst(*items): return b"".join(struct.pack(">H", len(i)) + i for i in items)

out = {"digests": [], "leaves": [], "roots": []}
for name, x in [("ledger", b""), ("commit", b"abc"), ("grant", bytes(range(64)))]:
    out["digests"].append({"name": name, "input": x.hex(), "digest": H(name, x).hex()})

L, O = bytes(range(32)), bytes(range(100, 116))
h = lambda n: bytes([n]) * 32
cases = [
    ("event without fields", (5, 13, L, O, 1790000000000000, NONE, [])),
    ("intent", (1, 2, L, O, 1790000000000001, NONE, [
        (16, h(1)), (17, b"\x01"), (18, bytes.fromhex("300a06082a8648ce3d040302")), (19, h(2)), (20, struct.pack(">Q", 700)),
        (21, h(3)), (22, bytes([0x40] + [7] * 15)), (23, h(4)), (24, h(5)), (25, b"acme:abc"), (27, b"\x03"), (28, b"node-1"), (29, b"v1")])),
    ("crl intent", (1, 3, L, O, 1790000000000002, NONE, [
        (16, h(1)), (30, struct.pack(">Q", 9)), (31, struct.pack(">Q", 1790000000)), (32, struct.pack(">Q", 4711))])),
    ("done", (2, 2, L, O, 1790000000000003, 41, [
        (48, h(6)), (49, h(7)), (50, h(8)), (51, lst(b"alpha", struct.pack(">I", 1), b"beta", struct.pack(">I", 2)))])),
    ("orphan", (4, 2, L, O, 1790000000000004, 42, [(48, h(6)), (64, "server stopped".encode())])),
    ("text in NFC", (5, 15, L, O, 1790000000000005, NONE, [(64, "b\u00fccher \u4eac\u90fd".encode())])),
    ("unknown optional tag", (5, 15, L, O, 1790000000000006, NONE, [(64, b"x"), (0x8001, b"\x00\x01")])),
]
for name, c in cases:
    b = leaf(*c)
    out["leaves"].append({"name": name, "kind": c[0], "op": c[1], "ledger": c[2].hex(), "id": c[3].hex(), "time_us": c[4], "closes": str(c[5]),
        "fields": [{"tag": t, "value": v.hex()} for t, v in c[6]], "leaf": b.hex(), "hash": lh(b).hex()})
g = (0, 1, bytes(32), h(9)[:16], 1790000000000000, NONE, [
    (1, h(9)), (2, b"\x01"), (3, b"ca.example"), (5, lst(b"spki-one", b"spki-two")), (6, h(10)), (7, lst(b"generate-key root issuer P-384"))])
z = leaf(*g)
lid = H("ledger", z)
b = leaf(g[0], g[1], lid, *g[3:])
out["genesis"] = {"random": h(9).hex(), "domain": "ca.example", "keys": [b"spki-one".hex(), b"spki-two".hex()], "roster": h(10).hex(),
    "acts": ["generate-key root issuer P-384"], "time_us": g[4], "ledger": lid.hex(), "leaf": b.hex(), "origin": "ca.example/ledger/" + lid[:8].hex()}
out["commitments"] = []
for tag, salt, value in [(120, h(11), b"192.0.2.7"), (121, h(12), "emailAddress=b\u00fccher@ca.example\ndns:a.example".encode()), (120, bytes(32), b"x")]:
    out["commitments"].append({"ledger": L.hex(), "id": O.hex(), "tag": tag, "salt": salt.hex(), "value": value.hex(),
        "commitment": H("commit", L + O + struct.pack(">H", tag) + salt + value).hex()})
r = b"chancery/evidence/v1\nrequest a test\norder x\n"
out["evidence"] = [{"record": r.hex(), "digest": H("evidence", r).hex()}]
hs = [lh(struct.pack(">Q", i)) for i in range(600)]
for n in (0, 1, 2, 3, 7, 8, 255, 256, 257, 511, 512, 513, 600):
    out["roots"].append({"size": n, "root": root(hs[:n]).hex()})
json.dump(out, open("vectors.json", "w"), indent=1)
