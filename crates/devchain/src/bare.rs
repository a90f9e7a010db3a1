//! An EVM without a chain around it, for tests that make very many calls.
//!
//! There are no blocks, nonces to keep, signatures, gas prices or histories: a call names its sender, time is a number
//! that is set, and a copy of the whole state is one `clone`. The rules are those of the [`crate::DevChain`].

use alloy_primitives::{Address, Bytes, Log, TxKind, U256};
use revm::{
    Context, DatabaseCommit, DatabaseRef, ExecuteEvm, MainBuilder, MainContext,
    context::{
        BlockEnv, TxEnv,
        result::{ExecutionResult, Output},
    },
    database::{CacheDB, EmptyDB},
    state::{AccountInfo, EvmState},
};

use crate::{RpcError, execution};

/// Far above what any call needs, so that no outcome depends on gas.
const GAS_LIMIT: u64 = 1 << 40;

/// State and time.
#[derive(Clone, Debug)]
pub struct BareEvm {
    state: CacheDB<EmptyDB>,
    chain_id: u64,
    /// Timestamp of all calls from now on, in Unix seconds.
    pub timestamp: u64,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallEnd {
    /// With this return data.
    Returned(Bytes),
    /// With this revert data.
    Reverted(Bytes),
    /// By an exceptional halt, named here.
    Halted(String),
}

/// What a call did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executed {
    /// How it ended.
    pub end: CallEnd,
    /// Its logs in order; none unless it returned.
    pub logs: Vec<Log>,
    /// Gas that a transaction would have paid for.
    pub gas_used: u64,
}

impl BareEvm {
    /// An empty state.
    pub fn new(chain_id: u64, timestamp: u64) -> Self {
        Self {
            state: CacheDB::default(),
            chain_id,
            timestamp,
        }
    }

    /// Gives an account that has no code this balance, in wei.
    pub fn fund(&mut self, address: Address, balance: U256) {
        let info = AccountInfo {
            nonce: self.nonce(address),
            balance,
            ..Default::default()
        };
        self.state.insert_account_info(address, info);
    }

    /// Executes a call, or a creation where `to` is `None`, and keeps its effects.
    ///
    /// # Errors
    ///
    /// When the sender cannot pay `value`.
    pub fn transact(
        &mut self,
        from: Address,
        to: Option<Address>,
        value: U256,
        data: Bytes,
    ) -> Result<Executed, RpcError> {
        let (executed, state) = self.run(from, to, value, data)?;
        self.state.commit(state);
        Ok(executed)
    }

    /// Executes a call and forgets its effects.
    ///
    /// # Errors
    ///
    /// When the sender cannot pay `value`.
    pub fn call(
        &self,
        from: Address,
        to: Address,
        value: U256,
        data: Bytes,
    ) -> Result<Executed, RpcError> {
        self.run(from, Some(to), value, data)
            .map(|(executed, _)| executed)
    }

    /// Balance of an account in wei.
    pub fn balance(&self, address: Address) -> U256 {
        self.account(address).balance
    }

    /// Transactions that an account sent, or contracts that a contract created.
    pub fn nonce(&self, address: Address) -> u64 {
        self.account(address).nonce
    }

    /// Whether the account is a contract.
    pub fn has_code(&self, address: Address) -> bool {
        !self.account(address).is_empty_code_hash()
    }

    fn account(&self, address: Address) -> AccountInfo {
        let Ok(info) = self.state.basic_ref(address);
        info.unwrap_or_default()
    }

    fn run(
        &self,
        from: Address,
        to: Option<Address>,
        value: U256,
        data: Bytes,
    ) -> Result<(Executed, EvmState), RpcError> {
        let mut configuration = execution::configuration(self.chain_id);
        configuration.disable_nonce_check = true;
        configuration.disable_eip3607 = true;
        let block = BlockEnv {
            timestamp: U256::from(self.timestamp),
            gas_limit: u64::MAX,
            basefee: 0,
            ..Default::default()
        };
        let transaction = TxEnv {
            caller: from,
            gas_limit: GAS_LIMIT,
            gas_price: 0,
            kind: to.map_or(TxKind::Create, TxKind::Call),
            value,
            data,
            nonce: self.nonce(from),
            chain_id: Some(self.chain_id),
            ..Default::default()
        };
        let outcome = Context::mainnet()
            .with_db(CacheDB::new(&self.state))
            .with_cfg(configuration)
            .with_block(block)
            .build_mainnet()
            .transact(transaction)
            .map_err(|error| execution::refusal(&error))?;
        Ok((executed(outcome.result), outcome.state))
    }
}

fn executed(result: ExecutionResult) -> Executed {
    let gas_used = result.tx_gas_used();
    let (end, logs) = match result {
        ExecutionResult::Success { output, logs, .. } => {
            let (Output::Call(data) | Output::Create(data, _)) = output;
            (CallEnd::Returned(data), logs)
        }
        ExecutionResult::Revert { output, .. } => (CallEnd::Reverted(output), Vec::new()),
        ExecutionResult::Halt { reason, .. } => {
            (CallEnd::Halted(format!("{reason:?}")), Vec::new())
        }
    };
    Executed {
        end,
        logs,
        gas_used,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_move_coins_and_copies_are_independent() {
        let (from, to) = (Address::repeat_byte(1), Address::repeat_byte(2));
        let mut evm = BareEvm::new(31_337, 1_750_000_000);
        evm.fund(from, U256::from(10));
        let copy = evm.clone();
        let paid = evm.transact(from, Some(to), U256::from(4), Bytes::new());
        assert_eq!(paid.unwrap().end, CallEnd::Returned(Bytes::new()));
        assert_eq!(
            (evm.balance(from), evm.balance(to)),
            (U256::from(6), U256::from(4))
        );
        assert_eq!((evm.nonce(from), copy.nonce(from)), (1, 0));
        assert_eq!(copy.balance(to), U256::ZERO);
        let poor = evm.transact(from, Some(to), U256::from(7), Bytes::new());
        assert!(poor.unwrap_err().message.contains("insufficient funds"));
        // PUSH0 PUSH0 REVERT as creation code.
        let created = evm.transact(
            from,
            None,
            U256::ZERO,
            Bytes::from_static(&[0x5f, 0x5f, 0xfd]),
        );
        assert_eq!(created.unwrap().end, CallEnd::Reverted(Bytes::new()));
        // An unknown instruction.
        let halted = evm.transact(from, None, U256::ZERO, Bytes::from_static(&[0xfe]));
        assert!(matches!(halted.unwrap().end, CallEnd::Halted(_)));
    }
}
