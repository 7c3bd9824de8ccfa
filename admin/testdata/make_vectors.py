#!/usr/bin/env python3
"""Makes vectors.json: the encodings of approvals written a second time, from their
description alone. Run by hand in this folder; the tests read the file."""
import hashlib, json, struct

def H(ctx, x):
    c = b"chancery/" + ctx.encode() + b"/v1"
    return hashlib.sha256(bytes([len(c)]) + c + x).digest()

def lst(items): return b"".join(struct.pack(">H", len(i)) + i for i in items)

def proposal(ledger, action, parameters, acts, policy, roster, requester, nonce, not_before, expires):
    values = [ledger, action.encode(), parameters, lst([a.encode() for a in acts]), policy, roster, requester.encode(), nonce,
        struct.pack(">Q", not_before), struct.pack(">Q", expires)]
    return b"".join(struct.pack(">HI", tag, len(v)) + v for tag, v in enumerate(values, 1))

def policy(m, n): return "chancery/policy/v1\napprove %d of %d\nrequester no\nvote final\nlifetime 604800\n" % (m, n)

h = lambda n: bytes([n]) * 32
out = {"policies": [], "parameters": [], "proposals": []}
for m, n in [(2, 2), (3, 5), (20, 20)]:
    out["policies"].append({"quorum": m, "officers": n, "digest": H("policy", policy(m, n).encode()).hex()})
for given, canonical in [
    ('{ "purpose":"code", "name":"k1",\n"algorithm":"P-256" }', '{"algorithm":"P-256","name":"k1","purpose":"code"}'),
    ('{"b":[1,true,null],"a":"b\\u00fccher"}', '{"a":"b\u00fccher","b":[1,true,null]}'),
]:
    out["parameters"].append({"given": given, "canonical": canonical, "digest": H("parameters", canonical.encode()).hex()})
for name, ledger, action, acts, requester, votes in [
    ("one act", h(1), "generate-key", ["generate-key k1 code P-256"], "admin-token", [7, 9]),
    ("an officer asks", h(2), "add-member", ["add-member gamma 0badf00d", 'generate-key probe-gamma probe P-256 on gamma'], "officer:ada", [2, 300, 2**40]),
    ("text beyond ASCII", h(3), "restore", ["restore " + "ab" * 32], "officer:bj\u00f6rn", [1, 2]),
]:
    params = H("parameters", b"{}")
    p = proposal(ledger, action, params, acts, H("policy", policy(2, 2).encode()), h(4), requester, h(5), 1790000000, 1790086400)
    D = [H("approval", bytes([d]) + p) for d in (0, 1, 2)]
    out["proposals"].append({"name": name, "ledger": ledger.hex(), "action": action, "parameters": params.hex(), "acts": acts,
        "policy": H("policy", policy(2, 2).encode()).hex(), "roster": h(4).hex(), "requester": requester, "nonce": h(5).hex(),
        "not_before": 1790000000, "expires": 1790086400, "proposal": p.hex(), "hash": H("proposal", p).hex(), "id": H("proposal", p)[:8].hex(),
        "approvals": [d.hex() for d in D], "texts": [("chancery/approval/v1\n" + d.hex() + "\n") for d in D],
        "votes": [str(v) for v in votes], "grant": H("grant", H("proposal", p) + b"".join(struct.pack(">Q", v) for v in votes)).hex()})
json.dump(out, open("vectors.json", "w"), indent=1)
