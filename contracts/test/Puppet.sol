// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title An account with code, for tests.
/// @notice Calls what it is told to call, and answers a payment by taking it, by refusing it, or by
/// calling something before it takes it.
contract Puppet {
    enum Reaction {
        TAKE,
        REFUSE,
        CALL
    }

    Reaction private _reaction;
    address private _target;
    bytes private _data;
    /// A payment that arrives during a reaction is taken.
    bool private transient _reacting;

    /// The call made in answer to a payment, and what came of it.
    event Reacted(bool ok, bytes answer);

    error Refused();

    receive() external payable {
        if (_reaction == Reaction.TAKE || _reacting) return;
        if (_reaction == Reaction.REFUSE) revert Refused();
        _reacting = true;
        (bool ok, bytes memory answer) = _target.call(_data);
        _reacting = false;
        emit Reacted(ok, answer);
    }

    /// @notice Chooses the answer to later payments.
    function react(Reaction reaction, address target, bytes calldata data) external {
        _reaction = reaction;
        _target = target;
        _data = data;
    }

    /// @notice Calls `target` and answers as it does.
    function execute(address target, uint256 value, bytes calldata data) external payable {
        (bool ok, bytes memory answer) = target.call{value: value}(data);
        assembly ("memory-safe") {
            if ok { return(add(answer, 32), mload(answer)) }
            revert(add(answer, 32), mload(answer))
        }
    }
}
