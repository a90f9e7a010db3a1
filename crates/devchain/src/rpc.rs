//! The JSON-RPC methods.

use std::time::Instant;

use alloy_consensus::Transaction as _;
use alloy_eips::{BlockId, BlockNumberOrTag};
use alloy_primitives::{Address, B256, Bytes, U64, U256, keccak256};
use alloy_rpc_types_eth::{FeeHistory, Filter, FilterBlockOption, Transaction, TransactionRequest};
use parking_lot::{Mutex, RwLock};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    Limits, RpcError,
    chain::{Chain, Located, TIP_WEI},
    execution,
    filters::{Filters, Watch},
};

const CLIENT_VERSION: &str = concat!("zerog-devchain/", env!("CARGO_PKG_VERSION"), "/rust");
/// As geth: more blocks than this are not reported at once.
const MAX_FEE_HISTORY_BLOCKS: u64 = 1_024;
const MAX_REWARD_PERCENTILES: usize = 100;
/// `anvil_mine` mines while it holds the chain.
const MAX_MINED_AT_ONCE: u64 = 10_000;

/// A chain with the state that serving it needs.
pub(crate) struct Service {
    pub(crate) chain: RwLock<Chain>,
    pub(crate) filters: Mutex<Filters>,
    pub(crate) limits: Limits,
    pub(crate) dev_methods: bool,
}

pub(crate) fn to_value(result: impl Serialize) -> Result<Value, RpcError> {
    serde_json::to_value(result)
        .map_err(|error| RpcError::new(-32603, format!("cannot encode the result: {error}")))
}

