#!/usr/bin/env python3
"""Makes vectors.json: the encodings of approvals written a second time, from their
description alone. Run by hand in this folder; the tests read the file."""
import base64, hashlib, json, struct

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

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

# Rosters after the first one, and what passkeys sign. Keys are the same at each run.
def prime(seed):
    n = int.from_bytes(b"".join(hashlib.sha256(b"%s %d" % (seed, i)).digest() for i in range(4)), "big") | 3 << 1022 | 1
    while n % 65537 == 1 or any(n % d == 0 for d in (3, 5, 7, 11, 13)) or pow(2, n - 1, n) != 1: n += 2
    return n

def rsa_key():
    p, q = prime(b"p"), prime(b"q")
    d = pow(65537, -1, (p - 1) * (q - 1))
    return rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), rsa.RSAPublicNumbers(65537, p * q)).private_key()

keys = {"ES256": ec.derive_private_key(7, ec.SECP256R1()), "EdDSA": ed25519.Ed25519PrivateKey.from_private_bytes(h(8)), "RS256": rsa_key(),
    "cli": ec.derive_private_key(9, ec.SECP256R1()), "other": ec.derive_private_key(10, ec.SECP256R1())}

def spki(k): return keys[k].public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

def sign(k, message):
    key = keys[k]
    if k == "EdDSA": return key.sign(message)
    if k == "RS256": return key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    return key.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))

b64 = lambda b: base64.b64encode(b).decode()
url = lambda b: base64.urlsafe_b64encode(b).rstrip(b"=").decode()
text = lambda b: struct.pack(">I", len(b)) + b
count = lambda n: struct.pack(">H", n)

def people(r):
    if not r.get("version"):
        officers = sorted(r["officers"], key=lambda o: base64.b64decode(o["spki"]))
        return H("roster", count(r["quorum"]) + b"".join(text(o["name"].encode()) + text(base64.b64decode(o["spki"])) for o in officers))
    b = struct.pack(">Q", r["version"]) + count(r["quorum"]) + count(r.get("cli_votes", 0)) + text(r.get("rp_id", "").encode())
    origins = r.get("origins", [])
    b += count(len(origins)) + b"".join(text(o.encode()) for o in origins)
    b += count(len(r["officers"]))
    for o in sorted(r["officers"], key=lambda o: o["name"].encode()):
        b += text(o["name"].encode()) + text(base64.b64decode(o.get("spki", "")))
        b += count(len(o.get("passkeys", [])))
        for k in o.get("passkeys", []): b += text(base64.b64decode(k["id"])) + text(base64.b64decode(k["spki"])) + text(k.get("label", "").encode())
        b += count(len(o["roles"]))
        for a in o["roles"]: b += b"".join(text(a.get(f, "").encode()) for f in ("role", "issuer", "profile", "key"))
    groups = r.get("groups", [])
    b += count(len(groups))
    for g in sorted(groups, key=lambda g: g["name"].encode()):
        b += text(g["name"].encode()) + count(g["quorum"]) + count(len(g["members"])) + b"".join(text(m.encode()) for m in g["members"])
    return H("people", b)

officer = {"role": "crypto-officer"}
out["rosters"] = []
for name, r in [
    ("of leaf 0", {"quorum": 2, "officers": [{"name": "bob", "spki": b64(spki("cli"))}, {"name": "ada", "spki": b64(spki("other"))}]}),
    ("passkeys alone", {"version": 1, "quorum": 2, "rp_id": "ca.example", "origins": ["https://ca.example"], "officers": [
        {"name": "bob", "passkeys": [{"id": b64(b"id-1"), "spki": b64(spki("ES256")), "label": "blue"}], "roles": [officer]},
        {"name": "ada", "passkeys": [{"id": b64(b"id-2"), "spki": b64(spki("EdDSA"))}], "roles": [officer]}]}),
    ("groups, limits and all kinds of keys", {"version": 2**33, "quorum": 2, "cli_votes": 1, "rp_id": "ca.example", "origins": ["https://ca.example", "https://sub.ca.example:8443"],
        "groups": [{"name": "second", "quorum": 1, "members": ["bj\u00f6rn", "ada"]}, {"name": "first", "quorum": 2, "members": ["ada", "bj\u00f6rn"]}], "officers": [
        {"name": "bj\u00f6rn", "spki": b64(spki("cli")), "roles": [officer]},
        {"name": "ada", "spki": b64(spki("other")), "passkeys": [{"id": b64(b"id-3"), "spki": b64(spki("RS256")), "label": "red"}, {"id": b64(b"id-4"), "spki": b64(spki("EdDSA")), "label": "blue"}], "roles": [officer]},
        {"name": "cyd", "passkeys": [{"id": b64(b"id-5"), "spki": b64(spki("ES256"))}], "roles": [{"role": "signer", "key": "release"}, {"role": "registration-officer", "issuer": "issuing", "profile": "tls-server"}]}]}),
]:
    out["rosters"].append({"name": name, "roster": r, "digest": people(r).hex()})

