// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title Initialization of a contract behind a proxy.
/// @notice The constructor locks the implementation itself, so that only proxies can be initialized.
abstract contract InitializedOnce {
    bool private _initialized;

    event Initialized(uint8 version);

    error AlreadyInitialized();

    constructor() {
        _initialized = true;
        emit Initialized(type(uint8).max);
    }

    /// @notice Whether `initialize` has run (always true on an implementation).
    function initialized() external view returns (bool) {
        return _initialized;
    }

    function _requireNotInitialized() internal view {
        if (_initialized) revert AlreadyInitialized();
    }

    function _markInitialized() internal {
        _initialized = true;
        emit Initialized(1);
    }
}
