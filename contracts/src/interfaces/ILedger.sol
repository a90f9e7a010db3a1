// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title What a service contract needs from the ledger.
interface ILedger {
    /// @notice Records that `amount` neuron of the user's funds were paid to a provider.
    function spendFund(address user, uint256 amount) external;

    /// @notice Providers with which `user` has a sub-account in `service`.
    function getProvidersOf(address user, address service) external view returns (address[] memory);
}