challenge, rp, origin = H("approval", b"\x01" + bytes.fromhex(out["proposals"][0]["proposal"])), "ca.example", "https://ca.example"
client = lambda **with_: json.dumps({"type": "webauthn.get", "challenge": url(challenge), "origin": origin, "crossOrigin": False} | with_).encode()
data = lambda rp=rp, flags=5, more=b"": hashlib.sha256(rp.encode()).digest() + bytes([flags]) + struct.pack(">I", 17) + more
out["assertions"] = []
for name, good, key, signer, d, c in [
    ("ES256", True, "ES256", "ES256", data(), client()),
    ("EdDSA", True, "EdDSA", "EdDSA", data(), client()),
    ("RS256", True, "RS256", "RS256", data(), client()),
    ("the second origin", True, "ES256", "ES256", data(), client(origin="https://sub.ca.example")),
    ("extensions, and a member that nobody knows", True, "ES256", "ES256", data(flags=0x85, more=b"\xa0"), client(other={"a": [1]})),
    ("without crossOrigin", True, "ES256", "ES256", data(), json.dumps({"origin": origin, "challenge": url(challenge), "type": "webauthn.get"}).encode()),
    ("escaped text", True, "ES256", "ES256", data(), client().replace(b"https:", b"h\\u0074tps:")),
    ("another key", False, "ES256", "other", data(), client()),
    ("a new credential", False, "ES256", "ES256", data(), client(type="webauthn.create")),
    ("another challenge", False, "ES256", "ES256", data(), client(challenge=url(h(1)))),
    ("a padded challenge", False, "ES256", "ES256", data(), client(challenge=url(challenge) + "=")),
    ("another origin", False, "ES256", "ES256", data(), client(origin="https://evil.example")),
    ("http", False, "ES256", "ES256", data(), client(origin="http://ca.example")),
    ("an origin longer than ours", False, "ES256", "ES256", data(), client(origin=origin + ".evil.example")),
    ("in another site's frame", False, "ES256", "ES256", data(), client(crossOrigin=True)),
    ("another relying party", False, "ES256", "ES256", data(rp="evil.example"), client()),
    ("nobody there", False, "ES256", "ES256", data(flags=4), client()),
    ("nobody verified", False, "ES256", "ES256", data(flags=1), client()),
    ("short data", False, "ES256", "ES256", data()[:36], client()),
    ("a member twice", False, "ES256", "ES256", data(), client()[:-1] + b', "type": "webauthn.get"}'),
    ("a member twice, once escaped", False, "ES256", "ES256", data(), client()[:-1] + b', "typ\\u0065": "webauthn.get"}'),
    ("a member of another case", False, "ES256", "ES256", data(), client().replace(b'"type"', b'"Type"')),
    ("something behind the object", False, "ES256", "ES256", data(), client() + b"{}"),
    ("no UTF-8", False, "ES256", "ES256", data(), client()[:-1] + b', "x": "\xff"}'),
    ("a list", False, "ES256", "ES256", data(), b"[" + client() + b"]"),
]:
    vote = lst([d, c, sign(signer, d + hashlib.sha256(c).digest())])
    out["assertions"].append({"name": name, "good": good, "spki": spki(key).hex(), "rp_id": rp, "origins": [origin, "https://sub.ca.example"], "challenge": challenge.hex(), "vote": vote.hex()})
json.dump(out, open("vectors.json", "w"), indent=1)
