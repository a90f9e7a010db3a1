// Makes ecies_js.json: blobs of the JavaScript library that the published clients use.
//   npm install eciesjs@0.4.18 && node make_ecies.mjs > ecies_js.json
// Blobs are random; the committed file is one recorded run.
import { PrivateKey, decrypt, encrypt } from "eciesjs";

const keys = {
  "development account 0": "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
  "development account 3": "7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6",
  // Coordinates of the public key that begin with a zero byte, which must not be trimmed.
  "X with a leading zero": "0000000000000000000000000000000000000000000000000000000000000099",
  "Y with a leading zero": "000000000000000000000000000000000000000000000000000000000000007a",
};
const vectors = [];
for (const [name, secret] of Object.entries(keys)) {
  const key = PrivateKey.fromHex(secret);
  for (const length of [1, 32, 200]) {
    const plaintext = Buffer.from(Array.from({ length }, (_, index) => index % 256));
    const blob = encrypt(key.publicKey.toHex(), plaintext);
    if (!Buffer.from(decrypt(secret, blob)).equals(plaintext)) throw new Error("the library cannot open its own blob");
    vectors.push({ name, key: `0x${secret}`, plaintext: plaintext.toString("hex"), blob: Buffer.from(blob).toString("hex") });
  }
}
console.log(JSON.stringify({ library: "eciesjs 0.4.18", vectors }, null, 1));
