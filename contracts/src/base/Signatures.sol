// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title EIP-712 digests and strict recovery.
library Signatures {
    bytes32 private constant DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
    bytes32 private constant VERSION_HASH = keccak256("1");

    /// Half of the curve order: a larger `s` is the malleable twin of a valid signature.
    uint256 private constant HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0;

    /// @notice EIP-712 digest under the domain (name, "1", this chain, this contract).
    function digest(bytes32 nameHash, bytes32 structHash) internal view returns (bytes32) {
        // Read at call time: a fork with another chain id must not accept the same signatures.
        bytes32 domain =
            keccak256(abi.encode(DOMAIN_TYPEHASH, nameHash, VERSION_HASH, block.chainid, address(this)));
        return keccak256(abi.encodePacked(hex"1901", domain, structHash));
    }

    /// @notice Whether `signature` (exactly r, s, v with v 27 or 28 and low s) was made by `signer`.
    function isValid(address signer, bytes32 hash, bytes calldata signature) internal pure returns (bool) {
        if (signature.length != 65 || signer == address(0)) return false;
        bytes32 r = bytes32(signature[0:32]);
        bytes32 s = bytes32(signature[32:64]);
        uint8 v = uint8(signature[64]);
        if (uint256(s) > HALF_ORDER || (v != 27 && v != 28)) return false;
        return ecrecover(hash, v, r, s) == signer;
    }
}
