"""Makes ecies_py.json: blobs of the Python library that the published client uses, and opens those of JavaScript.

    pip install eciespy==0.4.7 && python make_ecies.py ecies_js.json > ecies_py.json

Blobs are random; the committed file is one recorded run.
"""
import json
import sys

from ecies import decrypt, encrypt
from ecies.keys import PrivateKey

with open(sys.argv[1]) as file:
    javascript = json.load(file)["vectors"]

vectors = []
for vector in javascript:
    secret, plaintext = vector["key"], bytes.fromhex(vector["plaintext"])
    assert decrypt(secret, bytes.fromhex(vector["blob"])) == plaintext, "a blob of JavaScript does not open"
    public = PrivateKey.from_hex("secp256k1", secret).public_key.to_hex()
    blob = encrypt(public, plaintext)
    assert decrypt(secret, blob) == plaintext
    vectors.append({**vector, "blob": blob.hex()})
print(json.dumps({"library": "eciespy 0.4.7", "vectors": vectors}, indent=1))
