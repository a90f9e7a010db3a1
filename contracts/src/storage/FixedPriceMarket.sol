// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Owned} from "../base/Owned.sol";

/// @title Storage fee at one price per 256-byte sector.
/// @notice Fees collect here until the owner takes them out.
contract FixedPriceMarket is Owned {
    /// @notice Neuron per sector.
    uint256 public pricePerSector;

    event PriceUpdated(uint256 oldPrice, uint256 newPrice);

    error TransferFailed();

    constructor(uint256 pricePerSector_) {
        _setOwner(msg.sender);
        pricePerSector = pricePerSector_;
    }

    /// @notice Fees arrive as plain transfers from Flow.
    receive() external payable {}

    /// @notice Changes the price of later submissions, in neuron per sector.
    function setPricePerSector(uint256 newPrice) external onlyOwner {
        emit PriceUpdated(pricePerSector, newPrice);
        pricePerSector = newPrice;
    }

    /// @notice Sends the collected fees to `recipient`.
    function withdraw(address payable recipient) external onlyOwner {
        (bool ok,) = recipient.call{value: address(this).balance}("");
        if (!ok) revert TransferFailed();
    }
}
