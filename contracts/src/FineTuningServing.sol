// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Signatures} from "./base/Signatures.sol";
import {SubAccounts} from "./base/SubAccounts.sol";

/// @title Services, sub-accounts, deliverables and settlement of fine-tuning.
/// @notice A deliverable is delivered by the provider, acknowledged by the user, and settled with
/// the encrypted key. Each pair has one open deliverable at a time. It can be left by the user alone
/// (`acknowledgeDeliverable`) and by the provider alone (`abandonDeliverable`).
contract FineTuningServing is SubAccounts {
    struct Quota {
        uint256 cpuCount;
        uint256 nodeMemory;
        uint256 gpuCount;
        uint256 nodeStorage;
        string gpuType;
    }

    struct Service {
        address provider;
        string url;
        Quota quota;
        uint256 pricePerToken;
        bool occupied;
        string[] models;
        address teeSignerAddress;
        bool teeSignerAcknowledged;
    }

    /// What is stored of a service beside its head.
    struct ServiceBody {
        bytes32 fingerprint; // of all that follows
        string url;
        Quota quota;
        uint256 pricePerToken;
        string[] models;
    }

    struct Deliverable {
        string id;
        bytes modelRootHash;
        bytes encryptedSecret;
        bool acknowledged;
        uint248 timestamp;
        bool settled;
    }

    struct AccountSummary {
        address user;
        address provider;
        uint256 nonce;
        uint256 balance;
        uint256 pendingRefund;
        string additionalInfo;
        uint256 validRefundsLength;
        uint256 deliverablesCount;
        bool acknowledged;
    }

    struct AccountDetails {
        address user;
        address provider;
        uint256 nonce;
        uint256 balance;
        uint256 pendingRefund;
        Refund[] refunds;
        string additionalInfo;
        Deliverable[] deliverables;
        uint256 validRefundsLength;
        uint256 deliverablesHead;
        uint256 deliverablesCount;
        bool acknowledged;
    }

    struct VerifierInput {
        string id;
        bytes encryptedSecret;
        bytes modelRootHash;
        uint256 nonce;
        bytes signature;
        uint256 taskFee;
        address user;
    }

    /// A deliverable as stored; `timestamp` is 0 where there is none.
    struct Record {
        string id;
        bytes modelRootHash;
        bytes encryptedSecret;
        uint64 timestamp;
        uint64 acknowledgeUntil; // before this time a settlement needs the user's acknowledgement
        bool acknowledged;
        bool settled;
    }

    bytes32 private constant NAME_HASH = keccak256("0G Fine-Tuning Serving");
    bytes32 private constant MESSAGE_TYPEHASH = keccak256(
        "VerifierMessage(string id,bytes encryptedSecret,bytes modelRootHash,uint256 nonce,uint256 taskFee,address user)"
    );
    uint256 private constant MAX_DELIVERABLES = 20;
    uint256 private constant MAX_ID_LENGTH = 256;
    uint256 private constant MAX_BATCH_USERS = 50;
    uint256 private constant MAX_ROOT_LENGTH = 64;
    uint256 private constant MAX_SECRET_LENGTH = 1024;
    uint256 private constant MAX_MODELS = 64;

    /// @notice Largest `ackWindow`, in seconds.
    uint256 public constant MAX_ACK_WINDOW = 7 days;

    /// @notice Percent of the fee that an unacknowledged deliverable costs.
    uint256 public penaltyPercentage;
    /// @notice Seconds after delivery in which only an acknowledged deliverable can be settled. A
    /// deliverable gets min(ackWindow, lockTime / 2) when it is added and keeps it.
    uint256 public ackWindow;

    mapping(address provider => ServiceBody) private _serviceBodies;
    mapping(bytes32 recordKey => Record) private _records;
    mapping(bytes32 ringKey => bytes32[MAX_DELIVERABLES]) private _rings;

    event ServiceUpdated(
        address indexed provider,
        string url,
        Quota quota,
        uint256 pricePerToken,
        address teeSignerAddress,
        bool occupied
    );
    event ServiceRemoved(address indexed provider);
    event DeliverableAdded(
        address indexed user,
        address indexed provider,
        string deliverableId,
        bytes modelRootHash,
        uint256 timestamp
    );
    event DeliverableAcknowledged(
        address indexed user, address indexed provider, string deliverableId, uint256 timestamp
    );
    event DeliverableEvicted(
        address indexed provider,
        address indexed user,
        string evictedDeliverableId,
        string newDeliverableId,
        uint256 timestamp
    );
    event DeliverableAbandoned(
        address indexed user, address indexed provider, string deliverableId, uint256 timestamp
    );
    event FeesSettled(
        address indexed user,
        address indexed provider,
        string deliverableId,
        uint256 fee,
        bool acknowledged,
        uint256 nonce
    );
    event PenaltyPercentageUpdated(uint256 oldPercentage, uint256 newPercentage);
    event AckWindowUpdated(uint256 oldWindow, uint256 newWindow);

    /// An unacknowledged deliverable can be settled from `until` on.
    error AckWindowOpen(uint256 until);
    error AckWindowOutOfRange(uint256 window, uint256 max);
    error CallerNotLedger();
    error CannotAbandonSettledDeliverable(string id);
    error CannotAcknowledgeSettledDeliverable(string id);
    error CannotEvictUnsettledDeliverable(string id);
    error DeliverableAlreadyExists(string id);
    error DeliverableAlreadySettled(string id);
    error DeliverableIdInvalidLength(uint256 length);
    error DeliverableNotExists(string id);
    error ETHTransferFailed();
    error InvalidLedgerAddress();
    error InvalidVerifierInput(string reason);
    error LimitTooLarge(uint256 limit);
    error LockTimeOutOfRange(uint256 lockTime);
    error PenaltyPercentageTooHigh(uint256 percentage);
    error PreviousDeliverableNotAcknowledged(string id);
    error SecretShouldBeEmpty();
    error SecretShouldNotBeEmpty();
    error TransferToLedgerFailed();

    /// @param locktime seconds that refunds stay locked
    /// @param ledger the LedgerManager that may move user funds
    /// @param owner_ administrator
    /// @param penalty percent of the fee for an unacknowledged deliverable
    function initialize(uint256 locktime, address ledger, address owner_, uint256 penalty) external {
        _requireNotInitialized();
        if (ledger.code.length == 0) revert InvalidLedgerAddress();
        if (penalty > 100) revert PenaltyPercentageTooHigh(penalty);
        _requireLockTime(locktime);
        _initialize(locktime, ledger, owner_);
        penaltyPercentage = penalty;
        ackWindow = 48 hours;
        _markInitialized();
    }

    // --- Owner ----------------------------------------------------------------------------------

    /// @notice Changes the penalty of all later settlements.
    function updatePenaltyPercentage(uint256 newPercentage) external onlyOwner {
        if (newPercentage > 100) revert PenaltyPercentageTooHigh(newPercentage);
        emit PenaltyPercentageUpdated(penaltyPercentage, newPercentage);
        penaltyPercentage = newPercentage;
    }

    /// @notice Changes the acknowledgement window of later deliverables, in seconds.
    function updateAckWindow(uint256 newWindow) external onlyOwner {
        if (newWindow > MAX_ACK_WINDOW) revert AckWindowOutOfRange(newWindow, MAX_ACK_WINDOW);
        emit AckWindowUpdated(ackWindow, newWindow);
        ackWindow = newWindow;
    }

    // --- Provider: service ------------------------------------------------------------------------

    /// @notice Registers the caller's service with its stake, or replaces its fields. The owner's
    /// acceptance is lost when the TEE signer changes.
    function addOrUpdateService(
        string calldata url,
        Quota calldata quota,
        uint256 pricePerToken,
        bool occupied,
        string[] calldata models,
        address teeSignerAddress
    ) external payable {
        ServiceHead memory head = _takePlace();
        _requireLength("url", bytes(url).length, MAX_URL_LENGTH);
        _requireLength("gpuType", bytes(quota.gpuType).length, MAX_TEXT_LENGTH);
        _requireLength("models", models.length, MAX_MODELS);

        if (head.teeSignerAddress != teeSignerAddress) {
            head.teeSignerAddress = teeSignerAddress;
            head.teeSignerAcknowledged = false;
        }
        head.occupied = occupied;
        _serviceHeads[msg.sender] = head;
        ServiceBody storage body = _serviceBodies[msg.sender];
        // What did not change is not even read: `occupied` is flipped twice in each task.
        bytes32 fingerprint = keccak256(abi.encode(url, quota, pricePerToken, models));
        if (body.fingerprint != fingerprint) {
            body.fingerprint = fingerprint;
            if (_differs(body.url, url)) body.url = url;
            body.quota.cpuCount = quota.cpuCount;
            body.quota.nodeMemory = quota.nodeMemory;
            body.quota.gpuCount = quota.gpuCount;
            body.quota.nodeStorage = quota.nodeStorage;
            if (_differs(body.quota.gpuType, quota.gpuType)) body.quota.gpuType = quota.gpuType;
            body.pricePerToken = pricePerToken;
            _storeModels(body.models, models);
        }
        emit ServiceUpdated(msg.sender, url, quota, pricePerToken, teeSignerAddress, occupied);
    }

    /// @notice Removes the caller's service and returns its stake.
    function removeService() external nonReentrant {
        _leavePlace();
        delete _serviceBodies[msg.sender];
        if (!_returnStake()) revert ETHTransferFailed();
        emit ServiceRemoved(msg.sender);
    }

    // --- Provider: deliverables ---------------------------------------------------------------------

    /// @notice Records a finished task for `user`. The pair's newest deliverable must be
    /// acknowledged or settled. Of 20 the oldest is dropped, if it is settled.
    function addDeliverable(address user, string calldata id, bytes calldata modelRootHash) external {
        _requireIdLength(id);
        _requireLength("modelRootHash", modelRootHash.length, MAX_ROOT_LENGTH);
        SubAccount storage account = _existing(user, msg.sender);
        bytes32 ringKey = _ringKey(_key(user, msg.sender), account.ringEpoch);
        bytes32 recordKey = _recordKey(ringKey, id);
        if (_records[recordKey].timestamp != 0) revert DeliverableAlreadyExists(id);

        bytes32[MAX_DELIVERABLES] storage ring = _rings[ringKey];
        uint256 count = account.ringCount;
        if (count > 0) {
            Record storage newest = _records[ring[_position(account, count - 1)]];
            if (!newest.acknowledged && !newest.settled) {
                revert PreviousDeliverableNotAcknowledged(newest.id);
            }
        }
        if (count < MAX_DELIVERABLES) {
            ring[count] = recordKey;
            account.ringCount = uint8(count + 1);
        } else {
            uint256 head = account.ringHead;
            Record storage oldest = _records[ring[head]];
            string memory evictedId = oldest.id;
            if (!oldest.settled) revert CannotEvictUnsettledDeliverable(evictedId);
            delete _records[ring[head]];
            ring[head] = recordKey;
            account.ringHead = uint8((head + 1) % MAX_DELIVERABLES);
            emit DeliverableEvicted(msg.sender, user, evictedId, id, block.timestamp);
        }

        uint256 window = lockTime / 2;
        if (ackWindow < window) window = ackWindow;
        Record storage record = _records[recordKey];
        record.id = id;
        record.modelRootHash = modelRootHash;
        record.timestamp = uint64(block.timestamp);
        record.acknowledgeUntil = uint64(block.timestamp + window);
        emit DeliverableAdded(user, msg.sender, id, modelRootHash, block.timestamp);
    }

    /// @notice Gives a deliverable up without payment; the pair is free for the next one.
    function abandonDeliverable(address user, string calldata id) external {
        Record storage record = _existingRecord(user, msg.sender, id);
        if (record.settled) revert CannotAbandonSettledDeliverable(id);
        record.acknowledged = true;
        record.settled = true;
        emit DeliverableAbandoned(user, msg.sender, id, block.timestamp);
    }

    /// @notice Collects the fee of one deliverable: all of it with the encrypted key if the user
    /// acknowledged, otherwise the penalty share once the acknowledgement window has passed.
    function settleFees(VerifierInput calldata input) external nonReentrant {
        SubAccount storage account = _existing(input.user, msg.sender);
        ServiceHead memory head = _existingHead(msg.sender);
        address signer = head.teeSignerAddress;
        if (!account.acknowledged || !head.teeSignerAcknowledged || signer == address(0)) {
            revert InvalidVerifierInput("TEE signer not acknowledged");
        }
        if (account.nonce >= input.nonce) {
            revert InvalidVerifierInput("nonce should larger than the current nonce");
        }

        Record storage record = _records[_recordKey(
            _ringKey(_key(input.user, msg.sender), account.ringEpoch), input.id
        )];
        uint256 deliveredAt = record.timestamp;
        bool acknowledged = record.acknowledged;
        uint256 fee = input.taskFee;
        if (deliveredAt != 0 && !acknowledged) fee = _share(fee, penaltyPercentage);
        if (account.balance < fee) revert InvalidVerifierInput("insufficient balance");

        if (deliveredAt == 0) revert DeliverableNotExists(input.id);
        if (record.settled) revert DeliverableAlreadySettled(input.id);
        if (keccak256(record.modelRootHash) != keccak256(input.modelRootHash)) {
            revert InvalidVerifierInput("model root hash mismatch");
        }
        if (!Signatures.isValid(signer, Signatures.digest(NAME_HASH, _structHash(input)), input.signature)) {
            revert InvalidVerifierInput("TEE settlement validation failed");
        }
        if (acknowledged) {
            if (input.encryptedSecret.length == 0) revert SecretShouldNotBeEmpty();
            _requireLength("encryptedSecret", input.encryptedSecret.length, MAX_SECRET_LENGTH);
            record.encryptedSecret = input.encryptedSecret;
        } else {
            if (input.encryptedSecret.length != 0) revert SecretShouldBeEmpty();
            if (block.timestamp < record.acknowledgeUntil) revert AckWindowOpen(record.acknowledgeUntil);
        }

        account.nonce = input.nonce;
        record.settled = true;
        emit FeesSettled(input.user, msg.sender, input.id, fee, acknowledged, input.nonce);
        _spend(account, input.user, msg.sender, fee);
        (bool ok,) = msg.sender.call{value: fee}("");
        if (!ok) revert ETHTransferFailed();
    }

    // --- User -----------------------------------------------------------------------------------

    /// @notice Accepts a deliverable, after which the provider can settle it in full and must
    /// publish the key to do so.
    function acknowledgeDeliverable(address provider, string calldata id) external {
        Record storage record = _existingRecord(msg.sender, provider, id);
        if (record.settled) revert CannotAcknowledgeSettledDeliverable(id);
        record.acknowledged = true;
        emit DeliverableAcknowledged(msg.sender, provider, id, block.timestamp);
    }

    // --- Views ----------------------------------------------------------------------------------

    /// @notice The sub-account of `user` with `provider`; reverts if there is none.
    function getAccount(address user, address provider)
        external
        view
        returns (AccountDetails memory details)
    {
        SubAccount storage account = _existing(user, provider);
        details.user = user;
        details.provider = provider;
        details.nonce = account.nonce;
        details.balance = account.balance;
        details.pendingRefund = account.pendingRefund;
        details.refunds = _refundsOf(account);
        details.additionalInfo = account.additionalInfo;
        details.deliverables = _deliverablesOf(account);
        details.validRefundsLength = account.refundCount;
        details.deliverablesHead = account.ringHead;
        details.deliverablesCount = account.ringCount;
        details.acknowledged = account.acknowledged;
    }

    /// @notice One page of all sub-accounts.
    function getAllAccounts(uint256 offset, uint256 limit)
        external
        view
        returns (AccountSummary[] memory accounts, uint256 total)
    {
        return _accountPage(_keys, offset, limit);
    }

    /// @notice One page of the sub-accounts with `provider`.
    function getAccountsByProvider(address provider, uint256 offset, uint256 limit)
        external
        view
        returns (AccountSummary[] memory accounts, uint256 total)
    {
        return _accountPage(_keysOfProvider[provider], offset, limit);
    }

    /// @notice One page of the sub-accounts of `user`.
    function getAccountsByUser(address user, uint256 offset, uint256 limit)
        external
        view
        returns (AccountSummary[] memory accounts, uint256 total)
    {
        address[] memory providers = _providersOf(user);
        total = providers.length;
        (uint256 start, uint256 end) = _page(offset, limit, total);
        accounts = new AccountSummary[](end - start);
        for (uint256 i = start; i < end; ++i) {
            accounts[i - start] = _summary(_accounts[_key(user, providers[i])]);
        }
    }

    /// @notice Sub-accounts of `users` with the caller; a missing one is all zero.
    function getBatchAccountsByUsers(address[] calldata users)
        external
        view
        returns (AccountSummary[] memory accounts)
    {
        if (users.length > MAX_BATCH_USERS) revert BatchSizeTooLarge(users.length, MAX_BATCH_USERS);
        accounts = new AccountSummary[](users.length);
        for (uint256 i = 0; i < users.length; ++i) {
            SubAccount storage account = _accounts[_key(users[i], msg.sender)];
            if (account.exists) accounts[i] = _summary(account);
        }
    }

    /// @notice One deliverable; reverts if there is none with this id.
    function getDeliverable(address user, address provider, string calldata id)
        external
        view
        returns (Deliverable memory)
    {
        return _view(_existingRecord(user, provider, id));
    }

    /// @notice Deliverables of a pair, oldest first.
    function getDeliverables(address user, address provider) external view returns (Deliverable[] memory) {
        return _deliverablesOf(_existing(user, provider));
    }

    /// @notice Time from which an unacknowledged deliverable can be settled for the penalty.
    function acknowledgeDeadline(address user, address provider, string calldata id)
        external
        view
        returns (uint256)
    {
        return _existingRecord(user, provider, id).acknowledgeUntil;
    }

    /// @notice The service of `provider`; reverts if there is none.
    function getService(address provider) external view returns (Service memory service) {
        _existingHead(provider);
        return _service(provider);
    }

    /// @notice All services.
    function getAllServices() external view returns (Service[] memory services) {
        uint256 total = _serviceProviders.length;
        services = new Service[](total);
        for (uint256 i = 0; i < total; ++i) {
            services[i] = _service(_serviceProviders[i]);
        }
    }

    // --- Helpers ----------------------------------------------------------------------------------

    function _requireIdLength(string calldata id) private pure {
        uint256 length = bytes(id).length;
        if (length == 0 || length > MAX_ID_LENGTH) revert DeliverableIdInvalidLength(length);
    }

    function _service(address provider) private view returns (Service memory service) {
        ServiceHead memory head = _serviceHeads[provider];
        ServiceBody storage body = _serviceBodies[provider];
        service.provider = provider;
        service.url = body.url;
        service.quota = body.quota;
        service.pricePerToken = body.pricePerToken;
        service.occupied = head.occupied;
        service.models = body.models;
        service.teeSignerAddress = head.teeSignerAddress;
        service.teeSignerAcknowledged = head.teeSignerAcknowledged;
    }

    function _storeModels(string[] storage stored, string[] calldata models) private {
        while (stored.length > models.length) {
            stored.pop();
        }
        for (uint256 i = 0; i < models.length; ++i) {
            _requireLength("model", bytes(models[i]).length, MAX_TEXT_LENGTH);
            if (i == stored.length) stored.push(models[i]);
            else if (_differs(stored[i], models[i])) stored[i] = models[i];
        }
    }

    /// Deliverables belong to one life of a sub-account: deletion moves on to the next epoch instead
    /// of clearing up to 20 records.
    function _ringKey(bytes32 accountKey, uint256 epoch) private pure returns (bytes32) {
        return keccak256(abi.encode(accountKey, epoch));
    }

    function _recordKey(bytes32 ringKey, string calldata id) private pure returns (bytes32) {
        return keccak256(abi.encode(ringKey, keccak256(bytes(id))));
    }

    /// Ring position of the n-th oldest deliverable.
    function _position(SubAccount storage account, uint256 age) private view returns (uint256) {
        return (account.ringHead + age) % MAX_DELIVERABLES;
    }

    function _existingRecord(address user, address provider, string calldata id)
        private
        view
        returns (Record storage record)
    {
        SubAccount storage account = _existing(user, provider);
        record = _records[_recordKey(_ringKey(_key(user, provider), account.ringEpoch), id)];
        if (record.timestamp == 0) revert DeliverableNotExists(id);
    }

    /// Percentage rounded down, without overflow for any amount.
    function _share(uint256 amount, uint256 percentage) private pure returns (uint256) {
        return amount / 100 * percentage + amount % 100 * percentage / 100;
    }

    function _structHash(VerifierInput calldata input) private pure returns (bytes32) {
        return keccak256(
            abi.encode(
                MESSAGE_TYPEHASH,
                keccak256(bytes(input.id)),
                keccak256(input.encryptedSecret),
                keccak256(input.modelRootHash),
                input.nonce,
                input.taskFee,
                input.user
            )
        );
    }

    function _view(Record storage record) private view returns (Deliverable memory) {
        return Deliverable(
            record.id,
            record.modelRootHash,
            record.encryptedSecret,
            record.acknowledged,
            record.timestamp,
            record.settled
        );
    }

    function _deliverablesOf(SubAccount storage account)
        private
        view
        returns (Deliverable[] memory deliverables)
    {
        bytes32[MAX_DELIVERABLES] storage ring =
            _rings[_ringKey(_key(account.user, account.provider), account.ringEpoch)];
        uint256 count = account.ringCount;
        deliverables = new Deliverable[](count);
        for (uint256 i = 0; i < count; ++i) {
            deliverables[i] = _view(_records[ring[_position(account, i)]]);
        }
    }

    function _summary(SubAccount storage account) private view returns (AccountSummary memory summary) {
        summary.user = account.user;
        summary.provider = account.provider;
        summary.nonce = account.nonce;
        summary.balance = account.balance;
        summary.pendingRefund = account.pendingRefund;
        summary.additionalInfo = account.additionalInfo;
        summary.validRefundsLength = account.refundCount;
        summary.deliverablesCount = account.ringCount;
        summary.acknowledged = account.acknowledged;
    }

    function _accountPage(KeyList storage keys, uint256 offset, uint256 limit)
        private
        view
        returns (AccountSummary[] memory accounts, uint256 total)
    {
        total = keys.length;
        (uint256 start, uint256 end) = _page(offset, limit, total);
        accounts = new AccountSummary[](end - start);
        for (uint256 i = start; i < end; ++i) {
            accounts[i - start] = _summary(_accounts[keys.items[i]]);
        }
    }

    function _onDelete(bytes32, SubAccount storage account) internal override {
        if (account.ringCount == 0) return;
        account.ringEpoch += 1;
        account.ringHead = 0;
        account.ringCount = 0;
    }

    function _requireLockTime(uint256 value) internal pure override {
        if (value < MIN_LOCKTIME || value > MAX_LOCKTIME) revert LockTimeOutOfRange(value);
    }

    function _revertCallerNotLedger() internal pure override {
        revert CallerNotLedger();
    }

    function _revertLedgerTransferFailed() internal pure override {
        revert TransferToLedgerFailed();
    }

    function _revertLimitTooLarge(uint256 limit) internal pure override {
        revert LimitTooLarge(limit);
    }
}
