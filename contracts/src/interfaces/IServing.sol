// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title What the ledger needs from a service contract.
/// @notice The interface id is the XOR of these seven selectors, 0x160841b1. All
/// functions that change state may be called by the ledger alone. Amounts are in neuron.
interface IServing {
    /// @notice Whether `user` has a sub-account with `provider`.
    function accountExists(address user, address provider) external view returns (bool);

    /// @notice Sum of the refunds that `user` requested from `provider` and did not collect yet.
    function getPendingRefund(address user, address provider) external view returns (uint256);

    /// @notice Creates a sub-account that holds the value sent along.
    function addAccount(address user, address provider, string memory additionalInfo) external payable;

    /// @notice Adds the value sent along and cancels up to `cancelRetrievingAmount` of pending refunds.
    function depositFund(address user, address provider, uint256 cancelRetrievingAmount) external payable;

    /// @notice Requests the refund of everything that is not already being refunded.
    function requestRefundAll(address user, address provider) external;

    /// @notice Sends all refunds whose lock time has passed to the ledger.
    function processRefund(address user, address provider)
        external
        returns (uint256 totalAmount, uint256 balance, uint256 pendingRefund);

    /// @notice Removes a sub-account; its nonce and token generation survive.
    function deleteAccount(address user, address provider) external;
}

/// @title ERC-165.
interface IERC165 {
    /// @notice Whether the contract implements the interface with this id.
    function supportsInterface(bytes4 interfaceId) external view returns (bool);
}