impl Service {
    /// Carries out one call.
    pub(crate) fn call(&self, method: &str, parameters: &[Value]) -> Result<Value, RpcError> {
        let parameters = Parameters(parameters);
        match method {
            "eth_chainId" => to_value(U64::from(self.chain.read().chain_id())),
            "net_version" => to_value(self.chain.read().chain_id().to_string()),
            "net_listening" => to_value(true),
            "net_peerCount" => to_value(U64::ZERO),
            "web3_clientVersion" => to_value(CLIENT_VERSION),
            "web3_sha3" => to_value(keccak256(parameters.get::<Bytes>(0)?)),
            "eth_syncing" | "eth_mining" => to_value(false),
            // The node holds no keys; clients sign.
            "eth_accounts" => to_value(Vec::<Address>::new()),
            "eth_blockNumber" => to_value(U64::from(self.chain.read().tip_number())),
            "eth_gasPrice" => to_value(U64::from(self.chain.read().next_base_fee() + TIP_WEI)),
            "eth_maxPriorityFeePerGas" => to_value(U64::from(TIP_WEI)),
            "eth_blobBaseFee" => to_value(U64::from(1)),
            "eth_feeHistory" => self.fee_history(parameters),

            "eth_getBlockByNumber" => {
                let chain = self.chain.read();
                let number = chain.number(parameters.get(0)?);
                let full = parameters.optional(1)?.unwrap_or(false);
                to_value(
                    number
                        .and_then(|number| chain.block(number))
                        .map(|block| block.to_rpc(full)),
                )
            }
            "eth_getBlockByHash" => {
                let chain = self.chain.read();
                let full = parameters.optional(1)?.unwrap_or(false);
                to_value(
                    chain
                        .block_by_hash(parameters.get(0)?)
                        .map(|block| block.to_rpc(full)),
                )
            }
            "eth_getBlockTransactionCountByNumber" => {
                let chain = self.chain.read();
                let block = chain
                    .number(parameters.get(0)?)
                    .and_then(|number| chain.block(number));
                to_value(block.map(|block| U64::from(block.transaction.iter().len())))
            }
            "eth_getBlockTransactionCountByHash" => {
                let chain = self.chain.read();
                let block = chain.block_by_hash(parameters.get(0)?);
                to_value(block.map(|block| U64::from(block.transaction.iter().len())))
            }
            "eth_getBlockReceipts" => {
                let chain = self.chain.read();
                let Ok(number) = chain.resolve(parameters.get(0)?) else {
                    return Ok(Value::Null);
                };
                to_value(chain.block(number).map(|block| {
                    block
                        .transaction
                        .iter()
                        .map(|(_, receipt)| receipt)
                        .collect::<Vec<_>>()
                }))
            }
            "eth_getTransactionByHash" => match self.chain.read().transaction(parameters.get(0)?) {
                Some(Located::Mined(transaction)) => to_value(transaction),
                Some(Located::Queued(transaction)) => to_value(Transaction {
                    effective_gas_price: Some(transaction.max_fee_per_gas()),
                    inner: transaction.clone(),
                    block_hash: None,
                    block_number: None,
                    transaction_index: None,
                    block_timestamp: None,
                }),
                None => Ok(Value::Null),
            },
            "eth_getTransactionByBlockNumberAndIndex" => {
                let chain = self.chain.read();
                let block = chain
                    .number(parameters.get(0)?)
                    .and_then(|number| chain.block(number));
                let index: U64 = parameters.get(1)?;
                let transaction = block
                    .and_then(|block| block.transaction.as_ref())
                    .filter(|_| index.is_zero());
                to_value(transaction.map(|(transaction, _)| transaction))
            }
            "eth_getTransactionReceipt" => to_value(self.chain.read().receipt(parameters.get(0)?)),

            "eth_getTransactionCount" => {
                let chain = self.chain.read();
                let address = parameters.get(0)?;
                let block: Option<BlockId> = parameters.optional(1)?;
                to_value(U64::from(match block {
                    Some(BlockId::Number(BlockNumberOrTag::Pending)) => {
                        chain.pending_nonce(address)
                    }
                    block => {
                        chain
                            .account(address, chain.resolve(block.unwrap_or_default())?)
                            .nonce
                    }
                }))
            }
            "eth_getBalance" => {
                let chain = self.chain.read();
                to_value(
                    chain
                        .account(parameters.get(0)?, parameters.block(1, &chain)?)
                        .balance,
                )
            }
            "eth_getCode" => {
                let chain = self.chain.read();
                to_value(chain.code(parameters.get(0)?, parameters.block(1, &chain)?))
            }
            "eth_getStorageAt" => {
                let chain = self.chain.read();
                let slot = chain.storage(
                    parameters.get(0)?,
                    parameters.get(1)?,
                    parameters.block(2, &chain)?,
                );
                to_value(B256::from(slot))
            }

            "eth_call" => {
                let chain = self.chain.read();
                parameters.refuse_overrides(2)?;
                let request: TransactionRequest = parameters.get(0)?;
                let gas_limit = request.gas.unwrap_or(u64::MAX).min(self.limits.call_gas);
                let result = chain.call(&request, parameters.block(1, &chain)?, gas_limit)?;
                to_value(execution::call_output(result, gas_limit)?)
            }
            "eth_estimateGas" => {
                let chain = self.chain.read();
                parameters.refuse_overrides(2)?;
                to_value(U64::from(chain.estimate_gas(
                    &parameters.get(0)?,
                    parameters.block(1, &chain)?,
                )?))
            }
            "eth_sendRawTransaction" => {
                let raw: Bytes = parameters.get(0)?;
                to_value(self.chain.write().send(&raw)?)
            }

            "eth_getLogs" => {
                let filter: Filter = parameters.get(0)?;
                let chain = self.chain.read();
                let tip = chain.tip_number();
                self.logs(&chain, &filter, tip)
            }
            "eth_newFilter" => self.install(Watch::Logs(Box::new(parameters.get(0)?))),
            "eth_newBlockFilter" => self.install(Watch::Blocks),
            "eth_newPendingTransactionFilter" => self.install(Watch::Transactions),
            "eth_getFilterChanges" => {
                let id: U64 = parameters.get(0)?;
                let chain = self.chain.read();
                self.filters
                    .lock()
                    .changes(id.to(), &chain, self.limits.logs, Instant::now())
            }
            "eth_getFilterLogs" => {
                let id: U64 = parameters.get(0)?;
                let chain = self.chain.read();
                let (filter, created_at) = self.filters.lock().log_filter(id.to())?;
                self.logs(&chain, &filter, created_at)
            }
            "eth_uninstallFilter" => to_value(
                self.filters
                    .lock()
                    .uninstall(parameters.get::<U64>(0)?.to()),
            ),

            _ if self.dev_methods => self.development_call(method, parameters),
            _ => Err(RpcError::method_not_found(method)),
        }
    }

