// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title One administrator address.
/// @notice Revert texts are those that existing clients already know.
abstract contract Owned {
    address private _owner;

    event OwnershipTransferred(address indexed previousOwner, address indexed newOwner);

    modifier onlyOwner() {
        require(msg.sender == _owner, "Ownable: caller is not the owner");
        _;
    }

    /// @notice The administrator; zero after `renounceOwnership`.
    function owner() public view returns (address) {
        return _owner;
    }

    /// @notice Hands administration over.
    function transferOwnership(address newOwner) external onlyOwner {
        require(newOwner != address(0), "Ownable: new owner is the zero address");
        _setOwner(newOwner);
    }

    /// @notice Gives administration up for ever.
    function renounceOwnership() external onlyOwner {
        _setOwner(address(0));
    }

    function _setOwner(address newOwner) internal {
        address previous = _owner;
        _owner = newOwner;
        emit OwnershipTransferred(previous, newOwner);
    }
}
