"""web3.py against a fresh chain with development methods: python web3_probe.py RPC_URL"""

import sys

from web3 import Web3
from web3.exceptions import ContractLogicError, Web3RPCError

KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
web3 = Web3(Web3.HTTPProvider(sys.argv[1]))
account = web3.eth.account.from_key(KEY)
assert web3.is_connected() and web3.eth.chain_id == 31337 and web3.eth.syncing is False
assert web3.eth.get_balance("0x70997970C51812dc3A010C7d01b50e0d17dc79C8") == 10_000 * 10**18


def send(**fields):
    nonce = web3.eth.get_transaction_count(account.address, "pending")
    fees = {"gasPrice": web3.eth.gas_price}
    transaction = {"chainId": 31337, "nonce": nonce, "gas": 200_000, "value": 0, **fees, **fields}
    return web3.eth.send_raw_transaction(account.sign_transaction(transaction).raw_transaction)


def receipt(transaction_hash):
    return web3.eth.wait_for_transaction_receipt(transaction_hash, timeout=5, poll_latency=0.05)


COUNTER = "0x601980600b6000396000f360005460010180600055600052602a60206000a160206000f3"
deployed = receipt(send(data=COUNTER, to=""))
assert deployed.status == 1
counter = deployed.contractAddress
logs = web3.eth.filter({"address": counter})
counted = receipt(send(to=counter))
assert counted.status == 1 and len(counted.logs) == 1
assert len(logs.get_new_entries()) == 1 and logs.get_new_entries() == []
assert int.from_bytes(web3.eth.call({"to": counter})) == 2
assert int.from_bytes(web3.eth.call({"to": counter}, counted.blockNumber - 1)) == 1
assert int.from_bytes(web3.eth.get_storage_at(counter, 0)) == 1
assert web3.eth.estimate_gas({"to": counter, "from": account.address}) >= 21_000
assert len(web3.eth.get_logs({"address": counter, "fromBlock": 0})) == 1
block = web3.eth.get_block("latest", full_transactions=True)
assert block.transactions[0].hash == counted.transactionHash
assert web3.eth.get_block(block.hash).number == block.number
assert web3.eth.get_transaction(counted.transactionHash).blockNumber == block.number
history = web3.eth.fee_history(2, "latest", [25, 75])
assert len(history.baseFeePerGas) == 3 and len(history.reward) == 2
assert web3.eth.max_priority_fee == 10**9
assert "zerog-devchain" in web3.client_version

dynamic = {"maxFeePerGas": 3 * 10**9, "maxPriorityFeePerGas": 10**9}
nonce = web3.eth.get_transaction_count(account.address)
transaction = {"chainId": 31337, "nonce": nonce, "gas": 100_000, "to": counter, "value": 0, **dynamic}
assert receipt(web3.eth.send_raw_transaction(account.sign_transaction(transaction).raw_transaction)).type == 2

reverter = receipt(send(data="0x600d80600b6000396000f363deadbeef6000526004601cfd", to="")).contractAddress
for call in (web3.eth.call, web3.eth.estimate_gas):
    try:
        call({"to": reverter, "from": account.address})
        raise AssertionError("a reverting call succeeded")
    except ContractLogicError as error:
        assert error.data == "0xdeadbeef", error.data
assert receipt(send(to=reverter)).status == 0
try:
    send(to=counter, nonce=0)
    raise AssertionError("an old nonce was accepted")
except Web3RPCError as error:
    assert "nonce too low" in str(error)
try:
    send(to=counter, value=10**30)
    raise AssertionError("money was made")
except Web3RPCError as error:
    assert "insufficient funds" in str(error)
print("web3.py: ok")
