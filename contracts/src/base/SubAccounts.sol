// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ILedger} from "../interfaces/ILedger.sol";
import {IERC165, IServing} from "../interfaces/IServing.sol";
import {InitializedOnce} from "./InitializedOnce.sol";
import {Owned} from "./Owned.sol";
import {ReentrancyGuard} from "./ReentrancyGuard.sol";

// Live refunds of one sub-account.
uint256 constant MAX_REFUNDS = 5;

/// @title Money of each (user, provider) pair, provider stakes, and the lock time of refunds.
/// @notice Shared by both service contracts; what differs between them (error forms, services,
/// extra state) comes in through the virtual functions at the end. All amounts are in neuron.
/// @dev Storage is packed: the official Python client sends fixed gas limits, see docs/compatibility.md.
abstract contract SubAccounts is Owned, InitializedOnce, ReentrancyGuard, IServing, IERC165 {
    /// `processed` is always false; it keeps its place in the tuple.
    struct Refund {
        uint256 index;
        uint256 amount;
        uint256 createdAt;
        bool processed;
    }

    struct SubAccount {
        // One slot that every money movement touches.
        uint112 balance;
        uint112 pendingRefund;
        uint8 refundCount;
        bool exists;
        bool acknowledged;
        // One slot.
        address user;
        uint32 position; // in _keys
        uint32 ringEpoch; // fine-tuning: raised when deliverables are dropped with the sub-account
        uint8 ringHead;
        uint8 ringCount;
        // One slot. The generation (inference) and the nonce survive deletion, so that old
        // signatures and session tokens stay dead.
        address provider;
        uint32 providerPosition; // in _keysOfProvider
        uint64 generation;
        uint256 nonce;
        uint256[MAX_REFUNDS] refunds; // amount << 64 | request time; oldest first
        string additionalInfo;
    }

    /// What calls read of a service, in one slot; texts, prices and the like stay with the service contract.
    struct ServiceHead {
        address teeSignerAddress;
        bool teeSignerAcknowledged;
        uint32 position; // in _serviceProviders, from 1; 0 means that there is no service
        bool occupied; // fine-tuning
        uint48 updatedAt; // inference
    }

    /// Entries from `length` on are leftovers: clearing them would cost more than a fixed gas limit
    /// of the Python client leaves.
    struct KeyList {
        uint256 length;
        mapping(uint256 position => bytes32) items;
    }

    uint256 public constant MIN_LOCKTIME = 1 hours;
    uint256 public constant MAX_LOCKTIME = 7 days;
    uint256 public constant MIN_PROVIDER_STAKE = 100 ether;

    uint256 internal constant MAX_PAGE = 50;
    uint256 internal constant MAX_ADDITIONAL_INFO_LENGTH = 4096;
    uint256 internal constant MAX_URL_LENGTH = 1024;
    uint256 internal constant MAX_TEXT_LENGTH = 256;

    /// @notice Seconds between a refund request and its collection.
    uint256 public lockTime;
    /// @notice The only caller that may move user funds.
    address public ledgerAddress;

    mapping(bytes32 key => SubAccount) internal _accounts;
    KeyList internal _keys;
    mapping(address provider => KeyList) internal _keysOfProvider;
    mapping(address provider => uint256) private _stakes;
    mapping(address provider => ServiceHead) internal _serviceHeads;
    address[] internal _serviceProviders;

    event BalanceUpdated(
        address indexed user, address indexed provider, uint256 amount, uint256 pendingRefund
    );
    event RefundRequested(
        address indexed user, address indexed provider, uint256 indexed index, uint256 timestamp
    );
    event AccountDeleted(address indexed user, address indexed provider, uint256 refundedAmount);
    event LockTimeUpdated(uint256 oldLockTime, uint256 newLockTime);
    event ProviderStaked(address indexed provider, uint256 amount);
    event ProviderStakeReturned(address indexed provider, uint256 amount);
    event ProviderTEESignerAcknowledged(
        address indexed provider, address indexed teeSignerAddress, bool acknowledged
    );
    /// The user's own flag changed by `acknowledgeTEESigner`.
    event UserAcknowledgementChanged(address indexed user, address indexed provider, bool acknowledged);

    error AccountExists(address user, address provider);
    error AccountNotExists(address user, address provider);
    error AdditionalInfoTooLong();
    error BatchSizeTooLarge(uint256 size, uint256 max);
    error CannotAddStakeWhenUpdating();
    error CannotRevokeWithNonZeroBalance(address user, address provider, uint256 balance);
    error DirectDepositsDisabled();
    error InsufficientStake(uint256 provided, uint256 required);
    error InvalidAddress(address addr);
    error ProviderCannotBeUser();
    error ServiceNotExist(address provider);
    /// Not raised any more: a full list of refunds skips the request.
    error TooManyRefunds(address user, address provider);
    error AmountTooLarge(uint256 amount);
    error FieldTooLong(string field, uint256 length, uint256 max);

    modifier onlyLedger() {
        if (msg.sender != ledgerAddress) _revertCallerNotLedger();
        _;
    }

    receive() external payable {
        revert DirectDepositsDisabled();
    }

    // --- Administration -------------------------------------------------------------------------

    /// @notice Changes the lock time of all refunds, pending ones included.
    function updateLockTime(uint256 newLockTime) external onlyOwner {
        _requireLockTime(newLockTime);
        uint256 old = lockTime;
        if (old == newLockTime) return;
        lockTime = newLockTime;
        emit LockTimeUpdated(old, newLockTime);
    }

    /// @notice Accepts the TEE signer that `provider` registered.
    function acknowledgeTEESignerByOwner(address provider) external onlyOwner {
        emit ProviderTEESignerAcknowledged(provider, _setServiceAcknowledged(provider, true), true);
    }

    /// @notice Takes that acceptance back; settlements stop until it is given again.
    function revokeTEESignerAcknowledgement(address provider) external onlyOwner {
        emit ProviderTEESignerAcknowledged(provider, _setServiceAcknowledged(provider, false), false);
    }

    // --- User -----------------------------------------------------------------------------------

    /// @notice Sets the caller's own flag; it can be cleared only while the balance is 0.
    function acknowledgeTEESigner(address provider, bool acknowledged) external {
        SubAccount storage account = _existing(msg.sender, provider);
        bool previous = account.acknowledged;
        if (previous && !acknowledged && account.balance != 0) {
            revert CannotRevokeWithNonZeroBalance(msg.sender, provider, account.balance);
        }
        if (previous == acknowledged) return;
        account.acknowledged = acknowledged;
        emit UserAcknowledgementChanged(msg.sender, provider, acknowledged);
    }

    // --- Calls of the ledger ----------------------------------------------------------------------

    /// @inheritdoc IServing
    function addAccount(address user, address provider, string calldata additionalInfo)
        external
        payable
        onlyLedger
    {
        _requirePair(user, provider);
        if (bytes(additionalInfo).length > MAX_ADDITIONAL_INFO_LENGTH) revert AdditionalInfoTooLong();
        bytes32 key = _key(user, provider);
        SubAccount storage account = _accounts[key];
        if (account.exists) revert AccountExists(user, provider);

        account.balance = _toUint112(msg.value);
        account.pendingRefund = 0;
        account.refundCount = 0;
        account.exists = true;
        account.acknowledged = true;
        account.user = user;
        account.position = uint32(_keys.length);
        account.provider = provider;
        account.providerPosition = uint32(_keysOfProvider[provider].length);
        // An empty text is already what the storage holds.
        if (bytes(additionalInfo).length != 0) account.additionalInfo = additionalInfo;
        _appendKey(_keys, key);
        _appendKey(_keysOfProvider[provider], key);
        emit BalanceUpdated(user, provider, msg.value, 0);
    }

    /// @inheritdoc IServing
    function depositFund(address user, address provider, uint256 cancelRetrievingAmount)
        external
        payable
        onlyLedger
    {
        _requirePair(user, provider);
        SubAccount storage account = _existing(user, provider);
        _cancelRefunds(account, cancelRetrievingAmount);
        account.balance = _toUint112(account.balance + msg.value);
        account.acknowledged = true;
        emit BalanceUpdated(user, provider, account.balance, account.pendingRefund);
    }

    /// @inheritdoc IServing
    /// @dev With five live refunds nothing is requested: reverting here would make one full
    /// sub-account block the collection from all others.
    function requestRefundAll(address user, address provider) external onlyLedger {
        SubAccount storage account = _existing(user, provider);
        uint256 amount = account.balance - account.pendingRefund;
        uint256 index = account.refundCount;
        if (amount == 0 || index == MAX_REFUNDS) return;
        account.refunds[index] = (amount << 64) | uint64(block.timestamp);
        account.refundCount = uint8(index + 1);
        account.pendingRefund = account.balance;
        emit RefundRequested(user, provider, index, block.timestamp);
    }

    /// @inheritdoc IServing
    function processRefund(address user, address provider)
        external
        onlyLedger
        returns (uint256 totalAmount, uint256 balance, uint256 pendingRefund)
    {
        SubAccount storage account = _existing(user, provider);
        uint256 count = account.refundCount;
        uint256 kept;
        uint256 lock = lockTime;
        for (uint256 i = 0; i < count; ++i) {
            uint256 refund = account.refunds[i];
            if (block.timestamp >= uint64(refund) + lock) {
                totalAmount += refund >> 64;
            } else {
                if (kept != i) account.refunds[kept] = refund;
                ++kept;
            }
        }
        for (uint256 i = kept; i < count; ++i) {
            account.refunds[i] = 0;
        }
        balance = account.balance - totalAmount;
        pendingRefund = account.pendingRefund - totalAmount;
        if (totalAmount == 0) return (0, balance, pendingRefund);

        account.refundCount = uint8(kept);
        account.balance = uint112(balance);
        account.pendingRefund = uint112(pendingRefund);
        emit BalanceUpdated(user, provider, balance, pendingRefund);
        (bool ok,) = msg.sender.call{value: totalAmount}("");
        if (!ok) _revertLedgerTransferFailed();
    }

    /// @inheritdoc IServing
    function deleteAccount(address user, address provider) external onlyLedger {
        bytes32 key = _key(user, provider);
        SubAccount storage account = _accounts[key];
        uint256 balance = account.balance;
        if (account.exists) {
            for (uint256 i = account.refundCount; i > 0; --i) {
                account.refunds[i - 1] = 0;
            }
            _removeKey(_keys, account.position, false);
            _removeKey(_keysOfProvider[provider], account.providerPosition, true);
            _onDelete(key, account);
            account.balance = 0;
            account.pendingRefund = 0;
            account.refundCount = 0;
            account.exists = false;
            account.acknowledged = false;
            account.user = address(0);
            account.position = 0;
            account.provider = address(0);
            account.providerPosition = 0;
            if (bytes(account.additionalInfo).length != 0) delete account.additionalInfo;
        }
        emit AccountDeleted(user, provider, balance);
    }

    // --- Views ----------------------------------------------------------------------------------

    /// @inheritdoc IServing
    function accountExists(address user, address provider) external view returns (bool) {
        return _accounts[_key(user, provider)].exists;
    }

    /// @inheritdoc IServing
    function getPendingRefund(address user, address provider) external view returns (uint256) {
        return _existing(user, provider).pendingRefund;
    }

    /// @notice Stake of `provider`, which `removeService` returns.
    function stakeOf(address provider) external view returns (uint256) {
        return _stakes[provider];
    }

    /// @inheritdoc IERC165
    function supportsInterface(bytes4 interfaceId) external pure returns (bool) {
        return interfaceId == type(IServing).interfaceId || interfaceId == type(IERC165).interfaceId;
    }

    // --- For the service contracts ----------------------------------------------------------------

    function _initialize(uint256 locktime, address ledger, address owner_) internal {
        lockTime = locktime;
        ledgerAddress = ledger;
        _setOwner(owner_);
    }

    function _key(address user, address provider) internal pure returns (bytes32) {
        return keccak256(abi.encode(user, provider));
    }

    function _existing(address user, address provider) internal view returns (SubAccount storage account) {
        account = _accounts[_key(user, provider)];
        if (!account.exists) revert AccountNotExists(user, provider);
    }

    /// Live refunds in the form of the ABI, oldest first.
    function _refundsOf(SubAccount storage account) internal view returns (Refund[] memory refunds) {
        uint256 count = account.refundCount;
        refunds = new Refund[](count);
        for (uint256 i = 0; i < count; ++i) {
            uint256 refund = account.refunds[i];
            refunds[i] = Refund(i, refund >> 64, uint64(refund), false);
        }
    }

    /// Takes `amount` out of the sub-account for its provider, pending refunds last, and tells the
    /// ledger. The caller pays the provider.
    function _spend(SubAccount storage account, address user, address provider, uint256 amount) internal {
        uint256 free = account.balance - account.pendingRefund;
        if (amount > free) _cancelRefunds(account, amount - free);
        account.balance = uint112(account.balance - amount);
        ILedger(ledgerAddress).spendFund(user, amount);
        emit BalanceUpdated(user, provider, account.balance, account.pendingRefund);
    }

    /// Returns whether the stake reached the provider.
    function _returnStake() internal returns (bool ok) {
        uint256 stake = _stakes[msg.sender];
        if (stake == 0) return true;
        _stakes[msg.sender] = 0;
        emit ProviderStakeReturned(msg.sender, stake);
        (ok,) = msg.sender.call{value: stake}("");
    }

    /// The head of the caller's service, to be written back. A new one pays its stake and gets a place in the list.
    function _takePlace() internal returns (ServiceHead memory head) {
        head = _serviceHeads[msg.sender];
        if (head.position == 0) {
            if (msg.value < MIN_PROVIDER_STAKE) revert InsufficientStake(msg.value, MIN_PROVIDER_STAKE);
            _stakes[msg.sender] = msg.value;
            emit ProviderStaked(msg.sender, msg.value);
            _serviceProviders.push(msg.sender);
            head.position = uint32(_serviceProviders.length);
        } else if (msg.value != 0) {
            revert CannotAddStakeWhenUpdating();
        }
    }

    /// Takes the caller's service out of the list; the last one takes its place.
    function _leavePlace() internal {
        uint32 position = _existingHead(msg.sender).position;
        uint256 last = _serviceProviders.length;
        if (position != last) {
            address moved = _serviceProviders[last - 1];
            _serviceProviders[position - 1] = moved;
            _serviceHeads[moved].position = position;
        }
        _serviceProviders.pop();
        delete _serviceHeads[msg.sender];
    }

    function _existingHead(address provider) internal view returns (ServiceHead storage head) {
        head = _serviceHeads[provider];
        if (head.position == 0) revert ServiceNotExist(provider);
    }

    /// Sets the owner's flag of a service and returns its TEE signer.
    function _setServiceAcknowledged(address provider, bool acknowledged) private returns (address) {
        ServiceHead storage head = _existingHead(provider);
        head.teeSignerAcknowledged = acknowledged;
        return head.teeSignerAddress;
    }

    function _differs(string storage stored, string calldata text) internal view returns (bool) {
        if (bytes(stored).length != bytes(text).length) return true;
        return keccak256(bytes(stored)) != keccak256(bytes(text));
    }

    function _requireLength(string memory field, uint256 length, uint256 max) internal pure {
        if (length > max) revert FieldTooLong(field, length, max);
    }

    /// First and one-past-last position of a page.
    function _page(uint256 offset, uint256 limit, uint256 total)
        internal
        pure
        returns (uint256 start, uint256 end)
    {
        if (limit == 0) limit = MAX_PAGE;
        if (limit > MAX_PAGE) _revertLimitTooLarge(limit);
        start = offset < total ? offset : total;
        end = total - start < limit ? total : start + limit;
    }

    function _providersOf(address user) internal view returns (address[] memory) {
        return ILedger(ledgerAddress).getProvidersOf(user, address(this));
    }

    function _cancelRefunds(SubAccount storage account, uint256 amount) private {
        if (amount == 0) return;
        uint256 count = account.refundCount;
        uint256 cancelled;
        while (count > 0 && cancelled < amount) {
            uint256 refund = account.refunds[count - 1];
            uint256 part = refund >> 64;
            if (part <= amount - cancelled) {
                account.refunds[count - 1] = 0;
                --count;
            } else {
                part = amount - cancelled;
                account.refunds[count - 1] = refund - (part << 64);
            }
            cancelled += part;
        }
        account.refundCount = uint8(count);
        account.pendingRefund = uint112(account.pendingRefund - cancelled);
    }

    /// 2^112 neuron is five million times all coins there are; a development chain can still mint them.
    function _toUint112(uint256 value) private pure returns (uint112) {
        if (value > type(uint112).max) revert AmountTooLarge(value);
        return uint112(value);
    }

    function _appendKey(KeyList storage keys, bytes32 key) private {
        uint256 length = keys.length;
        keys.items[length] = key;
        keys.length = length + 1;
    }

    /// The last key takes the place of the removed one.
    function _removeKey(KeyList storage keys, uint256 position, bool ofProvider) private {
        uint256 last = keys.length - 1;
        if (position != last) {
            bytes32 moved = keys.items[last];
            keys.items[position] = moved;
            if (ofProvider) _accounts[moved].providerPosition = uint32(position);
            else _accounts[moved].position = uint32(position);
        }
        keys.length = last;
    }

    function _requirePair(address user, address provider) private pure {
        if (user == address(0)) revert InvalidAddress(user);
        if (provider == address(0)) revert InvalidAddress(provider);
        if (user == provider) revert ProviderCannotBeUser();
    }

    // --- What differs ---------------------------------------------------------------------------

    /// Clears what the service contract keeps beside the money.
    function _onDelete(bytes32 key, SubAccount storage account) internal virtual;

    function _requireLockTime(uint256 value) internal pure virtual;

    function _revertCallerNotLedger() internal view virtual;

    function _revertLedgerTransferFailed() internal pure virtual;

    function _revertLimitTooLarge(uint256 limit) internal pure virtual;
}