    /// Methods that move time, money and history, for tests.
    fn development_call(
        &self,
        method: &str,
        parameters: Parameters<'_>,
    ) -> Result<Value, RpcError> {
        match method {
            "evm_increaseTime" | "anvil_increaseTime" => {
                to_value(self.chain.write().increase_time(parameters.number(0)?)?)
            }
            "evm_setNextBlockTimestamp" | "anvil_setNextBlockTimestamp" => {
                self.chain
                    .write()
                    .set_next_timestamp(parameters.number(0)?)?;
                Ok(Value::Null)
            }
            "evm_mine" => {
                let mut chain = self.chain.write();
                match parameters.0.first() {
                    None | Some(Value::Null) => {}
                    Some(Value::Object(options)) => {
                        if let Some(timestamp) = options
                            .get("timestamp")
                            .filter(|timestamp| !timestamp.is_null())
                        {
                            chain.set_next_timestamp(parse_number(timestamp)?)?;
                        }
                    }
                    Some(timestamp) => chain.set_next_timestamp(parse_number(timestamp)?)?,
                }
                chain.mine_empty()?;
                to_value("0x0")
            }
            "anvil_mine" | "hardhat_mine" => {
                let mut chain = self.chain.write();
                let count = if parameters.0.is_empty() {
                    1
                } else {
                    parameters.number(0)?
                };
                if count > MAX_MINED_AT_ONCE {
                    return Err(RpcError::limit(format!(
                        "at most {MAX_MINED_AT_ONCE} blocks at once"
                    )));
                }
                for _ in 0..count {
                    chain.mine_empty()?;
                }
                Ok(Value::Null)
            }
            "evm_snapshot" | "anvil_snapshot" => to_value(U64::from(self.chain.write().snapshot())),
            "evm_revert" | "anvil_revert" => {
                let id = parameters.number(0)?;
                let mut chain = self.chain.write();
                let height = chain.revert(id)?;
                if let Some(height) = height {
                    self.filters.lock().rewind(height);
                }
                to_value(height.is_some())
            }
            "anvil_setBalance" | "hardhat_setBalance" => {
                let (address, balance): (Address, U256) = (parameters.get(0)?, parameters.get(1)?);
                self.chain.write().set_balance(address, balance)?;
                Ok(Value::Null)
            }
            _ => Err(RpcError::method_not_found(method)),
        }
    }

    fn install(&self, watch: Watch) -> Result<Value, RpcError> {
        let tip = self.chain.read().tip_number();
        to_value(U64::from(self.filters.lock().install(
            watch,
            tip,
            Instant::now(),
        )))
    }

    /// `default_from` stands in for a missing `fromBlock`.
    fn logs(&self, chain: &Chain, filter: &Filter, default_from: u64) -> Result<Value, RpcError> {
        let (from, to) = match &filter.block_option {
            FilterBlockOption::AtBlockHash(hash) => {
                let number = chain.block_by_hash(*hash).map(|block| block.header.number);
                let number = number.ok_or_else(|| RpcError::server("unknown block"))?;
                (number, number)
            }
            FilterBlockOption::Range {
                from_block,
                to_block,
            } => {
                let number = |tag: &Option<BlockNumberOrTag>, missing| match tag {
                    None => missing,
                    Some(BlockNumberOrTag::Number(number)) => *number,
                    Some(tag) => chain.number(*tag).unwrap_or(missing),
                };
                (
                    number(from_block, default_from),
                    number(to_block, chain.tip_number()),
                )
            }
        };
        if from > to {
            // A range that starts in the future is an ordinary poll; one that is upside down is a mistake.
            return if from > chain.tip_number() {
                to_value(Vec::<()>::new())
            } else {
                Err(RpcError::invalid_params("invalid block range params"))
            };
        }
        let to = to.min(chain.tip_number());
        if to.saturating_sub(from) >= self.limits.log_blocks {
            return Err(RpcError::limit(format!(
                "query exceeds the range of {} blocks",
                self.limits.log_blocks
            )));
        }
        to_value(chain.logs(filter, from, to, self.limits.logs)?)
    }

