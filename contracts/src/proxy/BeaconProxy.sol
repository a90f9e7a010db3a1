// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

interface IBeacon {
    function implementation() external view returns (address);
}

/// @title Runs the code that its beacon names.
/// @notice The beacon never changes, so calls read it from the code instead of from storage
/// (2100 gas less in each transaction); the ERC-1967 slot is written for tools that look there.
contract BeaconProxy {
    bytes32 private constant BEACON_SLOT = 0xa3f0ad74e5423aebfd80d3ef4346578335a9a72aeaee59ff6cb3582b35133d50;

    IBeacon private immutable BEACON;

    event BeaconUpgraded(address indexed beacon);

    /// @param beacon contract that answers `implementation()`
    /// @param data call to run on the implementation at once; empty for none
    constructor(address beacon, bytes memory data) payable {
        require(beacon.code.length > 0, "ERC1967: new beacon is not a contract");
        BEACON = IBeacon(beacon);
        address implementation = IBeacon(beacon).implementation();
        require(implementation.code.length > 0, "ERC1967: beacon implementation is not a contract");
        assembly ("memory-safe") {
            sstore(BEACON_SLOT, beacon)
        }
        emit BeaconUpgraded(beacon);
        if (data.length > 0) {
            (bool ok, bytes memory answer) = implementation.delegatecall(data);
            if (!ok) {
                assembly ("memory-safe") {
                    revert(add(answer, 32), mload(answer))
                }
            }
        }
    }

    receive() external payable {
        _delegate();
    }

    fallback() external payable {
        _delegate();
    }

    function _delegate() private {
        address implementation = BEACON.implementation();
        // The answer ends the call, so memory from 0 on is free to use.
        assembly {
            calldatacopy(0, 0, calldatasize())
            let ok := delegatecall(gas(), implementation, 0, calldatasize(), 0, 0)
            returndatacopy(0, 0, returndatasize())
            switch ok
            case 0 { revert(0, returndatasize()) }
            default { return(0, returndatasize()) }
        }
    }
}
