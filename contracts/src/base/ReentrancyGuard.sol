// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title Refuses nested entry, in transient storage.
abstract contract ReentrancyGuard {
    bool private transient _entered;

    modifier nonReentrant() {
        require(!_entered, "ReentrancyGuard: reentrant call");
        _entered = true;
        _;
        _entered = false;
    }
}