    fn fee_history(&self, parameters: Parameters<'_>) -> Result<Value, RpcError> {
        let chain = self.chain.read();
        let newest = parameters.block(1, &chain)?;
        let count = parameters
            .number(0)?
            .clamp(1, MAX_FEE_HISTORY_BLOCKS)
            .min(newest + 1);
        let percentiles: Option<Vec<f64>> = parameters.optional(2)?;
        if let Some(percentiles) = &percentiles {
            let ascending = percentiles.is_sorted();
            if !ascending
                || percentiles.len() > MAX_REWARD_PERCENTILES
                || percentiles
                    .iter()
                    .any(|percentile| !(0.0..=100.0).contains(percentile))
            {
                return Err(RpcError::invalid_params("invalid reward percentile"));
            }
        }
        let oldest = newest + 1 - count;
        let blocks = &chain.blocks_from(oldest)[..count as usize];
        let base_fee = |header: &alloy_rpc_types_eth::Header| {
            u128::from(header.base_fee_per_gas.unwrap_or_default())
        };
        let after_newest = chain
            .block(newest + 1)
            .map_or(u128::from(chain.next_base_fee()), |block| {
                base_fee(&block.header)
            });
        to_value(FeeHistory {
            base_fee_per_gas: blocks
                .iter()
                .map(|block| base_fee(&block.header))
                .chain([after_newest])
                .collect(),
            gas_used_ratio: blocks
                .iter()
                .map(|block| block.header.gas_used as f64 / block.header.gas_limit as f64)
                .collect(),
            oldest_block: oldest,
            reward: percentiles.map(|wanted| {
                blocks
                    .iter()
                    .map(|block| {
                        let tip = block
                            .transaction
                            .as_ref()
                            .map_or(0, |_| u128::from(TIP_WEI));
                        vec![tip; wanted.len()]
                    })
                    .collect()
            }),
            ..Default::default()
        })
    }
}

/// Positional parameters of a call.
#[derive(Clone, Copy)]
struct Parameters<'a>(&'a [Value]);

impl Parameters<'_> {
    fn get<T: DeserializeOwned>(self, index: usize) -> Result<T, RpcError> {
        let value = self.0.get(index).ok_or_else(|| {
            RpcError::invalid_params(format!("missing value for argument {index}"))
        })?;
        parse(value, index)
    }

    /// Absent and `null` are the same.
    fn optional<T: DeserializeOwned>(self, index: usize) -> Result<Option<T>, RpcError> {
        self.0
            .get(index)
            .filter(|value| !value.is_null())
            .map(|value| parse(value, index))
            .transpose()
    }

    /// The block that the parameter names; without it the newest.
    fn block(self, index: usize, chain: &Chain) -> Result<u64, RpcError> {
        chain.resolve(self.optional(index)?.unwrap_or_default())
    }

    /// A number written as such or as a hexadecimal string: clients do both.
    fn number(self, index: usize) -> Result<u64, RpcError> {
        parse_number(&self.get::<Value>(index)?)
    }

    /// State overrides would change the answer, so they are refused rather than ignored.
    fn refuse_overrides(self, first: usize) -> Result<(), RpcError> {
        let given = self.0.iter().skip(first).any(|value| match value {
            Value::Null => false,
            Value::Object(entries) => !entries.is_empty(),
            _ => true,
        });
        if given {
            Err(RpcError::invalid_params(
                "state and block overrides are not supported",
            ))
        } else {
            Ok(())
        }
    }
}

fn parse<T: DeserializeOwned>(value: &Value, index: usize) -> Result<T, RpcError> {
    T::deserialize(value)
        .map_err(|error| RpcError::invalid_params(format!("invalid argument {index}: {error}")))
}

fn parse_number(value: &Value) -> Result<u64, RpcError> {
    let number = match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        },
        _ => None,
    };
    number.ok_or_else(|| RpcError::invalid_params(format!("{value} is not a number of 64 bits")))
}
