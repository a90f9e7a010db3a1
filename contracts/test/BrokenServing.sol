// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC165, IServing} from "../src/interfaces/IServing.sol";

/// @title A service contract that fails to delete sub-accounts, for tests.
/// @notice It takes coins, gives every pair a sub-account with the first of them, and pays all of it back at
/// once. The way it fails is chosen: with a reason, without one, or by burning all gas.
contract BrokenServing is IServing, IERC165 {
    enum Failure {
        REASON,
        SILENCE,
        GAS
    }

    Failure public failure;
    mapping(address user => mapping(address provider => bool)) private _exists;
    mapping(address user => mapping(address provider => uint256)) private _balances;

    error Broken();

    function fail(Failure how) external {
        failure = how;
    }

    function accountExists(address user, address provider) external view returns (bool) {
        return _exists[user][provider];
    }

    function getPendingRefund(address, address) external pure returns (uint256) {
        return 0;
    }

    function addAccount(address user, address provider, string calldata) external payable {
        _exists[user][provider] = true;
        _balances[user][provider] += msg.value;
    }

    function depositFund(address, address, uint256) external payable {
        _fail();
    }

    function requestRefundAll(address, address) external {}

    function processRefund(address user, address provider) external returns (uint256, uint256, uint256) {
        uint256 amount = _balances[user][provider];
        _balances[user][provider] = 0;
        (bool ok,) = msg.sender.call{value: amount}("");
        require(ok);
        return (amount, 0, 0);
    }

    function deleteAccount(address user, address provider) external {
        _exists[user][provider] = false;
        _fail();
    }

    function supportsInterface(bytes4 id) external pure returns (bool) {
        return id == type(IServing).interfaceId || id == type(IERC165).interfaceId;
    }

    function _fail() private view {
        if (failure == Failure.REASON) revert Broken();
        if (failure == Failure.SILENCE) {
            assembly {
                revert(0, 0)
            }
        }
        assembly {
            invalid()
        }
    }
}
