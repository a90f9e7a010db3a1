// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Owned} from "../base/Owned.sol";

/// @title Names the implementation that a set of proxies runs.
contract UpgradeableBeacon is Owned {
    address private _implementation;

    event Upgraded(address indexed implementation);

    constructor(address implementation_) {
        _setOwner(msg.sender);
        _setImplementation(implementation_);
    }

    /// @notice The code that proxies of this beacon run.
    function implementation() external view returns (address) {
        return _implementation;
    }

    /// @notice Replaces the code of every proxy of this beacon.
    function upgradeTo(address newImplementation) external onlyOwner {
        _setImplementation(newImplementation);
        emit Upgraded(newImplementation);
    }

    function _setImplementation(address newImplementation) private {
        require(newImplementation.code.length > 0, "UpgradeableBeacon: implementation is not a contract");
        _implementation = newImplementation;
    }
}
