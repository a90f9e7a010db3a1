// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Signatures} from "./base/Signatures.sol";
import {SubAccounts} from "./base/SubAccounts.sol";

/// @title Services, sub-accounts and batch settlement of inference.
contract InferenceServing is SubAccounts {
    struct ServiceParams {
        string serviceType;
        string url;
        string model;
        string verifiability;
        uint256 inputPrice;
        uint256 outputPrice;
        string additionalInfo;
        address teeSignerAddress;
    }

    struct Service {
        address provider;
        string serviceType;
        string url;
        uint256 inputPrice;
        uint256 outputPrice;
        uint256 updatedAt;
        string model;
        string verifiability;
        string additionalInfo;
        address teeSignerAddress;
        bool teeSignerAcknowledged;
    }

    /// What is stored of a service beside its head.
    struct ServiceBody {
        string serviceType;
        string url;
        uint256 inputPrice;
        uint256 outputPrice;
        string model;
        string verifiability;
        string additionalInfo;
    }

    struct Account {
        address user;
        address provider;
        uint256 nonce;
        uint256 balance;
        uint256 pendingRefund;
        Refund[] refunds;
        string additionalInfo;
        bool acknowledged;
        uint256 validRefundsLength;
        uint256 generation;
        uint256 revokedBitmap;
    }

    struct TEESettlementData {
        address user;
        address provider;
        uint256 totalFee;
        bytes32 requestsHash;
        uint256 nonce;
        bytes signature;
    }

    enum SettlementStatus {
        SUCCESS,
        PARTIAL,
        PROVIDER_MISMATCH,
        NO_TEE_SIGNER,
        INVALID_NONCE,
        INVALID_SIGNATURE
    }

    bytes32 private constant NAME_HASH = keccak256("0G Inference Serving");
    bytes32 private constant SETTLEMENT_TYPEHASH = keccak256(
        "TEESettlement(bytes32 requestsHash,uint256 nonce,address provider,address user,uint256 totalFee)"
    );
    uint256 private constant MAX_SETTLEMENTS = 50;
    uint256 private constant MAX_BATCH_USERS = 500;
    uint256 private constant MAX_TOKEN_IDS = 256;

    mapping(address provider => ServiceBody) private _serviceBodies;
    mapping(bytes32 key => uint256) private _revokedBitmaps;

    event ServiceUpdated(
        address indexed service,
        string serviceType,
        string url,
        uint256 inputPrice,
        uint256 outputPrice,
        uint256 updatedAt,
        string model,
        string verifiability
    );
    event ServiceRemoved(address indexed service);
    event TEESettlementResult(address indexed user, SettlementStatus status, uint256 unsettledAmount);
    /// Never emitted; kept so that existing interface copies still describe this contract.
    event BatchBalanceUpdated(address[] users, uint256[] balances, uint256[] pendingRefunds);
    event TokenRevoked(address indexed user, address indexed provider, uint8 tokenId);
    event TokensRevoked(address indexed user, address indexed provider, uint8[] tokenIds);
    event AllTokensRevoked(address indexed user, address indexed provider, uint256 newGeneration);
    event ContractInitialized(address indexed owner, uint256 lockTime, address ledgerAddress);

    error CallerNotLedger(address caller);
    error InvalidTEESignature(string reason);
    error LimitTooLarge(uint256 limit, uint256 max);
    error LockTimeOutOfRange(uint256 lockTime, uint256 min, uint256 max);
    error NoSettlementsProvided();
    error TooManySettlements(uint256 count, uint256 max);
    error TransferFailed();

    /// @param locktime seconds that refunds stay locked
    /// @param ledger the LedgerManager that may move user funds
    /// @param owner_ administrator
    function initialize(uint256 locktime, address ledger, address owner_) external {
        _requireNotInitialized();
        _requireLockTime(locktime);
        _initialize(locktime, ledger, owner_);
        emit ContractInitialized(owner_, locktime, ledger);
        _markInitialized();
    }

    // --- Provider -------------------------------------------------------------------------------

    /// @notice Registers the caller's service with its stake, or replaces its fields.
    /// The owner's acceptance is lost when anything but url and prices changes.
    function addOrUpdateService(ServiceParams calldata params) external payable {
        ServiceHead memory head = _takePlace();
        if (bytes(params.additionalInfo).length > MAX_ADDITIONAL_INFO_LENGTH) revert AdditionalInfoTooLong();
        _requireLength("url", bytes(params.url).length, MAX_URL_LENGTH);
        _requireLength("serviceType", bytes(params.serviceType).length, MAX_TEXT_LENGTH);
        _requireLength("model", bytes(params.model).length, MAX_TEXT_LENGTH);
        _requireLength("verifiability", bytes(params.verifiability).length, MAX_TEXT_LENGTH);

        ServiceBody storage body = _serviceBodies[msg.sender];
        // Unchanged texts are compared and not written again: much less gas for a price update.
        bool changed = head.teeSignerAddress != params.teeSignerAddress;
        if (_differs(body.serviceType, params.serviceType)) {
            body.serviceType = params.serviceType;
            changed = true;
        }
        if (_differs(body.model, params.model)) {
            body.model = params.model;
            changed = true;
        }
        if (_differs(body.verifiability, params.verifiability)) {
            body.verifiability = params.verifiability;
            changed = true;
        }
        if (_differs(body.additionalInfo, params.additionalInfo)) {
            body.additionalInfo = params.additionalInfo;
            changed = true;
        }
        if (changed) head.teeSignerAcknowledged = false;
        head.teeSignerAddress = params.teeSignerAddress;
        head.updatedAt = uint48(block.timestamp);
        _serviceHeads[msg.sender] = head;
        if (_differs(body.url, params.url)) body.url = params.url;
        body.inputPrice = params.inputPrice;
        body.outputPrice = params.outputPrice;
        emit ServiceUpdated(
            msg.sender,
            params.serviceType,
            params.url,
            params.inputPrice,
            params.outputPrice,
            block.timestamp,
            params.model,
            params.verifiability
        );
    }

    /// @notice Removes the caller's service and returns its stake.
    function removeService() external nonReentrant {
        _leavePlace();
        delete _serviceBodies[msg.sender];
        if (!_returnStake()) revert TransferFailed();
        emit ServiceRemoved(msg.sender);
    }

    /// @notice Collects signed fees of up to 50 items. An invalid item gets a status and does not
    /// stop the others; the sum is paid in one transfer at the end.
    function settleFeesWithTEE(TEESettlementData[] calldata settlements)
        external
        nonReentrant
        returns (SettlementStatus[] memory statuses)
    {
        _requireBatch(settlements.length);
        statuses = new SettlementStatus[](settlements.length);
        uint256 payout;
        for (uint256 i = 0; i < settlements.length; ++i) {
            TEESettlementData calldata item = settlements[i];
            (SettlementStatus status, uint256 unsettled) = _judge(item);
            if (status == SettlementStatus.SUCCESS || status == SettlementStatus.PARTIAL) {
                SubAccount storage account = _accounts[_key(item.user, msg.sender)];
                account.nonce = item.nonce;
                uint256 amount = item.totalFee - unsettled;
                if (amount > 0) {
                    _spend(account, item.user, msg.sender, amount);
                    payout += amount;
                }
            }
            statuses[i] = status;
            emit TEESettlementResult(item.user, status, unsettled);
        }
        if (payout > 0) {
            (bool ok,) = msg.sender.call{value: payout}("");
            if (!ok) revert TransferFailed();
        }
    }

    /// @notice What `settleFeesWithTEE` of the caller would answer, each item judged on its own
    /// against the present state. Items that would succeed are not listed.
    function previewSettlementResults(TEESettlementData[] calldata settlements)
        external
        view
        returns (
            address[] memory failedUsers,
            SettlementStatus[] memory failureReasons,
            address[] memory partialUsers,
            uint256[] memory partialAmounts
        )
    {
        uint256 count = settlements.length;
        _requireBatch(count);
        failedUsers = new address[](count);
        failureReasons = new SettlementStatus[](count);
        partialUsers = new address[](count);
        partialAmounts = new uint256[](count);
        uint256 failed;
        uint256 partials;
        for (uint256 i = 0; i < count; ++i) {
            (SettlementStatus status, uint256 unsettled) = _judge(settlements[i]);
            if (status == SettlementStatus.SUCCESS) continue;
            if (status == SettlementStatus.PARTIAL) {
                partialUsers[partials] = settlements[i].user;
                partialAmounts[partials++] = unsettled;
            } else {
                failedUsers[failed] = settlements[i].user;
                failureReasons[failed++] = status;
            }
        }
        assembly ("memory-safe") {
            mstore(failedUsers, failed)
            mstore(failureReasons, failed)
            mstore(partialUsers, partials)
            mstore(partialAmounts, partials)
        }
    }

    // --- User: session tokens -----------------------------------------------------------------------

    /// @notice Revokes one session token id of the present generation.
    function revokeToken(address provider, uint8 tokenId) external {
        _existing(msg.sender, provider);
        _revokedBitmaps[_key(msg.sender, provider)] |= uint256(1) << tokenId;
        emit TokenRevoked(msg.sender, provider, tokenId);
    }

    /// @notice Revokes several session token ids of the present generation.
    function revokeTokens(address provider, uint8[] calldata tokenIds) external {
        _existing(msg.sender, provider);
        _requireLength("tokenIds", tokenIds.length, MAX_TOKEN_IDS);
        uint256 bits;
        for (uint256 i = 0; i < tokenIds.length; ++i) {
            bits |= uint256(1) << tokenIds[i];
        }
        _revokedBitmaps[_key(msg.sender, provider)] |= bits;
        emit TokensRevoked(msg.sender, provider, tokenIds);
    }

    /// @notice Revokes every session token by starting a new generation.
    function revokeAllTokens(address provider) external {
        SubAccount storage account = _existing(msg.sender, provider);
        uint64 generation = account.generation + 1;
        account.generation = generation;
        delete _revokedBitmaps[_key(msg.sender, provider)];
        emit AllTokensRevoked(msg.sender, provider, generation);
    }

    // --- Views ----------------------------------------------------------------------------------

    /// @notice Whether a token id of the present generation is revoked.
    function isTokenRevoked(address user, address provider, uint8 tokenId) external view returns (bool) {
        _existing(user, provider);
        return (_revokedBitmaps[_key(user, provider)] >> tokenId) & 1 == 1;
    }

    /// @notice The sub-account of `user` with `provider`; reverts if there is none.
    function getAccount(address user, address provider) external view returns (Account memory) {
        return _view(_existing(user, provider));
    }

    /// @notice One page of all sub-accounts.
    function getAllAccounts(uint256 offset, uint256 limit)
        external
        view
        returns (Account[] memory accounts, uint256 total)
    {
        return _accountPage(_keys, offset, limit);
    }

    /// @notice One page of the sub-accounts with `provider`.
    function getAccountsByProvider(address provider, uint256 offset, uint256 limit)
        external
        view
        returns (Account[] memory accounts, uint256 total)
    {
        return _accountPage(_keysOfProvider[provider], offset, limit);
    }

    /// @notice One page of the sub-accounts of `user`.
    function getAccountsByUser(address user, uint256 offset, uint256 limit)
        external
        view
        returns (Account[] memory accounts, uint256 total)
    {
        address[] memory providers = _providersOf(user);
        total = providers.length;
        (uint256 start, uint256 end) = _page(offset, limit, total);
        accounts = new Account[](end - start);
        for (uint256 i = start; i < end; ++i) {
            accounts[i - start] = _view(_accounts[_key(user, providers[i])]);
        }
    }

    /// @notice Sub-accounts of `users` with the caller; a missing one is all zero.
    function getBatchAccountsByUsers(address[] calldata users)
        external
        view
        returns (Account[] memory accounts)
    {
        if (users.length > MAX_BATCH_USERS) revert BatchSizeTooLarge(users.length, MAX_BATCH_USERS);
        accounts = new Account[](users.length);
        for (uint256 i = 0; i < users.length; ++i) {
            SubAccount storage account = _accounts[_key(users[i], msg.sender)];
            if (account.exists) accounts[i] = _view(account);
        }
    }

    /// @notice The service of `provider`; reverts if there is none.
    function getService(address provider) external view returns (Service memory service) {
        _existingHead(provider);
        return _service(provider);
    }

    /// @notice One page of all services.
    function getAllServices(uint256 offset, uint256 limit)
        external
        view
        returns (Service[] memory services, uint256 total)
    {
        total = _serviceProviders.length;
        (uint256 start, uint256 end) = _page(offset, limit, total);
        services = new Service[](end - start);
        for (uint256 i = start; i < end; ++i) {
            services[i - start] = _service(_serviceProviders[i]);
        }
    }

    /// @notice Whether `provider` has a service.
    function serviceExists(address provider) external view returns (bool) {
        return _serviceHeads[provider].position != 0;
    }

    // --- Helpers ----------------------------------------------------------------------------------

    function _requireBatch(uint256 count) private pure {
        if (count == 0) revert NoSettlementsProvided();
        if (count > MAX_SETTLEMENTS) revert TooManySettlements(count, MAX_SETTLEMENTS);
    }

    function _service(address provider) private view returns (Service memory service) {
        ServiceHead memory head = _serviceHeads[provider];
        ServiceBody storage body = _serviceBodies[provider];
        service.provider = provider;
        service.serviceType = body.serviceType;
        service.url = body.url;
        service.inputPrice = body.inputPrice;
        service.outputPrice = body.outputPrice;
        service.updatedAt = head.updatedAt;
        service.model = body.model;
        service.verifiability = body.verifiability;
        service.additionalInfo = body.additionalInfo;
        service.teeSignerAddress = head.teeSignerAddress;
        service.teeSignerAcknowledged = head.teeSignerAcknowledged;
    }

    /// Status of one item for the caller, and the part of its fee that would stay unpaid.
    function _judge(TEESettlementData calldata item) private view returns (SettlementStatus, uint256) {
        uint256 fee = item.totalFee;
        if (item.provider != msg.sender) return (SettlementStatus.PROVIDER_MISMATCH, fee);
        SubAccount storage account = _accounts[_key(item.user, msg.sender)];
        if (!account.exists) return (SettlementStatus.INVALID_SIGNATURE, fee);
        ServiceHead memory head = _serviceHeads[msg.sender];
        if (head.position == 0) return (SettlementStatus.PROVIDER_MISMATCH, fee);
        address signer = head.teeSignerAddress;
        if (!account.acknowledged || !head.teeSignerAcknowledged || signer == address(0)) {
            return (SettlementStatus.NO_TEE_SIGNER, fee);
        }
        if (account.nonce >= item.nonce) return (SettlementStatus.INVALID_NONCE, fee);
        bytes32 structHash = keccak256(
            abi.encode(SETTLEMENT_TYPEHASH, item.requestsHash, item.nonce, item.provider, item.user, fee)
        );
        if (!Signatures.isValid(signer, Signatures.digest(NAME_HASH, structHash), item.signature)) {
            return (SettlementStatus.INVALID_SIGNATURE, fee);
        }
        uint256 balance = account.balance;
        if (fee > balance) return (SettlementStatus.PARTIAL, fee - balance);
        return (SettlementStatus.SUCCESS, 0);
    }

    function _view(SubAccount storage account) private view returns (Account memory result) {
        result.user = account.user;
        result.provider = account.provider;
        result.nonce = account.nonce;
        result.balance = account.balance;
        result.pendingRefund = account.pendingRefund;
        result.refunds = _refundsOf(account);
        result.additionalInfo = account.additionalInfo;
        result.acknowledged = account.acknowledged;
        result.validRefundsLength = account.refundCount;
        result.generation = account.generation;
        result.revokedBitmap = _revokedBitmaps[_key(result.user, result.provider)];
    }

    function _accountPage(KeyList storage keys, uint256 offset, uint256 limit)
        private
        view
        returns (Account[] memory accounts, uint256 total)
    {
        total = keys.length;
        (uint256 start, uint256 end) = _page(offset, limit, total);
        accounts = new Account[](end - start);
        for (uint256 i = start; i < end; ++i) {
            accounts[i - start] = _view(_accounts[keys.items[i]]);
        }
    }

    function _onDelete(bytes32 key, SubAccount storage) internal override {
        delete _revokedBitmaps[key];
    }

    function _requireLockTime(uint256 value) internal pure override {
        if (value < MIN_LOCKTIME || value > MAX_LOCKTIME) {
            revert LockTimeOutOfRange(value, MIN_LOCKTIME, MAX_LOCKTIME);
        }
    }

    function _revertCallerNotLedger() internal view override {
        revert CallerNotLedger(msg.sender);
    }

    function _revertLedgerTransferFailed() internal pure override {
        revert TransferFailed();
    }

    function _revertLimitTooLarge(uint256 limit) internal pure override {
        revert LimitTooLarge(limit, MAX_PAGE);
    }
}
