// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

interface IMarket {
    function pricePerSector() external view returns (uint256);
}

/// @title Order of all stored files, and their fees.
/// @notice A submission lists the largest power-of-two subtrees of a padded file. It gets a place in
/// one endless sequence of 256-byte sectors, and storage nodes learn of it from the `Submit` event.
contract Flow {
    struct SubmissionNode {
        bytes32 root;
        uint256 height;
    }

    struct SubmissionData {
        uint256 length;
        bytes tags;
        SubmissionNode[] nodes;
    }

    struct Submission {
        SubmissionData data;
        address submitter;
    }

    uint256 private constant SECTOR_BYTES = 256;
    uint256 private constant SEGMENT_SECTORS = 1024;
    uint256 private constant MAX_HEIGHT = 64;
    /// Subtrees of one file span less than this many heights: padding is to 1/16 of the file.
    uint256 private constant MAX_HEIGHT_SPAN = 4;

    /// @notice Contract that names the price and receives the fees.
    address public immutable market;

    /// Submissions so far.
    uint128 private _count;
    /// Sectors in use. Sector 0 is reserved.
    uint128 private _length = 1;

    event Submit(
        address indexed sender,
        bytes32 indexed identity,
        uint256 submissionIndex,
        uint256 startPos,
        uint256 length,
        SubmissionData submission
    );

    error NotEnoughFee(uint256 price, uint256 sectors, uint256 paid);
    error FeeTransferFailed();

    constructor(address market_) {
        market = market_;
    }

    /// @notice A surplus pays for clients that estimate a submission before attaching its fee.
    receive() external payable {}

    /// @notice Adds one file. The fee must be in the contract's balance, normally sent along;
    /// what is more than the fee stays here.
    /// @return index position among all submissions
    /// @return digest keccak256 over the subtree roots
    /// @return startIndex first sector
    /// @return length sectors of the padded file
    function submit(Submission calldata submission)
        external
        payable
        returns (uint256 index, bytes32 digest, uint256 startIndex, uint256 length)
    {
        return _submit(submission);
    }

    /// @notice Adds several files in one transaction.
    function batchSubmit(Submission[] calldata submissions)
        external
        payable
        returns (
            uint256[] memory indexes,
            bytes32[] memory digests,
            uint256[] memory startIndexes,
            uint256[] memory lengths
        )
    {
        uint256 count = submissions.length;
        indexes = new uint256[](count);
        digests = new bytes32[](count);
        startIndexes = new uint256[](count);
        lengths = new uint256[](count);
        for (uint256 i = 0; i < count; ++i) {
            (indexes[i], digests[i], startIndexes[i], lengths[i]) = _submit(submissions[i]);
        }
    }

    /// @notice Submissions so far.
    function numSubmissions() external view returns (uint256) {
        return _count;
    }

    /// @notice Index that the next submission will get.
    function submissionIndex() external view returns (uint256) {
        return _count;
    }

    /// @notice Sectors in use, and the height that is not yet part of a tree (always 0: this
    /// contract keeps no tree of the sequence).
    function tree() external view returns (uint256 currentLength, uint256 unstagedHeight) {
        return (_length, 0);
    }

    /// @notice Always false.
    function paused() external pure returns (bool) {
        return false;
    }

    function _submit(Submission calldata submission)
        private
        returns (uint256 index, bytes32 digest, uint256 startIndex, uint256 length)
    {
        SubmissionData calldata data = submission.data;
        require(submission.submitter != address(0) && _isValid(data), "Invalid submission");

        length = _sectors(data.nodes);
        digest = _identity(data.nodes);
        uint256 end;
        (startIndex, end) = _place(data.nodes, length);
        index = _count;
        _count = uint128(index + 1);
        _length = uint128(end);

        _chargeFee(length);
        emit Submit(submission.submitter, digest, index, startIndex, length, data);
    }

    /// Exactly the lists that padding produces: descending heights close together, and no
    /// larger than the file needs.
    function _isValid(SubmissionData calldata data) private pure returns (bool) {
        SubmissionNode[] calldata nodes = data.nodes;
        uint256 count = nodes.length;
        if (count == 0) return false;
        uint256 first = nodes[0].height;
        if (first >= MAX_HEIGHT || first - nodes[count - 1].height >= MAX_HEIGHT_SPAN) return false;
        for (uint256 i = 1; i < count; ++i) {
            // An ascending pair ends in the arithmetic panic, as it does on the public networks.
            if (nodes[i - 1].height - nodes[i].height == 0) return false;
        }
        uint256 capacity = _sectors(nodes);
        uint256 lastCapacity;
        if (capacity < 16) {
            lastCapacity = capacity - 1;
        } else if (count == 1) {
            lastCapacity = capacity - capacity / 16;
        } else {
            lastCapacity = capacity - (uint256(1) << (first - 3));
        }
        return data.length <= capacity * SECTOR_BYTES && data.length > lastCapacity * SECTOR_BYTES;
    }

    function _sectors(SubmissionNode[] calldata nodes) private pure returns (uint256 sectors) {
        for (uint256 i = 0; i < nodes.length; ++i) {
            sectors += uint256(1) << nodes[i].height;
        }
    }

    function _identity(SubmissionNode[] calldata nodes) private pure returns (bytes32) {
        bytes32[] memory roots = new bytes32[](nodes.length);
        for (uint256 i = 0; i < nodes.length; ++i) {
            roots[i] = nodes[i].root;
        }
        return keccak256(abi.encodePacked(roots));
    }

    /// Each subtree sits at a multiple of its size, and a file lies inside one segment or starts
    /// at a segment boundary.
    function _place(SubmissionNode[] calldata nodes, uint256 sectors)
        private
        view
        returns (uint256 start, uint256 end)
    {
        end = _length;
        start = _align(end, uint256(1) << nodes[0].height);
        bool splitsSegment = start % SEGMENT_SECTORS != 0
            && start / SEGMENT_SECTORS != (start + sectors - 1) / SEGMENT_SECTORS;
        if (splitsSegment) end = _align(end, SEGMENT_SECTORS);
        for (uint256 i = 0; i < nodes.length; ++i) {
            uint256 size = uint256(1) << nodes[i].height;
            uint256 place = _align(end, size);
            if (i == 0) start = place;
            end = place + size;
        }
    }

    function _align(uint256 position, uint256 unit) private pure returns (uint256) {
        return (position + unit - 1) / unit * unit;
    }

    function _chargeFee(uint256 sectors) private {
        uint256 price = IMarket(market).pricePerSector();
        uint256 fee = price * sectors;
        uint256 paid = address(this).balance;
        if (paid < fee) revert NotEnoughFee(price, sectors, paid);
        if (fee == 0) return;
        (bool ok,) = market.call{value: fee}("");
        if (!ok) revert FeeTransferFailed();
    }
}
