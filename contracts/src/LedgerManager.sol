// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {InitializedOnce} from "./base/InitializedOnce.sol";
import {Owned} from "./base/Owned.sol";
import {ReentrancyGuard} from "./base/ReentrancyGuard.sol";
import {ILedger} from "./interfaces/ILedger.sol";
import {IERC165, IServing} from "./interfaces/IServing.sol";

/// @title Prepaid accounts and the registry of service contracts.
/// @notice A user's money is here (available) or in sub-accounts of service contracts; `totalBalance`
/// is the sum of both. All amounts are in neuron.
contract LedgerManager is Owned, InitializedOnce, ReentrancyGuard, ILedger {
    struct Ledger {
        address user;
        uint256 availableBalance;
        uint256 totalBalance;
        string additionalInfo;
    }

    struct ServiceInfo {
        address serviceAddress;
        address serviceContract;
        string serviceType;
        string version;
        string fullName;
        string description;
        bool isRecommended;
        uint256 registeredAt;
    }

    struct Record {
        uint128 available;
        uint128 total;
        uint256 position; // in _users, from 1; 0 means no ledger
        string additionalInfo;
    }

    /// The first entry of a list also holds its length.
    struct ProviderEntry {
        address provider;
        uint96 count;
    }

    uint256 public constant MAX_PROVIDERS_PER_BATCH = 50;
    uint256 public constant MAX_SERVICES = 500;
    uint256 public constant MAX_PROVIDERS_PER_USER_PER_SERVICE = 50;
    uint256 public constant MAX_ADDITIONAL_INFO_LENGTH = 4096;
    uint256 public constant MIN_ACCOUNT_BALANCE = 3 ether;
    uint256 public constant MIN_TRANSFER_AMOUNT = 1 ether;

    uint256 private constant MAX_PAGE = 50;
    uint256 private constant ERC165_GAS = 30_000;

    mapping(address user => Record) private _records;
    /// Entries from `_userCount` on are leftovers.
    mapping(uint256 index => address) private _users;
    uint256 private _userCount;
    mapping(address user => mapping(address service => ProviderEntry[MAX_PROVIDERS_PER_USER_PER_SERVICE]))
        private _providers;

    mapping(address service => ServiceInfo) private _services;
    mapping(bytes32 nameHash => address) private _serviceByName;
    mapping(bytes32 typeHash => address) private _recommended;
    address[] private _serviceList;

    event ServiceRegistered(address indexed serviceAddress, string serviceName);
    event RecommendedServiceUpdated(string serviceType, string version, address serviceAddress);
    event LedgerInfoUpdated(address indexed user, string additionalInfo);
    event FundSpent(address indexed user, address indexed service, uint256 amount);
    /// Money arrived in a ledger, from `payer`.
    event FundDeposited(address indexed user, address indexed payer, uint256 amount);
    /// Money left the ledger for its user.
    event FundRefunded(address indexed user, uint256 amount);
    /// `amount` moved to a sub-account; `cancelled` of pending refunds became spendable again.
    event FundTransferred(
        address indexed user,
        address indexed provider,
        address indexed service,
        uint256 amount,
        uint256 cancelled
    );
    /// Unlocked refunds came back from a sub-account.
    event FundRetrieved(
        address indexed user, address indexed provider, address indexed service, uint256 amount
    );

    error LedgerNotExists(address user);
    error LedgerExists(address user);
    error InsufficientBalance(address user);
    error TooManyProviders(uint256 requested, uint256 maximum);
    error InvalidServiceType(string serviceType);
    error TooManyProvidersForService(uint256 current, uint256 maximum);
    error ServiceNotRegistered(address serviceAddress);
    error ServiceNameExists(string serviceName);
    error InvalidServiceAddress(address serviceAddress);
    error LedgerLocked();
    error CallerNotRegisteredService(address caller);
    error ServiceNotFound(address serviceAddress);
    error MinimumDepositRequired(uint256 provided, uint256 required);
    error AdditionalInfoTooLong(uint256 length, uint256 max);
    error ZeroAmountNotAllowed();
    error ZeroAddressNotAllowed();
    error InsufficientAvailableBalance(uint256 available, uint256 required);
    error TransferFailed();
    error CallFailed();
    error MustWithdrawAllFundsFirst(uint256 remainingBalance);
    error ServiceTypeRequired();
    error VersionRequired();
    error ServiceAlreadyRegistered(address serviceAddress);
    error ServiceMustImplementIServing(address serviceAddress);
    error ServiceRegistryLimitReached(uint256 limit);
    error NoRecommendedService(string serviceType);
    error DirectDepositsDisabled();
    error AmountTooLarge(uint256 amount);

    /// One operation at a time for each user.
    modifier locked(address user) {
        _requireUnlocked(user);
        _setLock(user, true);
        _;
        _setLock(user, false);
    }

    /// @param owner_ administrator
    function initialize(address owner_) external {
        _requireNotInitialized();
        _setOwner(owner_);
        _markInitialized();
    }

    /// @notice Only service contracts pay in without a call: refunds that they release.
    receive() external payable {
        if (_services[msg.sender].serviceAddress == address(0)) revert DirectDepositsDisabled();
    }

    // --- User -----------------------------------------------------------------------------------

    /// @notice Creates the caller's ledger with the value sent along.
    function addLedger(string calldata additionalInfo)
        external
        payable
        locked(msg.sender)
        returns (uint256, uint256)
    {
        if (msg.value < MIN_ACCOUNT_BALANCE) revert MinimumDepositRequired(msg.value, MIN_ACCOUNT_BALANCE);
        _requireInfoLength(additionalInfo);
        if (_records[msg.sender].position != 0) revert LedgerExists(msg.sender);
        _create(msg.sender, msg.value);
        if (bytes(additionalInfo).length != 0) _records[msg.sender].additionalInfo = additionalInfo;
        return (msg.value, 0);
    }

    /// @notice Adds the value sent along to the caller's ledger, creating it if needed.
    function depositFund() external payable locked(msg.sender) {
        _deposit(msg.sender);
    }

    /// @notice Adds the value sent along to another user's ledger, creating it if needed.
    function depositFundFor(address recipient) external payable locked(recipient) {
        if (recipient == address(0)) revert ZeroAddressNotAllowed();
        _deposit(recipient);
    }

    /// @notice Pays available funds out to the caller. What stays must be nothing or the minimum.
    function refund(uint256 amount) external locked(msg.sender) {
        Record storage record = _existing(msg.sender);
        uint256 available = record.available;
        if (available < amount) revert InsufficientBalance(msg.sender);
        uint256 rest = available - amount;
        if (rest != 0 && rest < MIN_ACCOUNT_BALANCE) revert MinimumDepositRequired(rest, MIN_ACCOUNT_BALANCE);
        uint256 total = record.total - amount;
        record.available = uint128(rest);
        record.total = uint128(total);
        if (total == 0) _remove(msg.sender);
        emit FundRefunded(msg.sender, amount);
        (bool ok,) = msg.sender.call{value: amount}("");
        if (!ok) revert TransferFailed();
    }

    /// @notice Moves available funds into a sub-account, creating it if needed. Pending refunds of
    /// that sub-account are cancelled first, newest first; only the rest of `amount` moves.
    function transferFund(address provider, string calldata serviceName, uint256 amount)
        external
        locked(msg.sender)
    {
        Record storage record = _existing(msg.sender);
        address service = _requireService(serviceName);
        uint256 cancelled;
        bool exists = IServing(service).accountExists(msg.sender, provider);
        if (exists) {
            cancelled = IServing(service).getPendingRefund(msg.sender, provider);
            if (cancelled > amount) cancelled = amount;
        } else {
            if (amount < MIN_TRANSFER_AMOUNT) revert MinimumDepositRequired(amount, MIN_TRANSFER_AMOUNT);
            _appendProvider(msg.sender, service, provider);
        }
        uint256 moved = amount - cancelled;
        uint256 available = record.available;
        if (available < moved) revert InsufficientAvailableBalance(available, moved);
        record.available = uint128(available - moved);
        emit FundTransferred(msg.sender, provider, service, moved, cancelled);
        bytes memory data = exists
            ? abi.encodeCall(IServing.depositFund, (msg.sender, provider, cancelled))
            : abi.encodeCall(IServing.addAccount, (msg.sender, provider, record.additionalInfo));
        _callService(service, moved, data);
    }

    /// @notice Collects unlocked refunds of the listed providers and requests the refund of all that
    /// is still free. What is requested now arrives with a later call, after the lock time.
    function retrieveFund(address[] calldata providers, string calldata serviceName)
        external
        locked(msg.sender)
    {
        if (providers.length > MAX_PROVIDERS_PER_BATCH) {
            revert TooManyProviders(providers.length, MAX_PROVIDERS_PER_BATCH);
        }
        IServing service = IServing(_requireService(serviceName));
        Record storage record = _existing(msg.sender);
        uint256 collected;
        for (uint256 i = 0; i < providers.length; ++i) {
            address provider = providers[i];
            if (!service.accountExists(msg.sender, provider)) continue;
            (uint256 amount,,) = service.processRefund(msg.sender, provider);
            if (amount != 0) {
                collected += amount;
                emit FundRetrieved(msg.sender, provider, address(service), amount);
            }
            service.requestRefundAll(msg.sender, provider);
        }
        if (collected != 0) record.available = _toUint128(record.available + collected);
    }

    /// @notice Deletes a ledger whose funds were all spent by settlements.
    function deleteLedger() external nonReentrant locked(msg.sender) {
        Record storage record = _existing(msg.sender);
        if (record.total != 0) revert MustWithdrawAllFundsFirst(record.total);
        _remove(msg.sender);
    }

    /// @notice Replaces the caller's text; new sub-accounts get a copy of it.
    function updateAdditionalInfo(string calldata additionalInfo) external locked(msg.sender) {
        _requireInfoLength(additionalInfo);
        _existing(msg.sender).additionalInfo = additionalInfo;
        emit LedgerInfoUpdated(msg.sender, additionalInfo);
    }

    // --- Service contracts ------------------------------------------------------------------------

    /// @inheritdoc ILedger
    function spendFund(address user, uint256 amount) external {
        if (_services[msg.sender].serviceAddress == address(0)) revert CallerNotRegisteredService(msg.sender);
        _requireUnlocked(user);
        Record storage record = _existing(user);
        uint256 outside = record.total - record.available;
        if (outside < amount) revert InsufficientAvailableBalance(outside, amount);
        record.total = uint128(record.total - amount);
        emit FundSpent(user, msg.sender, amount);
    }

    // --- Owner ----------------------------------------------------------------------------------

    /// @notice Adds a service contract under the name `serviceType-version`.
    function registerService(
        string calldata serviceType,
        string calldata version,
        address serviceAddress,
        string calldata description
    ) external onlyOwner {
        if (serviceAddress == address(0)) revert InvalidServiceAddress(serviceAddress);
        if (bytes(serviceType).length == 0) revert ServiceTypeRequired();
        if (bytes(version).length == 0) revert VersionRequired();
        if (_services[serviceAddress].serviceAddress != address(0)) {
            revert ServiceAlreadyRegistered(serviceAddress);
        }
        string memory fullName = _fullName(serviceType, version);
        bytes32 nameHash = keccak256(bytes(fullName));
        if (_serviceByName[nameHash] != address(0)) revert ServiceNameExists(fullName);
        if (!_implementsServing(serviceAddress)) revert ServiceMustImplementIServing(serviceAddress);
        if (_serviceList.length >= MAX_SERVICES) revert ServiceRegistryLimitReached(MAX_SERVICES);
        _services[serviceAddress] = ServiceInfo(
            serviceAddress, serviceAddress, serviceType, version, fullName, description, false, block.timestamp
        );
        _serviceByName[nameHash] = serviceAddress;
        _serviceList.push(serviceAddress);
        emit ServiceRegistered(serviceAddress, fullName);
    }

    /// @notice Marks one version of a service type as the recommended one.
    function setRecommendedService(string calldata serviceType, string calldata version) external onlyOwner {
        address service = _serviceByName[keccak256(bytes(_fullName(serviceType, version)))];
        if (service == address(0)) revert ServiceNotFound(address(0));
        bytes32 typeHash = keccak256(bytes(serviceType));
        address previous = _recommended[typeHash];
        if (previous != address(0)) _services[previous].isRecommended = false;
        _services[service].isRecommended = true;
        _recommended[typeHash] = service;
        emit RecommendedServiceUpdated(serviceType, version, service);
    }

    // --- Views ----------------------------------------------------------------------------------

    /// @notice The ledger of `user`; reverts if there is none.
    function getLedger(address user) external view returns (Ledger memory) {
        _existing(user);
        return _view(user);
    }

    /// @notice One page of all ledgers; at most 50 whatever `limit` says.
    function getAllLedgers(uint256 offset, uint256 limit)
        external
        view
        returns (Ledger[] memory ledgers, uint256 total)
    {
        total = _userCount;
        if (limit == 0 || limit > MAX_PAGE) limit = MAX_PAGE;
        uint256 start = offset < total ? offset : total;
        uint256 end = total - start < limit ? total : start + limit;
        ledgers = new Ledger[](end - start);
        for (uint256 i = start; i < end; ++i) {
            ledgers[i - start] = _view(_users[i]);
        }
    }

    /// @notice Providers with which `user` has a sub-account, by full service name.
    function getLedgerProviders(address user, string calldata serviceName)
        external
        view
        returns (address[] memory)
    {
        return _providerList(user, _requireService(serviceName));
    }

    /// @inheritdoc ILedger
    function getProvidersOf(address user, address service) external view returns (address[] memory) {
        return _providerList(user, service);
    }

    /// @notice Registry entry of a service contract; all zero if it is unknown.
    function getServiceInfo(address serviceAddress) external view returns (ServiceInfo memory) {
        return _services[serviceAddress];
    }

    /// @notice Address of a service contract by full name; zero if it is unknown.
    function getServiceAddressByName(string calldata serviceName) external view returns (address) {
        return _serviceByName[keccak256(bytes(serviceName))];
    }

    /// @notice All service contracts, in the order of registration.
    function getAllActiveServices() external view returns (ServiceInfo[] memory services) {
        services = new ServiceInfo[](_serviceList.length);
        for (uint256 i = 0; i < services.length; ++i) {
            services[i] = _services[_serviceList[i]];
        }
    }

    /// @notice The recommended version of a service type; reverts if there is none.
    function getRecommendedService(string calldata serviceType)
        external
        view
        returns (string memory version, address serviceAddress)
    {
        serviceAddress = _recommended[keccak256(bytes(serviceType))];
        if (serviceAddress == address(0)) revert NoRecommendedService(serviceType);
        version = _services[serviceAddress].version;
    }

    /// @notice All versions of a service type.
    function getAllVersions(string calldata serviceType)
        external
        view
        returns (string[] memory versions, address[] memory addresses, bool[] memory isRecommendedFlags)
    {
        uint256 total = _serviceList.length;
        versions = new string[](total);
        addresses = new address[](total);
        isRecommendedFlags = new bool[](total);
        uint256 found;
        bytes32 typeHash = keccak256(bytes(serviceType));
        for (uint256 i = 0; i < total; ++i) {
            ServiceInfo storage info = _services[_serviceList[i]];
            if (keccak256(bytes(info.serviceType)) != typeHash) continue;
            versions[found] = info.version;
            addresses[found] = info.serviceAddress;
            isRecommendedFlags[found++] = info.isRecommended;
        }
        assembly ("memory-safe") {
            mstore(versions, found)
            mstore(addresses, found)
            mstore(isRecommendedFlags, found)
        }
    }

    /// @notice Whether this version is the recommended one of its type; false if it is unknown.
    function isRecommendedVersion(string calldata serviceType, string calldata version)
        external
        view
        returns (bool)
    {
        return _services[_serviceByName[keccak256(bytes(_fullName(serviceType, version)))]].isRecommended;
    }

    // --- Helpers ----------------------------------------------------------------------------------

    function _existing(address user) private view returns (Record storage record) {
        record = _records[user];
        if (record.position == 0) revert LedgerNotExists(user);
    }

    function _requireService(string calldata serviceName) private view returns (address service) {
        service = _serviceByName[keccak256(bytes(serviceName))];
        if (service == address(0)) revert ServiceNotFound(address(0));
    }

    function _requireInfoLength(string calldata additionalInfo) private pure {
        uint256 length = bytes(additionalInfo).length;
        if (length > MAX_ADDITIONAL_INFO_LENGTH) {
            revert AdditionalInfoTooLong(length, MAX_ADDITIONAL_INFO_LENGTH);
        }
    }

    function _deposit(address user) private {
        if (msg.value == 0) revert ZeroAmountNotAllowed();
        Record storage record = _records[user];
        if (record.position == 0) {
            if (msg.value < MIN_ACCOUNT_BALANCE) {
                revert MinimumDepositRequired(msg.value, MIN_ACCOUNT_BALANCE);
            }
            _create(user, msg.value);
        } else {
            record.available = _toUint128(record.available + msg.value);
            record.total = _toUint128(record.total + msg.value);
            emit FundDeposited(user, msg.sender, msg.value);
        }
    }

    function _create(address user, uint256 value) private {
        Record storage record = _records[user];
        record.available = _toUint128(value);
        record.total = uint128(value);
        uint256 position = ++_userCount;
        _users[position - 1] = user;
        record.position = position;
        emit FundDeposited(user, msg.sender, value);
    }

    /// Removes a ledger without funds, and its empty sub-accounts.
    function _remove(address user) private {
        Record storage record = _records[user];
        uint256 position = record.position;
        uint256 last = _userCount;
        if (position != last) {
            address moved = _users[last - 1];
            _users[position - 1] = moved;
            _records[moved].position = position;
        }
        _userCount = last - 1;
        record.position = 0;
        if (bytes(record.additionalInfo).length != 0) delete record.additionalInfo;

        uint256 services = _serviceList.length;
        for (uint256 i = 0; i < services; ++i) {
            _removeSubAccounts(user, _serviceList[i]);
        }
    }

    /// A sub-account that its contract fails to delete stays in the user's list, so that it is
    /// never out of sight; it does not stop the user from leaving.
    function _removeSubAccounts(address user, address service) private {
        ProviderEntry[MAX_PROVIDERS_PER_USER_PER_SERVICE] storage entries = _providers[user][service];
        uint256 count = entries[0].count;
        uint256 kept;
        for (uint256 i = 0; i < count; ++i) {
            address provider = entries[i].provider;
            uint256 gasBefore = gasleft();
            try IServing(service).deleteAccount(user, provider) {}
            catch {
                // A call that runs out of gas leaves 1/64 behind. That is the sender's shortage and no
                // fault of the service; without this, a tight gas estimate would skip the deletion.
                if (gasleft() < gasBefore / 32) revert CallFailed();
                entries[kept++].provider = provider;
            }
        }
        for (uint256 i = kept; i < count; ++i) {
            entries[i].provider = address(0);
        }
        if (count != 0) entries[0].count = uint96(kept);
    }

    function _appendProvider(address user, address service, address provider) private {
        ProviderEntry[MAX_PROVIDERS_PER_USER_PER_SERVICE] storage entries = _providers[user][service];
        uint256 count = entries[0].count;
        if (count >= MAX_PROVIDERS_PER_USER_PER_SERVICE) {
            revert TooManyProvidersForService(count, MAX_PROVIDERS_PER_USER_PER_SERVICE);
        }
        entries[count].provider = provider;
        entries[0].count = uint96(count + 1);
    }

    function _providerList(address user, address service) private view returns (address[] memory list) {
        ProviderEntry[MAX_PROVIDERS_PER_USER_PER_SERVICE] storage entries = _providers[user][service];
        list = new address[](entries[0].count);
        for (uint256 i = 0; i < list.length; ++i) {
            list[i] = entries[i].provider;
        }
    }

    /// Reverts with the reason of the service contract, if it gives one.
    function _callService(address service, uint256 value, bytes memory data) private {
        (bool ok, bytes memory answer) = service.call{value: value}(data);
        if (ok) return;
        if (answer.length == 0) revert CallFailed();
        assembly ("memory-safe") {
            revert(add(answer, 32), mload(answer))
        }
    }

    function _view(address user) private view returns (Ledger memory) {
        Record storage record = _records[user];
        return Ledger(user, record.available, record.total, record.additionalInfo);
    }

    function _fullName(string calldata serviceType, string calldata version)
        private
        pure
        returns (string memory)
    {
        return string.concat(serviceType, "-", version);
    }

    function _implementsServing(address service) private view returns (bool) {
        return _supports(service, type(IERC165).interfaceId) && !_supports(service, 0xffffffff)
            && _supports(service, type(IServing).interfaceId);
    }

    function _supports(address service, bytes4 interfaceId) private view returns (bool) {
        (bool ok, bytes memory answer) = service.staticcall{gas: ERC165_GAS}(
            abi.encodeCall(IERC165.supportsInterface, (interfaceId))
        );
        return ok && answer.length >= 32 && abi.decode(answer, (uint256)) == 1;
    }

    function _toUint128(uint256 value) private pure returns (uint128) {
        if (value > type(uint128).max) revert AmountTooLarge(value);
        return uint128(value);
    }

    function _requireUnlocked(address user) private view {
        uint256 slot = _lockSlot(user);
        uint256 entered;
        assembly ("memory-safe") {
            entered := tload(slot)
        }
        if (entered != 0) revert LedgerLocked();
    }

    function _setLock(address user, bool entered) private {
        uint256 slot = _lockSlot(user);
        assembly ("memory-safe") {
            tstore(slot, entered)
        }
    }

    /// Transient slot of a user's lock, above the slots that the compiler hands out.
    function _lockSlot(address user) private pure returns (uint256) {
        return (1 << 160) | uint256(uint160(user));
    }
}
